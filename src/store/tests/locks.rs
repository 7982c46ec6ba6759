//! Locks that look-ups on the async threads need are not held while a file is being written.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use super::*;

/// Returns which files are written while `act` runs, and for each whether `is_free` was true during the write.
fn written_during(act: impl FnOnce(), is_free: impl Fn() -> bool + 'static) -> Vec<(String, bool)> {
    let seen = Rc::new(RefCell::new(Vec::new()));
    let notes = Rc::clone(&seen);
    let note = move |path: &Path| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        notes.borrow_mut().push((name, is_free()));
    };
    durable::while_writing(Some(Box::new(note)));
    act();
    durable::while_writing(None);
    seen.take()
}

#[test]
fn bodies_can_be_asked_for_while_it_is_written_how_they_were_used() {
    let world = World::new();
    let store = world.open();
    let kept = keep(&store, URL, b"kept");
    store.note_rejection(&target(URL), "no", store.clock.now());
    let asked = Arc::downgrade(&store);
    let is_free = move || asked.upgrade().unwrap().bodies.try_lock().is_ok();
    let written = written_during(|| store.flush(), is_free);
    assert!(written.contains(&("access".into(), true)), "{written:?}");
    // The control: a held lock is noticed.
    let held = store.bodies.lock().unwrap();
    let asked = Arc::downgrade(&store);
    let is_free = move || asked.upgrade().unwrap().bodies.try_lock().is_ok();
    let record = || store.records.write(kept.key, kept.blob, b"").unwrap();
    assert!(written_during(record, is_free).iter().all(|(_, free)| !free));
    drop(held);
}
