//! Reads a Containerfile, as far as larder needs it: the images that its stages begin with, and which clients its steps name.

use std::collections::{BTreeMap, BTreeSet};

use crate::cli::clients::SYSTEMS_ROOTS;

/// What a Containerfile begins its stages with.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Recipe {
    /// The images, with build arguments put in, each with the names that the file has for it.
    pub(super) bases: BTreeMap<String, BTreeSet<String>>,
    /// Every word of it that could be the name of a variable.
    names: BTreeSet<String>,
}

impl Recipe {
    /// Reads `text`, built with these arguments. `None` if it cannot be told what its stages begin with, or if one of its
    /// steps runs a client that would refuse larder's certificate.
    pub(super) fn of(text: &str, arguments: &BTreeMap<&str, &str>) -> Option<Self> {
        let words = |text: &str| -> BTreeSet<String> {
            let word = |c: char| !(c.is_ascii_alphanumeric() || c == '_');
            text.split(word).filter(|word| !word.is_empty()).map(str::to_owned).collect()
        };
        let mut recipe = Self { bases: BTreeMap::new(), names: words(text) };
        if SYSTEMS_ROOTS.iter().any(|client| recipe.names.contains(*client)) {
            return None;
        }
        let mut defaults = BTreeMap::new();
        let mut stages = BTreeSet::new();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let instruction = words.next().unwrap_or_default().to_ascii_uppercase();
            if instruction == "ARG" && stages.is_empty() && recipe.bases.is_empty() {
                for (name, value) in words.filter_map(|word| word.split_once('=')) {
                    defaults.insert(name, value.trim_matches(['"', '\'']));
                }
            } else if instruction == "FROM" {
                let written = words.next()?;
                let image = filled(written, arguments, &defaults)?;
                // An option, such as another platform, or a line that goes on.
                if image.starts_with('-') || image.ends_with(['\\', '`']) || image.is_empty() {
                    return None;
                }
                if image != "scratch" && !stages.contains(&image.to_ascii_lowercase()) {
                    recipe.bases.entry(image).or_default().insert(written.to_owned());
                }
                let named = words.next().is_some_and(|word| word.eq_ignore_ascii_case("as"));
                stages.insert(words.next().filter(|_| named).unwrap_or(" ").to_ascii_lowercase());
            }
        }
        (!recipe.bases.is_empty()).then_some(recipe)
    }

    /// Whether the file has this name anywhere, perhaps to set it.
    pub(super) fn mentions(&self, name: &str) -> bool {
        self.names.contains(name)
    }
}

/// `word` with the build arguments that it names. `None` if one has no value, or stands in a form that only the builder can
/// read.
fn filled(
    word: &str,
    arguments: &BTreeMap<&str, &str>,
    defaults: &BTreeMap<&str, &str>,
) -> Option<String> {
    let mut parts = word.split('$');
    let mut filled = parts.next()?.to_owned();
    for part in parts {
        let (name, rest) = if let Some(part) = part.strip_prefix('{') {
            part.split_once('}')?
        } else {
            let end = part.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
            part.split_at_checked(end.unwrap_or(part.len()))?
        };
        filled.push_str(arguments.get(name).or_else(|| defaults.get(name))?);
        filled.push_str(rest);
    }
    Some(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bases(text: &str, arguments: &[(&str, &str)]) -> Option<Vec<String>> {
        let recipe = Recipe::of(text, &arguments.iter().copied().collect())?;
        Some(recipe.bases.into_keys().collect())
    }

    #[test]
    fn the_images_of_all_stages_are_found_once_each() {
        let text = "# syntax=x\nARG TAG=12\nARG KIND\nFROM debian:$TAG AS build\nRUN make\nfrom build as more\n\
                    FROM ${KIND}:${TAG}-slim\nFROM scratch\nFROM debian:12\nCOPY --from=build / /\n";
        assert_eq!(
            bases(text, &[("KIND", "node"), ("TAG", "13")]).unwrap(),
            ["debian:12", "debian:13", "node:13-slim"]
        );
        assert_eq!(bases(text, &[]), None, "KIND has no value");
        let given = [("KIND", "node"), ("TAG", "12")].into_iter().collect();
        let names = &Recipe::of(text, &given).unwrap().bases["debian:12"];
        assert_eq!(names.iter().collect::<Vec<_>>(), ["debian:$TAG", "debian:12"]);
    }

    #[test]
    fn what_only_the_builder_can_read_is_left_to_it() {
        for text in [
            "FROM --platform=linux/arm64 debian:12",
            "FROM ${BASE:-debian:12}",
            "FROM \\\n debian:12",
            "FROM scratch",
            "RUN make",
            "",
        ] {
            assert_eq!(bases(text, &[]), None, "{text}");
        }
    }

    #[test]
    fn a_client_that_would_refuse_larders_certificate_keeps_https_around_it() {
        assert!(bases("FROM debian:12\nRUN apt-get update", &[]).is_some());
        for step in
            ["dnf install -y git", "apk add git", "x && zypper in git", "/usr/bin/pacman -S git"]
        {
            assert_eq!(bases(&format!("FROM debian:12\nRUN {step}"), &[]), None, "{step}");
        }
    }

    #[test]
    fn names_that_the_file_has_are_known() {
        let recipe = Recipe::of("FROM x\nENV PIP_CERT=/mine\n", &BTreeMap::new()).unwrap();
        assert!(recipe.mentions("PIP_CERT") && !recipe.mentions("SSL_CERT_FILE"));
    }
}
