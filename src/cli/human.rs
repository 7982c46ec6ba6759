//! Formats numbers for people.

use crate::clock::Time;
use crate::target::shown::piece;

/// Bytes in decimal units, as package tools and disks count: `4.1 MB`.
pub(super) fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["kB", "MB", "GB", "TB", "PB"];
    if bytes < 1000 {
        return format!("{bytes} B");
    }
    // Tenths of the displayed unit.
    let mut value = bytes;
    let mut shown = "kB";
    let mut tenths = value / 100;
    for unit in UNITS {
        shown = unit;
        tenths = value / 100;
        value /= 1000;
        if value < 1000 {
            break;
        }
    }
    format!("{}.{} {shown}", tenths / 10, tenths % 10)
}

/// The variant of an entry among other columns: the name of a form, or the request fields that select it. Empty if nothing is to
/// be said. Unrecognised targets have a first line that tells nobody anything.
pub(super) fn variant(variant: &str) -> String {
    let fields = variant.lines().filter(|line| *line != "unknown");
    piece(&fields.collect::<Vec<_>>().join("; "))
}

/// How long before `now` something was: `3 h ago`.
pub(super) fn ago(then: Time, now: Time) -> String {
    let seconds = now.since(then).as_secs();
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..172_800 => format!("{} h ago", seconds / 3600),
        _ => format!("{} days ago", seconds / 86_400),
    }
}

/// A span of seconds: `40 s`, `12 min`, `3.5 h`.
pub(super) fn seconds(seconds: f64) -> String {
    if seconds < 120.0 {
        format!("{seconds:.0} s")
    } else if seconds < 7200.0 {
        format!("{:.0} min", seconds / 60.0)
    } else {
        format!("{:.1} h", seconds / 3600.0)
    }
}

/// `1 hit`, `2 hits`.
pub(super) fn count(number: u64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variant_is_one_piece_of_a_line() {
        for (stored, shown) in [
            ("unknown\naccept: */*", "accept: */*"),
            ("unknown\naccept: a/b\nuser-agent: x\u{1b}", "accept: a/b; user-agent: x\\u{1b}"),
            ("json", "json"),
            ("unknown", ""),
            ("", ""),
        ] {
            assert_eq!(variant(stored), shown);
        }
    }

    #[test]
    fn bytes_are_shown_in_the_unit_that_fits() {
        for (number, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (118_249_000, "118.2 MB"),
            (999_999, "999.9 kB"),
            (u64::MAX, "18446.7 PB"),
        ] {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn ages_are_shown_in_the_unit_that_fits() {
        let at = |seconds: i64| Time::from_millis(seconds * 1000);
        for (seconds, text) in [
            (5, "5 s ago"),
            (119, "1 min ago"),
            (7200, "2 h ago"),
            (200_000, "2 days ago"),
            (-5, "0 s ago"),
        ] {
            assert_eq!(ago(at(0), at(seconds)), text);
        }
    }
}
