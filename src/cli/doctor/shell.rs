//! The environment of a fresh login shell of this user, in which clients are examined, and the root directory in
//! which they run.
//!
//! Of the doctor's own environment only the user's identity and the search path are kept: a variable exported in one
//! terminal is missing in the next, and in the next CI job.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use super::attempt::attempt;
use super::inside;
use crate::config::environment::Environment;

/// How long a login shell may take to read its files, or a program to print a setting.
const PATIENCE: Duration = Duration::from_secs(20);

/// Shells that read the login files with `-l -c`.
const SHELLS: [&str; 6] = ["sh", "bash", "dash", "zsh", "ksh", "ash"];

/// The default search path in another root.
const PROGRAMS: &str =
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/local/cargo/bin";

/// An environment and a root directory.
#[derive(Clone, Debug, Default)]
pub(super) struct Shell {
    pub(super) variables: BTreeMap<String, String>,
    /// Another root directory than this machine's.
    pub(super) root: Option<PathBuf>,
    /// Whether programs can be run in it.
    pub(super) runs: bool,
    /// Whether this is the doctor's own environment instead of a fresh shell's.
    pub(super) here: bool,
    /// The file that its login shell reads, to which a line can be added.
    pub(super) profile: PathBuf,
}

impl Shell {
    /// The environment of this shell.
    pub(super) fn here(environment: &Environment) -> Self {
        let variables = environment.with_prefix("");
        let variables =
            variables.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Self { variables, runs: true, here: true, ..Self::default() }
    }

    /// The environment of a new login shell on this machine, or in `root`.
    pub(super) async fn fresh(environment: &Environment, root: Option<PathBuf>) -> Self {
        let is_root = rustix::process::geteuid().is_root();
        let mut shell = Self { runs: root.is_none() || is_root, root, ..Self::default() };
        let kept: &[&str] = &["HOME", "USER", "LOGNAME", "SHELL", "TERM", "LANG"];
        for name in kept.iter().filter(|_| shell.root.is_none()) {
            if let Some(value) = environment.get(name) {
                shell.variables.insert((*name).to_owned(), value.to_owned());
            }
        }
        let path = environment.get("PATH").filter(|_| shell.root.is_none()).unwrap_or(PROGRAMS);
        shell.variables.insert("PATH".to_owned(), path.to_owned());
        if shell.root.is_some() {
            shell.variables.insert("HOME".to_owned(), "/root".to_owned());
        }
        // PAM reads this file at a login.
        shell.assign("/etc/environment");
        shell.log_in(path).await;
        let home = PathBuf::from(shell.get("HOME").unwrap_or("/"));
        let name = shell.name();
        let read: &[&str] = match name.as_str() {
            "bash" => &[".bash_profile", ".bash_login", ".profile"],
            "zsh" => &[".zprofile"],
            _ => &[".profile"],
        };
        // Bash reads only the first that exists.
        let there = read.iter().find(|name| shell.has(&home.join(name)));
        shell.profile = home.join(there.or_else(|| read.last()).copied().unwrap_or(".profile"));
        shell
    }

    /// The value of a variable; `None` if it is unset or empty.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The path on this machine of a path in this root; `None` if its links cannot be resolved.
    pub(super) fn within(&self, path: &Path) -> Option<PathBuf> {
        match &self.root {
            Some(root) => inside::within(root, path),
            None => Some(path.to_owned()),
        }
    }

    /// The content of a file in this root.
    pub(super) fn read(&self, path: &Path) -> Option<Vec<u8>> {
        inside::read(&self.within(path)?)
    }

    /// Whether there is such a file in this root.
    pub(super) fn has(&self, path: &Path) -> bool {
        self.within(path).is_some_and(|path| path.is_file())
    }

    /// Finds a program; returns its path inside the root.
    pub(super) fn find(&self, program: &str) -> Option<PathBuf> {
        let there = |path: &PathBuf| self.has(path);
        if program.starts_with('/') {
            return Some(PathBuf::from(program)).filter(there);
        }
        let path = self.get("PATH").unwrap_or(PROGRAMS);
        path.split(':')
            .filter(|dir| dir.starts_with('/'))
            .map(|dir| Path::new(dir).join(program))
            .find(there)
    }

    /// The name of the program after resolving links: one binary may implement many programs.
    pub(super) fn real_name(&self, program: &Path) -> String {
        let real = match &self.root {
            Some(root) => inside::within(root, program),
            None => program.canonicalize().ok(),
        };
        let name = real.as_deref().and_then(Path::file_name).unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// A command for a program of this root in this environment.
    pub(super) fn command(&self, program: &Path) -> Command {
        let mut command = match &self.root {
            Some(root) => {
                let mut command = Command::new("chroot");
                command.arg(root).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.env_clear().envs(&self.variables);
        command
    }

    /// What a program prints on standard output, if it succeeds in time.
    pub(super) async fn said(&self, program: &Path, arguments: &[&str]) -> Option<String> {
        let mut command = self.command(program);
        command.args(arguments);
        let ended = attempt(command, PATIENCE).await.ok()?;
        let text = || String::from_utf8_lossy(&ended.out).trim().to_owned();
        ended.status.is_some_and(|status| status.success()).then(text)
    }

    fn name(&self) -> String {
        let shell = Path::new(self.get("SHELL").unwrap_or("/bin/sh"));
        let name = shell.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if SHELLS.contains(&&*name) { name } else { "sh".to_owned() }
    }

    async fn log_in(&mut self, path: &str) {
        if !self.runs {
            self.read_profiles();
            return;
        }
        let Some(program) = self.find(&self.name()).or_else(|| self.find("sh")) else {
            self.read_profiles();
            return;
        };
        let Some(said) = self.said(&program, &["-l", "-c", "env -0"]).await else { return };
        // A profile's own output comes before the first variable and is cut off. Values with line breaks are not
        // needed.
        let pairs =
            said.split('\0').map(|pair| pair.rsplit_once('\n').map_or(pair, |(_, last)| last));
        for (name, value) in pairs.filter_map(|pair| pair.split_once('=')) {
            self.variables.insert(name.to_owned(), value.to_owned());
        }
        // Programs are found as the user finds them now: version managers extend the path in files that logins do not
        // read.
        self.variables.insert("PATH".to_owned(), path.to_owned());
    }

    /// Reads the plain assignments in the files that a login shell would read, for roots in which nothing can be run.
    fn read_profiles(&mut self) {
        let directory = self.within(Path::new("/etc/profile.d"));
        let Some(Ok(entries)) = directory.map(std::fs::read_dir) else { return };
        let names: Vec<_> = entries.flatten().map(|entry| entry.file_name()).collect();
        for name in
            names.iter().filter_map(|name| name.to_str()).filter(|name| name.ends_with(".sh"))
        {
            self.assign(&format!("/etc/profile.d/{name}"));
        }
    }

    /// Adopts the lines `NAME=value` of a file, with or without `export` and quotes.
    fn assign(&mut self, file: &str) {
        let bytes = self.read(Path::new(file)).unwrap_or_default();
        for line in String::from_utf8_lossy(&bytes).lines() {
            let line = line.trim();
            let line = line.strip_prefix("export ").unwrap_or(line);
            let Some((name, value)) = line.split_once('=') else { continue };
            let is_name =
                !name.is_empty() && name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_');
            let value = value.trim_matches(['"', '\'']);
            if is_name && !value.contains('$') {
                self.variables.insert(name.to_owned(), value.to_owned());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_fresh_shell_has_what_its_files_say_and_nothing_of_ours() {
        let home = tempfile::tempdir().unwrap();
        let profile = home.path().join(".profile");
        std::os::unix::fs::symlink("/dev/null", home.path().join(".zprofile")).unwrap();
        crate::store::write_durably(&profile, b"echo noise\nexport LARDER_TEST='a=b'\n", 0o644)
            .unwrap();
        let home = home.path().to_str().unwrap();
        let environment =
            [("HOME", home), ("PATH", "/usr/bin:/bin"), ("SHELL", "/bin/sh"), ("INJECTED", "x")];
        let environment: Environment = environment.into_iter().collect();
        let fresh = Shell::fresh(&environment, None).await;
        assert_eq!(fresh.get("LARDER_TEST"), Some("a=b"));
        assert_eq!(fresh.get("INJECTED"), None);
        assert_eq!(fresh.get("PATH"), Some("/usr/bin:/bin"));
        assert_eq!(fresh.profile, profile);
        assert_eq!(Shell::here(&environment).get("INJECTED"), Some("x"), "the control");
    }
}
