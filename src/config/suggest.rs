//! "Did you mean …?": the name nearest to one that does not exist.

/// The name among `names` that is nearest to `wrong`, if it is similar enough to be what was meant.
pub(super) fn nearest<'a>(
    wrong: &str,
    names: impl Iterator<Item = &'a str> + Clone,
) -> Option<&'a str> {
    // The right key in the wrong table is more likely than a typing error.
    let last = |name: &str| name.rsplit('.').next().map(str::to_owned);
    let same_last = names.clone().find(|name| last(name) == last(wrong));
    let nearest = names
        .map(|name| (distance(wrong, name), name))
        .min_by_key(|(distance, _)| *distance)
        // At most a third of the letters may differ: worse guesses confuse more than they help.
        .filter(|(distance, name)| *distance <= name.len().max(wrong.len()) / 3)
        .map(|(_, name)| name);
    same_last.or(nearest)
}

/// The number of letters that must be added, removed or replaced (Levenshtein distance).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (done, letter) in from.chars().enumerate() {
        let mut corner = done;
        let mut left = done + 1;
        let mut next = vec![left];
        for (above, other) in row.iter().skip(1).zip(&to) {
            let replaced = corner + usize::from(letter != *other);
            left = replaced.min(left + 1).min(above + 1);
            corner = *above;
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_distance_counts_letters() {
        for (from, to, expected) in
            [("", "abc", 3), ("abc", "abc", 0), ("kitten", "sitting", 3), ("abc", "", 3)]
        {
            assert_eq!(distance(from, to), expected, "{from} {to}");
        }
    }

    #[test]
    fn the_nearest_name_is_suggested_and_a_far_one_is_not() {
        let names = ["allow_nets", "store.max_size", "clients.allow"];
        let nearest = |wrong| nearest(wrong, names.into_iter());
        assert_eq!(nearest("allow_net"), Some("allow_nets"));
        assert_eq!(nearest("max_size"), Some("store.max_size"));
        assert_eq!(nearest("store.maxsize"), Some("store.max_size"));
        assert_eq!(nearest("colour"), None);
    }
}
