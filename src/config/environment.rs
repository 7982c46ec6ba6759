//! Reads the environment and the configuration file. The rest of larder gets an [`Environment`], a plain map, so that
//! tests need no real environment.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// The environment variables, as they were when the process started.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<String, String>);

impl Environment {
    /// The process's environment. Variables that are not UTF-8 are left out: larder reads none of those.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the one place that reads the environment"
    )]
    pub fn of_process() -> Self {
        let utf8 = std::env::vars_os().filter_map(|(name, value)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        Self(utf8.collect())
    }

    /// The value of `name`; `None` if it is unset or empty, which mean the same to most programs.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    /// The variables whose names begin with `prefix`, empty ones too.
    pub fn with_prefix<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.0
            .iter()
            .filter(move |(name, _)| name.starts_with(prefix))
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The default data directory.
    pub fn default_data(&self) -> PathBuf {
        self.directory("XDG_CACHE_HOME", ".cache")
            .unwrap_or_else(|| PathBuf::from("/var/cache"))
            .join("larder")
    }

    /// The default configuration files, in order; only the first that exists is read.
    pub fn config_files(&self) -> Vec<PathBuf> {
        let own = self.directory("XDG_CONFIG_HOME", ".config");
        own.into_iter()
            .chain([PathBuf::from("/etc")])
            .map(|directory| directory.join("larder/larder.toml"))
            .collect()
    }

    /// The directory for temporary files.
    pub fn temporary(&self) -> PathBuf {
        PathBuf::from(self.get("TMPDIR").unwrap_or("/tmp"))
    }

    /// A directory of the XDG base directory specification, which says to ignore relative paths.
    fn directory(&self, variable: &str, below_home: &str) -> Option<PathBuf> {
        let absolute = |path: &str| Some(PathBuf::from(path)).filter(|path| path.is_absolute());
        self.get(variable)
            .and_then(absolute)
            .or_else(|| Some(self.get("HOME").and_then(absolute)?.join(below_home)))
    }
}

impl<'a> FromIterator<(&'a str, &'a str)> for Environment {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a str)>>(pairs: I) -> Self {
        Self(pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }
}

/// Shows names only: values may be secrets.
impl std::fmt::Debug for Environment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

/// The configuration file's path and text: the one that `--config` or `LARDER_CONFIG` names, which must exist, or the
/// first of the default ones that exists.
pub fn read_file(
    named: Option<&Path>,
    environment: &Environment,
) -> io::Result<Option<(PathBuf, String)>> {
    let named = named.or_else(|| environment.get("LARDER_CONFIG").map(Path::new));
    if let Some(path) = named {
        let text = std::fs::read_to_string(path).map_err(|error| {
            io::Error::new(error.kind(), format!("{}: {error}", path.display()))
        })?;
        return Ok(Some((path.to_owned(), text)));
    }
    for path in environment.config_files() {
        match std::fs::read_to_string(&path) {
            Ok(text) => return Ok(Some((path, text))),
            // The home of service users is often /dev/null.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) => {}
            Err(error) => {
                return Err(io::Error::new(error.kind(), format!("{}: {error}", path.display())));
            }
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_goes_to_the_cache_directory() {
        let data =
            |pairs: &[(&str, &str)]| pairs.iter().copied().collect::<Environment>().default_data();
        assert_eq!(data(&[("HOME", "/home/a")]), Path::new("/home/a/.cache/larder"));
        assert_eq!(data(&[("HOME", "/home/a"), ("XDG_CACHE_HOME", "/c")]), Path::new("/c/larder"));
        assert_eq!(data(&[("XDG_CACHE_HOME", "relative")]), Path::new("/var/cache/larder"));
    }

    #[test]
    fn debug_shows_no_values() {
        let environment: Environment = [("TOKEN", "hunter2")].into_iter().collect();
        assert!(!format!("{environment:?}").contains("hunter2"));
    }

    #[test]
    fn a_home_that_is_no_directory_holds_no_configuration() {
        let user: Environment = [("HOME", "/dev/null")].into_iter().collect();
        // What /etc contains on this machine does not matter here.
        assert!(read_file(None, &user).is_ok());
    }

    #[test]
    fn a_file_that_was_named_must_exist() {
        let directory = tempfile::tempdir().unwrap();
        let missing = directory.path().join("larder.toml");
        let nothing = Environment::default();
        let text = read_file(Some(&missing), &nothing).unwrap_err().to_string();
        assert!(text.contains(&*missing.to_string_lossy()), "{text}");
        let home: Environment =
            [("XDG_CONFIG_HOME", &*directory.path().to_string_lossy())].into_iter().collect();
        std::fs::create_dir(directory.path().join("larder")).unwrap();
        std::os::unix::fs::symlink("/dev/null", directory.path().join("larder/larder.toml"))
            .unwrap();
        let (path, text) = read_file(None, &home).unwrap().unwrap();
        assert!(path.ends_with("larder/larder.toml") && text.is_empty());
    }
}
