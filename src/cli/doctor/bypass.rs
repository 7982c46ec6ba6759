//! Lists of hosts that bypass a proxy, `NO_PROXY` and the like.

use super::shell::Shell;

/// A setting and its source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Set {
    /// A variable, or the command that printed the program's own setting.
    pub(super) whence: String,
    pub(super) value: String,
}

/// An entry of a list that matches `host`, as most clients read it: a name matches all names below it, a star
/// everything.
pub(super) fn around(shell: &Shell, name: &str, host: &str) -> Option<Set> {
    let entry = shell.get(name)?.split([',', ' ']).find(|entry| hides(entry, host))?;
    Some(Set { whence: name.to_owned(), value: entry.to_owned() })
}

/// Whether an entry of such a list makes `host` bypass the proxy.
pub(super) fn hides(entry: &str, host: &str) -> bool {
    let bare = entry.trim_start_matches('*').trim_start_matches('.');
    entry == "*" || !bare.is_empty() && (host == bare || host.ends_with(&format!(".{bare}")))
}
