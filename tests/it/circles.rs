//! No two files of a module need each other, directly or by way of others; and ecosystems are named only at home.
//!
//! A `mod.rs` stands above the files beside it and may use all of them; they may use it for what it declares. It is left
//! out, as every root is.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

type Module = Vec<String>;

/// The sources without unit tests and comments, by module.
fn modules() -> BTreeMap<Module, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = BTreeMap::new();
    for file in crate::world::files(&root) {
        let relative = file.strip_prefix(&root).unwrap();
        let is_test = relative.components().any(|part| part.as_os_str() == "tests")
            || relative.file_name().is_some_and(|name| name == "tests.rs");
        if is_test || relative.extension().is_none_or(|end| end != "rs") {
            continue;
        }
        let text = std::fs::read_to_string(&file).unwrap();
        found.insert(module_of(relative), code(&text));
    }
    found
}

fn module_of(relative: &Path) -> Module {
    let without = relative.with_extension("");
    let mut names: Module = without.iter().map(|part| part.to_str().unwrap().to_owned()).collect();
    if names.last().is_some_and(|last| last == "mod") {
        names.pop();
    }
    names
}

/// `text` without its unit tests and comments.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
    let lines = code.lines().map(|line| line.split("//").next().unwrap());
    lines.collect::<Vec<_>>().join("\n")
}

/// The modules among `all` whose items the module `of` names.
fn uses(of: &Module, text: &str, all: &BTreeSet<Module>) -> BTreeSet<Module> {
    let mut found = BTreeSet::new();
    for (at, _) in text.match_indices("super::").chain(text.match_indices("crate::")) {
        let inside = text[..at]
            .chars()
            .next_back()
            .is_some_and(|c| c.is_alphanumeric() || "_:$".contains(c));
        if inside {
            continue;
        }
        let (mut base, mut rest) = (Module::new(), &text[at..]);
        if let Some(after) = rest.strip_prefix("crate::") {
            rest = after;
        } else {
            base.clone_from(of);
            while let Some(after) = rest.strip_prefix("super::") {
                base.pop();
                rest = after;
            }
        }
        paths(&base, rest, &mut |path| found.extend(longest(path, all)));
    }
    for child in all.iter().filter(|module| module.len() == of.len() + 1 && module.starts_with(of))
    {
        let name = format!("{}::", child.last().unwrap());
        let named = text.match_indices(&name).any(|(at, _)| {
            text[..at]
                .chars()
                .next_back()
                .is_none_or(|c| !c.is_alphanumeric() && c != '_' && c != ':')
        });
        if named {
            found.insert(child.clone());
        }
    }
    found.remove(of);
    found
}

/// Each path that `rest` begins with below `base`: one, or one for each member of a group.
fn paths(base: &[String], rest: &str, take: &mut dyn FnMut(&[String])) {
    let (mut path, mut rest) = (base.to_vec(), rest);
    loop {
        if let Some(group) = rest.strip_prefix('{') {
            let (mut depth, mut start) = (0, 0);
            for (at, c) in group.char_indices() {
                let ends = depth == 0 && matches!(c, ',' | '}');
                if ends {
                    paths(&path, group[start..at].trim(), take);
                    start = at + 1;
                }
                match c {
                    '}' if depth == 0 => return,
                    '{' => depth += 1,
                    '}' => depth -= 1,
                    _ => {}
                }
            }
            return;
        }
        let name: String = rest.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
        rest = &rest[name.len()..];
        if !name.is_empty() {
            path.push(name);
        }
        match rest.strip_prefix("::") {
            Some(after) => rest = after,
            None => return take(&path),
        }
    }
}

/// The module in which the item at `path` stands.
fn longest(path: &[String], all: &BTreeSet<Module>) -> Option<Module> {
    (1..=path.len()).rev().map(|length| path[..length].to_vec()).find(|part| all.contains(part))
}

/// The circles of `uses`: each is a set of modules that all reach each other.
fn circles(uses: &BTreeMap<Module, BTreeSet<Module>>) -> BTreeSet<BTreeSet<Module>> {
    let reach = |from: &Module| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(module) = next.pop() {
            for used in uses.get(&module).into_iter().flatten() {
                if seen.insert(used.clone()) {
                    next.push(used.clone());
                }
            }
        }
        seen
    };
    let reached: BTreeMap<&Module, BTreeSet<Module>> =
        uses.keys().map(|module| (module, reach(module))).collect();
    let mut found = BTreeSet::new();
    for (module, to) in &reached {
        if to.contains(*module) {
            let circle = to.iter().filter(|other| reached[other].contains(*module));
            found.insert(circle.cloned().collect());
        }
    }
    found
}

fn circles_among(texts: &BTreeMap<Module, String>) -> BTreeSet<BTreeSet<Module>> {
    let all: BTreeSet<Module> = texts.keys().cloned().collect();
    let is_root = |module: &Module| {
        module.len() < 2 && ["lib", "main"].contains(&module[0].as_str())
            || all.iter().any(|other| other.len() > module.len() && other.starts_with(module))
    };
    let graph: BTreeMap<Module, BTreeSet<Module>> = texts
        .iter()
        .filter(|(module, _)| !is_root(module))
        .map(|(module, text)| {
            let mut used = uses(module, text, &all);
            used.retain(|other| !is_root(other));
            (module.clone(), used)
        })
        .collect();
    circles(&graph)
}

#[test]
fn no_files_need_each_other() {
    let found = circles_among(&modules());
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn a_circle_would_be_seen() {
    let seen = |files: &[(&str, &str)]| {
        let texts = files.iter().map(|(path, text)| (module_of(Path::new(path)), code(text)));
        !circles_among(&texts.collect()).is_empty()
    };
    assert!(seen(&[("a/b.rs", "use super::c::C;"), ("a/c.rs", "use super::b::B;")]));
    assert!(seen(&[("a/b.rs", "use super::{d, c::{C, D}};"), ("a/c.rs", "use crate::a::b;")]));
    assert!(seen(&[
        ("a/b.rs", "use super::c::C;"),
        ("a/c.rs", "fn f() { super::d::f() }"),
        ("a/d.rs", "use super::b::B;"),
    ]));
    assert!(!seen(&[("a/b.rs", "use super::c::C;"), ("a/c.rs", "// use super::b::B;")]));
    assert!(!seen(&[("a/mod.rs", "mod b; use b::B;"), ("a/b.rs", "use super::A;")]));
    assert!(!seen(&[
        ("a/b.rs", "use super::c::C;"),
        ("a/c.rs", "#[cfg(test)]\nmod tests {\n    use super::super::b::B;\n}"),
    ]));
}

/// Places outside `src/ecosystem` that name an ecosystem, and why each must.
const NAMED: &[(&str, &str)] = &[
    ("cli/clients", "the set-up of clients: each program has its own variables and files"),
    ("cli/doctor", "each program is asked for its own settings"),
    ("keyring/registry.rs", "kinds of keys are named after the repositories that they sign"),
    ("keyring/rsa.rs", "likewise"),
];

/// Whether `code` names an ecosystem: as a string that is its name, or as its module or type.
fn names_an_ecosystem(code: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    larder::ecosystem::ALL.iter().map(|ecosystem| ecosystem.name()).any(|name| {
        let kind = format!("{}{}", name[..1].to_uppercase(), &name[1..]);
        let as_type = code.match_indices(&kind).any(|(at, _)| {
            let (before, after) = (&code[..at], &code[at + kind.len()..]);
            !before.ends_with(is_word)
                && !after.starts_with(is_word)
                && (before.ends_with("::") || after.starts_with("::"))
        });
        as_type
            || code.contains(&format!("\"{name}\""))
            || code.contains(&format!("ecosystem::{name}"))
    })
}

#[test]
fn an_ecosystem_is_named_only_at_home() {
    let listed = |module: &Module| {
        let path = module.join("/");
        NAMED.iter().position(|(place, _)| {
            let place = place.trim_end_matches(".rs");
            path == place
                || path.starts_with(&format!("{place}/"))
                || place == format!("{path}/mod")
        })
    };
    let (mut strange, mut used) = (Vec::new(), BTreeSet::new());
    for (module, code) in modules() {
        if module[0] == "ecosystem" || !names_an_ecosystem(&code) {
            continue;
        }
        match listed(&module) {
            Some(place) => {
                used.insert(place);
            }
            None => strange.push(module.join("/")),
        }
    }
    assert!(strange.is_empty(), "{strange:#?}");
    let unused: Vec<_> =
        NAMED.iter().enumerate().filter(|(place, _)| !used.contains(place)).collect();
    assert!(unused.is_empty(), "no ecosystem is named there any more: {unused:#?}");
    assert!(names_an_ecosystem("match name { \"npm\" => 1 }"));
    assert!(names_an_ecosystem("Kind::Apk => 1"));
    assert!(!names_an_ecosystem("match name { \"npmx\" => Kind::Apkx }"));
}
