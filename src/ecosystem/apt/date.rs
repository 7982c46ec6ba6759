//! Parses the dates of Release files: RFC 1123, with tolerance.
//!
//! Some archives pad the hour with a blank, and the date may end with `UTC`, `GMT` or `+0000` (deb822(5) of apt).

use crate::clock::Time;

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

/// Parses `Sat, 21 Nov 2026 00:50:08 UTC`; the weekday is ignored.
pub(super) fn parse(text: &str) -> Option<Time> {
    let mut words = text.split_whitespace();
    let _weekday = words.next()?.strip_suffix(',')?;
    let day: i64 = words.next()?.parse().ok()?;
    let month = words.next()?;
    let month = MONTHS.iter().position(|known| *known == month)?;
    let year: i64 = words.next()?.parse().ok()?;
    let mut clock = words.next()?.splitn(3, ':').map(str::parse::<i64>);
    let (hour, minute, second) = (clock.next()?.ok()?, clock.next()?.ok()?, clock.next()?.ok()?);
    let zone = words.next()?;
    let sane = (1..=31).contains(&day)
        && (1970..=9999).contains(&year)
        && (0..24).contains(&hour)
        && (0..60).contains(&minute)
        && (0..=60).contains(&second)
        && matches!(zone, "UTC" | "GMT" | "Z" | "+0000")
        && words.next().is_none();
    if !sane {
        // Checked before the arithmetic, because the numbers could overflow it.
        return None;
    }
    let days = days_since_epoch(year, i64::try_from(month).ok()? + 1, day);
    let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second;
    Some(Time::from_millis(seconds * 1000))
}

/// Days from 1970-01-01 in the Gregorian calendar. The computation starts the year in March, so that the leap day is
/// last.
fn days_since_epoch(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month <= 2 { (year - 1, month + 9) } else { (year, month - 3) };
    let days_before_month = (153 * month + 2) / 5;
    365 * year + year / 4 - year / 100 + year / 400 + days_before_month + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_with_tolerance() {
        for (text, seconds) in [
            ("Thu, 01 Jan 1970 00:00:00 UTC", 0),
            ("Sat, 21 Nov 2026 00:50:08 UTC", 1_795_222_208),
            ("Sat, 21 Nov 2026  0:50:08 UTC", 1_795_222_208),
            ("Sat, 21 Nov 2026 00:50:08 +0000", 1_795_222_208),
            ("Thu, 29 Feb 2024 12:00:00 GMT", 1_709_208_000),
        ] {
            assert_eq!(parse(text), Some(Time::from_millis(seconds * 1000)), "{text}");
        }
        for text in
            ["", "2026-11-21", "Sat, 21 Nov 2026 00:50:08 PST", "Sat, 21 Nox 2026 00:50:08 UTC"]
        {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_number_of_any_length_is_no_date_and_no_panic() {
        for huge in [i64::MAX, i64::MIN, i64::MAX / 2, 10_000] {
            for text in [
                format!("Sat, {huge} Nov 2026 00:50:08 UTC"),
                format!("Sat, 21 Nov {huge} 00:50:08 UTC"),
                format!("Sat, 21 Nov 2026 {huge}:50:08 UTC"),
                format!("Sat, 21 Nov 2026 00:{huge}:08 UTC"),
                format!("Sat, 21 Nov 2026 00:50:{huge} UTC"),
            ] {
                assert_eq!(parse(&text), None, "{text}");
            }
        }
    }
}
