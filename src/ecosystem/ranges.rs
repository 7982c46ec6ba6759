//! The media ranges of an `Accept` header and their weights (RFC 9110 §12.4.2 and §12.5.1).

/// The ranges of `accept` in lower case, each with its weight in thousandths. `None` for one that has a parameter: it
/// asks for something that no class of answers here knows.
pub(super) fn ranges(accept: &str) -> impl Iterator<Item = Option<(String, u16)>> + '_ {
    accept.split(',').map(str::trim).filter(|range| !range.is_empty()).map(|range| {
        let (name, weight) = match range.split_once(';') {
            Some((name, parameter)) => (name.trim_end(), weight(parameter)?),
            None => (range, 1000),
        };
        Some((name.to_ascii_lowercase(), weight))
    })
}

/// `q=0.25` as 250 (RFC 9110 §12.4.2); `None` for anything else.
fn weight(parameter: &str) -> Option<u16> {
    let (name, value) = parameter.trim().split_once('=')?;
    if !name.eq_ignore_ascii_case("q") {
        return None;
    }
    let (whole, fraction) = value.split_once('.').unwrap_or((value, ""));
    if !matches!(whole, "0" | "1")
        || fraction.len() > 3
        || !fraction.bytes().all(|b| b.is_ascii_digit())
    {
        return None;
    }
    let thousandths: u16 = format!("{whole}{fraction:0<3}").parse().ok()?;
    (thousandths <= 1000).then_some(thousandths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_are_read_and_parameters_refused() {
        let read: Vec<_> = ranges("A/B; q=0.25,, */*;Q=1.0 , c/d;level=1, e/f;q=1.001").collect();
        let named = |name: &str, weight| Some((name.to_owned(), weight));
        assert_eq!(read, [named("a/b", 250), named("*/*", 1000), None, None]);
        assert_eq!(ranges(" ").count(), 0);
    }
}
