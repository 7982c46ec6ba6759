//! Retractions of claims that the disk does not take: they hold in memory, the caller is told, and maintenance makes up for it.

#![expect(clippy::disallowed_methods, reason = "what somebody does to the files from outside")]

use std::path::Path;

use super::claims::{FILE, promises, publish, publish_as, root};
use super::*;
use crate::store::durable::{failing, while_writing};

/// Nothing but the marks says that claims are retracted. Until they can be written, it holds in memory, and the caller is told.
#[test]
fn a_retraction_that_cannot_be_written_is_told_and_holds() {
    let world = World::new();
    let store = world.open();
    let index = "https://example.org/team/i/";
    publish(&store, index, "https://example.org/team/", FILE, 1);
    store.maintain();
    let marks = world.cache("marks");
    std::fs::remove_file(&marks).unwrap();
    std::fs::create_dir(&marks).unwrap();
    let error = store.retract_claims(&target(index), world.clock.now()).unwrap_err();
    assert!(error.to_string().contains("marks"), "{error}");
    assert!(!promises(&store)[0].is_current());
    std::fs::remove_dir(&marks).unwrap();
    assert!(promises(&world.copied().open())[0].is_current(), "the control");
    store.maintain();
    assert!(!promises(&world.copied().open())[0].is_current());
    // With nothing to retract, nothing is missing on disk.
    std::fs::remove_file(&marks).unwrap();
    std::fs::create_dir(&marks).unwrap();
    store.retract_claims(&target("https://example.org/team/none/"), world.clock.now()).unwrap();
}

/// While claims cannot be read, the marks are not written, because only the file on disk has those of the unread claims.
#[test]
fn a_retraction_while_claims_are_unread_is_told_and_holds() {
    let world = World::new();
    let (one, two) = ("https://example.org/team/i/", "https://example.org/team/j/");
    let store = world.open();
    for index in [one, two] {
        publish(&store, index, "https://example.org/team/", FILE, 1);
    }
    let unread = store.current_claims(&target(two)).unwrap().document.to_hex();
    drop(store);
    let fails = move |path: &Path| path.to_string_lossy().ends_with(&unread);
    failing(Some(Box::new(fails)));
    let store = world.open();
    let done = store.retract_claims(&target(one), world.clock.now());
    failing(None);
    let why = done.unwrap_err().to_string();
    assert!(why.contains("claims of other indexes"), "{why}");
    assert!(store.current_claims(&target(one)).is_none());
    promises(&store);
    assert!(store.current_claims(&target(two)).is_some(), "it could be read");
    assert!(store.current_claims(&target(one)).is_none(), "it stays retracted");
    store.maintain();
    assert!(world.copied().open().current_claims(&target(one)).is_none());
}

/// A reload puts what is on disk in the place of what is in memory: a retraction in between would be lost.
#[test]
fn no_reload_comes_between_a_retraction_and_its_marks() {
    let world = World::new();
    let store = world.open();
    let index = "https://example.org/team/i/";
    let wrote = std::rc::Rc::new(std::cell::Cell::new(None));
    let listen = |retract: &dyn Fn()| {
        let (asked, told) = (Arc::downgrade(&store), std::rc::Rc::clone(&wrote));
        while_writing(Some(Box::new(move |path| {
            if path.ends_with("marks") {
                told.set(Some(asked.upgrade().unwrap().era.try_write().is_err()));
            }
        })));
        retract();
        while_writing(None);
        wrote.take()
    };
    publish(&store, index, "https://example.org/team/", FILE, 1);
    assert_eq!(listen(&|| store.flush()), Some(false), "the control");
    let now = world.clock.now();
    assert_eq!(listen(&|| store.retract_claims(&target(index), now).unwrap()), Some(true));
    publish(&store, index, "https://example.org/team/", FILE, 2);
    let seen = || store.seen_by(Partition::Public).retract_claims(&target(index), now);
    assert_eq!(listen(&|| seen().unwrap()), Some(true));
}

/// The file of deleted claims stays on disk if it cannot be removed. Then they count no more, whatever is read again.
#[test]
fn claims_that_cannot_be_deleted_are_told_and_do_not_come_back() {
    let world = World::new();
    let team = root("https://example.org/team/");
    let (signed, other) = ("https://example.org/team/i/", "https://example.org/team/other/");
    let store = world.open();
    publish_as(&store, signed, 1, Rank::Signed);
    publish_as(&store, other, 3, Rank::Indexed);
    let unread = store.current_claims(&target(other)).unwrap().document.to_hex();
    let number = store.current_claims(&target(signed)).unwrap().document.to_hex();
    let named = |name: &str| {
        let ends = |path: &PathBuf| path.to_string_lossy().ends_with(name);
        world.files("claims").into_iter().find(ends).unwrap()
    };
    let file = named(&number);
    drop(store);
    let aside = world.cache("aside");
    let fails = move |path: &Path| path.to_string_lossy().ends_with(&unread);
    failing(Some(Box::new(fails)));
    let store = world.open();
    // As on a disk that does not let it go: a directory is no file.
    std::fs::rename(&file, &aside).unwrap();
    std::fs::create_dir(&file).unwrap();
    store.withdraw_claims(&|set| set.is_signed && set.generation.root == team).unwrap_err();
    std::fs::remove_dir(&file).unwrap();
    std::fs::rename(&aside, &file).unwrap();
    failing(None);
    assert!(store.current_claims(&target(signed)).is_none());
    promises(&store);
    assert!(store.current_claims(&target(other)).is_some(), "the control: it is read again");
    assert!(store.current_claims(&target(signed)).is_none());
    assert!(file.exists(), "the control");
    store.maintain();
    assert!(!file.exists());
}
