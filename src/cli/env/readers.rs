//! Tests: each format is read back by its readers.
//!
//! A value either arrives unchanged or is refused; it must never arrive changed.

use std::process::{Command, Stdio};

use proptest::prelude::*;

use super::format::{Format, Printed};

/// The variables that one process tests.
const NAMES: [&str; 4] = ["SSL_CERT_FILE", "HTTPS_PROXY", "NO_PROXY", "OTHER"];

type Variables = Vec<(&'static str, String)>;

fn rendered(format: Format, variables: &Variables) -> Option<String> {
    let printed = Printed {
        proxy: "http://larder.internal:3142",
        machine: Some("larder.internal"),
        directory: "/etc/larder/clients",
        variables,
    };
    format.render(&printed).ok()
}

fn of(values: [&str; 4]) -> Variables {
    NAMES.into_iter().zip(values.map(str::to_owned)).collect()
}

/// The output of a shell that runs `script` with `text` as its first argument and its standard input.
fn shell(shell: &str, script: &str, text: &str) -> Vec<String> {
    let mut command = Command::new(shell);
    command.args(["-c", script, shell, text]).env_clear().env("PATH", "/usr/bin:/bin");
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // A script that reads nothing may have ended already.
    let _read = std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_terminator('\0').map(str::to_owned).collect()
}

/// Prints the variables, each followed by a NUL byte.
const SHOW: &str = r#"printf '%s\0' "$SSL_CERT_FILE" "$HTTPS_PROXY" "$NO_PROXY" "$OTHER""#;

/// Ordinary values, and values that break readers.
fn values() -> impl Strategy<Value = Variables> {
    let plain = "[a-z0-9./:,_@%+=*-]{1,20}";
    let hostile = "[a-c \t\r\n'\"\\\\$`#%;&|<>()*?!~{}\\[\\]=\u{e9}\u{85}\u{7f}\u{1}-]{1,12}";
    let one = prop_oneof![2 => plain.prop_map(String::from), 1 => hostile.prop_map(String::from)];
    prop::array::uniform4(one).prop_map(|values| NAMES.into_iter().zip(values).collect())
}

fn texts(variables: &Variables) -> Vec<String> {
    variables.iter().map(|(_, value)| value.clone()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_shell_reads_every_value_as_it_is(variables in values()) {
        let text = rendered(Format::Sh, &variables).unwrap();
        prop_assert_eq!(shell("/bin/sh", &format!("eval \"$1\"; {SHOW}"), &text), texts(&variables));
    }

    #[test]
    fn a_file_of_variables_is_read_the_same_by_a_shell_and_by_the_letter(variables in values()) {
        if let Some(text) = rendered(Format::Dotenv, &variables) {
            let sourced = shell("/bin/sh", &format!("set -a; . /dev/stdin; {SHOW}"), &text);
            prop_assert_eq!(sourced, texts(&variables));
            let by_the_letter: Vec<_> =
                text.lines().map(|line| line.split_once('=').unwrap().1.to_owned()).collect();
            prop_assert_eq!(by_the_letter, texts(&variables));
        }
    }

    #[test]
    fn the_words_of_a_docker_command_are_those_that_were_meant(variables in values()) {
        let split = r#"cd /; set -- $1; printf '%s\0' "$@""#;
        if let Some(text) = rendered(Format::DockerArgs, &variables) {
            let words = shell("/bin/sh", split, &text);
            let mut expected = vec!["--add-host".to_owned(), "larder.internal:host-gateway".into()];
            for (name, value) in &variables {
                match *name {
                    "SSL_CERT_FILE" => expected.extend(["--secret".into(), format!("id=larder,src={value}")]),
                    "OTHER" => {}
                    _ => expected.extend(["--build-arg".into(), format!("{name}={value}")]),
                }
            }
            prop_assert_eq!(words, expected);
        }
        if let Some(text) = rendered(Format::DockerRunArgs, &variables) {
            let words = shell("/bin/sh", split, &text);
            let given: Vec<_> = words.chunks(2).filter(|pair| pair[0] == "-e").map(|pair| pair[1].clone()).collect();
            let meant: Vec<_> = variables.iter().map(|(name, value)| format!("{name}={value}")).collect();
            prop_assert_eq!(given, meant);
        }
    }

    #[test]
    fn lines_for_a_runner_are_values_to_their_end(variables in values()) {
        if let Some(text) = rendered(Format::Github, &variables) {
            // The runner ends lines at a carriage return, too.
            let read: Vec<_> = text.trim_end_matches('\n').split(['\n', '\r'])
                .map(|line| line.split_once('=').unwrap().1.to_owned()).collect();
            prop_assert_eq!(read, texts(&variables));
        }
    }

    #[test]
    fn a_gitlab_runner_reads_toml_in_which_nothing_is_expanded(variables in values()) {
        if let Some(text) = rendered(Format::Gitlab, &variables) {
            prop_assert!(!text.contains('$'));
            let table: toml::Table = text.parse().unwrap();
            let read: Vec<_> = table["environment"].as_array().unwrap().iter()
                .map(|pair| pair.as_str().unwrap().split_once('=').unwrap().1.to_owned()).collect();
            prop_assert_eq!(read, texts(&variables));
        }
    }

    #[test]
    fn json_holds_every_value(variables in values()) {
        let text = rendered(Format::Json, &variables).unwrap();
        let read: serde_json::Value = serde_json::from_str(&text).unwrap();
        for (name, value) in &variables {
            prop_assert_eq!(&read["variables"][name], value);
        }
    }
}

#[test]
fn values_that_a_reader_would_misread_are_refused_with_their_name() {
    let plain = ["/b.pem", "http://larder:1", "a.example.org", "1"];
    for (format, hostile) in [
        (Format::Dotenv, &["a b", "a\"b", "a'b", "a$b", "a#b", "a\\b", "a\nb", "~/b", "a;b"][..]),
        (Format::DockerArgs, &["a b", "*.example.org", "a\tb", "a\nb", "a\\b"]),
        (Format::DockerRunArgs, &["a b", "*.example.org", "a\tb"]),
        (Format::Github, &["a\nb", "a\rb"]),
        (Format::Gitlab, &["a$b", "a\nb"]),
        (Format::Systemd, &["a\rb", "a\u{1b}b"]),
    ] {
        assert!(rendered(format, &of(plain)).is_some(), "the control: {format:?}");
        for value in hostile {
            let variables = of([plain[0], plain[1], value, plain[3]]);
            let printed =
                Printed { proxy: "", machine: None, directory: "/d", variables: &variables };
            let error = format.render(&printed).unwrap_err().to_string();
            assert!(error.starts_with("NO_PROXY is "), "{format:?}: {error}");
        }
    }
}

#[test]
fn a_directory_that_cannot_be_mounted_is_refused() {
    let variables = of(["/b", "p", "n", "1"]);
    for (directory, right) in
        [("/etc/larder", true), ("/a:b", false), ("/a,b", false), ("/a\"b", false)]
    {
        for format in [Format::DockerArgs, Format::DockerRunArgs, Format::Gitlab] {
            let printed = Printed { proxy: "", machine: None, directory, variables: &variables };
            assert_eq!(format.render(&printed).is_ok(), right, "{format:?} {directory}");
        }
    }
}

#[test]
fn a_build_is_given_only_what_leaves_no_trace() {
    let text = rendered(Format::DockerArgs, &of(["/b.pem", "http://larder:1", "localhost", "x"]));
    assert_eq!(
        text.unwrap(),
        "--add-host larder.internal:host-gateway --secret id=larder,src=/b.pem \
         --build-arg HTTPS_PROXY=http://larder:1 --build-arg NO_PROXY=localhost\n"
    );
}
