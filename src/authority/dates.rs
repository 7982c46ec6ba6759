//! Checks that the clock is plausible: a CA that is made with a wrong clock may have expired once the clock is right.

use super::AuthorityError;
use crate::clock::Time;

/// A lower bound for the build date of this program: the release's date (`SOURCE_DATE_EPOCH` of
/// reproducible-builds.org), and not before [`FLOOR`]. A clock before that is wrong, like that of a machine without a
/// battery until it has a network.
pub(super) const MADE: Time =
    Time::from_millis(1000 * later(FLOOR, option_env!("SOURCE_DATE_EPOCH")));

/// 2026-04-01.
const FLOOR: i64 = 1_775_001_600;

/// The later of `floor` and a time written in seconds; a text that is not a number is ignored.
const fn later(floor: i64, text: Option<&str>) -> i64 {
    let Some(text) = text else { return floor };
    match i64::from_str_radix(text, 10) {
        // Milliseconds must not overflow.
        Ok(seconds) if seconds > floor && seconds < i64::MAX / 1000 => seconds,
        Ok(_) | Err(_) => floor,
    }
}

/// Refuses to make a CA while the clock is implausible: the CA would have expired once the clock is right.
pub(super) fn check_clock(now: Time) -> Result<(), AuthorityError> {
    if now < MADE { Err(AuthorityError::Clock { now, made: MADE }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use super::*;
    use crate::authority::Authority;
    use crate::clock::Clock;

    #[test]
    fn a_releases_date_counts_if_it_is_one() {
        assert_eq!(later(FLOOR, Some("1999999999")), 1_999_999_999);
        for none in
            [None, Some(""), Some("soon"), Some("0"), Some("-5"), Some("99999999999999999999")]
        {
            assert_eq!(later(FLOOR, none), FLOOR, "{none:?}");
        }
    }

    /// Issue 17, faults, row 3: a CA that is made with the clock of 2015 has expired when the clock is right.
    #[test]
    fn no_ca_is_made_while_the_clock_is_before_this_program() {
        let state = tempfile::tempdir().unwrap();
        let clock = Clock::system();
        let wrong = clock.now().since(MADE) + Duration::from_hours(24);
        clock.set_back(wrong);
        let error = Authority::open(state.path(), &clock).unwrap_err().to_string();
        assert!(error.contains("Set the clock") && error.contains(&MADE.to_string()), "{error}");
        assert_eq!(fs::read_dir(state.path()).unwrap().count(), 0, "nothing was made");
        // Control: the same with the right clock.
        clock.advance(wrong);
        let authority = Authority::open(state.path(), &clock).unwrap();
        let pem = authority.ca_pem();
        // An existing CA is used whatever the clock says; only a new one is not made.
        clock.set_back(wrong);
        let authority = Authority::open(state.path(), &clock).unwrap();
        assert_eq!(authority.ca_pem(), pem);
        let error = authority.rotate(Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains("Set the clock"), "{error}");
        assert_eq!(authority.all().len(), 1);
    }

    #[test]
    fn an_expired_ca_says_what_to_do() {
        let state = tempfile::tempdir().unwrap();
        let clock = Clock::system();
        Authority::open(state.path(), &clock).unwrap();
        clock.advance(Duration::from_hours(3651 * 24));
        let error = Authority::open(state.path(), &clock).unwrap_err().to_string();
        for said in
            ["ca.crt", "expired on", "move ca.key and ca.crt away", "larder ca install", "clock"]
        {
            assert!(error.contains(said), "{said}: {error}");
        }
        // Removes the files, as the error says.
        for file in ["ca.key", "ca.crt"] {
            fs::remove_file(state.path().join(file)).unwrap();
        }
        Authority::open(state.path(), &clock).unwrap();
    }
}
