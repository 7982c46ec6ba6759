//! Parses the media ranges of an `Accept` header and their weights (RFC 9110 §12.4.2 and §12.5.1).

/// The ranges of `accept` in lower case, each with its weight in thousandths. `None` for a range with another
/// parameter, because no class of responses covers one.
pub(super) fn ranges(accept: &str) -> impl Iterator<Item = Option<(String, u16)>> + '_ {
    accept.split(',').map(str::trim).filter(|range| !range.is_empty()).map(|range| {
        let (name, weight) = match range.split_once(';') {
            Some((name, parameter)) => (name.trim_end(), weight(parameter)?),
            None => (range, 1000),
        };
        Some((name.to_ascii_lowercase(), weight))
    })
}

/// The weight of each of `types` in `accept`, in thousandths; 0 for a type that is not named or not accepted. `None`
/// for a header with another type, a parameter, or a repeated type: it fits no class made of these types.
pub(super) fn weights<const TYPES: usize>(
    accept: &str,
    types: [&str; TYPES],
) -> Option<[u16; TYPES]> {
    let mut found = [None; TYPES];
    for range in ranges(accept) {
        let (name, weight) = range?;
        let (_, place) = types.iter().zip(&mut found).find(|(known, _)| **known == name)?;
        if place.replace(weight).is_some() {
            return None;
        }
    }
    Some(found.map(Option::unwrap_or_default))
}

/// Parses `q=0.25` as 250 (RFC 9110 §12.4.2); `None` for anything else.
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

    #[test]
    fn each_type_has_its_weight_and_no_other_may_stand_beside() {
        let read = |accept| weights(accept, ["a/b", "c/d", "*/*"]);
        assert_eq!(read("*/*;q=0.5, A/B"), Some([1000, 0, 500]));
        assert_eq!(read(""), Some([0; 3]));
        for other in ["a/b, e/f", "a/b;level=1", "a/b, a/b;q=0.5", "a/b;q=0, a/b"] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
