//! Chooses which body to evict when space is needed.
//!
//! Two queues, after S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023). New bodies
//! enter the small queue; a body that was hit there moves to the main queue when its turn comes. The small queue is
//! evicted from first while it holds more than a tenth of the bytes. So a build that reads ten thousand files once
//! replaces that tenth only, and what other builds hit stays. A body that comes back soon after it left the small queue
//! goes straight to the main queue.
//!
//! Members of package indexes in use are spared for one more round, as long as the spared ones are at most a quarter of
//! the bytes: half a distribution is worth less than all of it.
//!
//! A body that is still arriving may turn out not to be kept. For such a body hit bodies are evicted only down to a
//! number of bytes that the caller names; beyond that, only bodies that were never hit are.
//!
//! Each body is one row of a list. The queues are linked through row numbers, and a table of row numbers finds a row by
//! the body's ID. So a body takes little more memory than its row, of which a store may have half a million.
//!
//! This module only decides; it does not touch files.

use std::collections::{HashSet, VecDeque};
use std::hash::{BuildHasher as _, RandomState};

use hashbrown::HashTable;

use crate::digest::BlobId;

/// Maximum number of hits counted per body. With more, a formerly popular body would stay for too long.
const MAX_FREQUENCY: u8 = 3;

/// The small queue's share of the bytes: 1/`SMALL_SHARE`.
const SMALL_SHARE: u64 = 10;

/// Maximum share of the bytes that may be spared as index members: 1/`MEMBER_SHARE`.
const MEMBER_SHARE: u64 = 4;

/// How many evicted bodies are remembered, each by a hash of 8 bytes.
const MAX_GHOSTS: usize = 1 << 16;

/// All bodies in eviction order, each with the store's data about it.
#[derive(Debug)]
pub(super) struct Bodies<T> {
    rows: Vec<Body<T>>,
    /// Row numbers by the hash of the body's ID.
    numbers: HashTable<u32>,
    hasher: RandomState,
    small: Queue,
    main: Queue,
    /// Bytes of the members that are being spared.
    spared: u64,
    next_turn: u64,
    ghosts: Ghosts,
}

/// Rows in a chain, next to be evicted first.
#[derive(Debug)]
struct Queue {
    first: u32,
    last: u32,
    bytes: u64,
}

#[derive(Debug)]
struct Body<T> {
    id: BlobId,
    held: T,
    size: u64,
    turn: u64,
    /// The rows before and after it in its queue.
    before: u32,
    after: u32,
    in_main: bool,
    member: bool,
    spared: bool,
    frequency: u8,
}

/// No row: the end of a queue.
const NONE: u32 = u32::MAX;

/// Lists of fewer rows are not shrunk.
const SMALL_LIST: usize = 1 << 10;

/// A body's place in the queues, saved across restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct QueuePosition {
    /// Whether it was hit often enough to be in the main queue.
    pub(super) in_main: bool,
    /// Its recent hits.
    pub(super) frequency: u8,
}

impl Default for Queue {
    fn default() -> Self {
        Self { first: NONE, last: NONE, bytes: 0 }
    }
}

impl<T> Default for Bodies<T> {
    fn default() -> Self {
        Self {
            rows: Vec::new(),
            numbers: HashTable::new(),
            hasher: RandomState::new(),
            small: Queue::default(),
            main: Queue::default(),
            spared: 0,
            next_turn: 0,
            ghosts: Ghosts::default(),
        }
    }
}

impl<T> Bodies<T> {
    /// Adds a body of `size` bytes at the end of its queue. `was` is its place before a restart.
    pub(super) fn insert(&mut self, id: BlobId, size: u64, held: T, was: Option<QueuePosition>) {
        self.remove(id);
        let was =
            was.unwrap_or_else(|| QueuePosition { in_main: self.ghosts.take(id), frequency: 0 });
        let Ok(row) = u32::try_from(self.rows.len()) else {
            return;
        };
        self.rows.push(Body {
            id,
            held,
            size,
            turn: 0,
            before: NONE,
            after: NONE,
            in_main: was.in_main,
            member: false,
            spared: false,
            frequency: was.frequency.min(MAX_FREQUENCY),
        });
        let Self { rows, numbers, hasher, .. } = self;
        let hash_of = |row: &u32| at(rows, *row).map_or(0, |body| hasher.hash_one(body.id));
        numbers.insert_unique(hasher.hash_one(id), row, hash_of);
        self.append(row);
    }

    /// The store's data about a body.
    pub(super) fn get(&self, id: BlobId) -> Option<&T> {
        Some(&at(&self.rows, self.number(id)?)?.held)
    }

    /// The store's data about a body, mutable.
    pub(super) fn get_mut(&mut self, id: BlobId) -> Option<&mut T> {
        self.body_mut(id).map(|body| &mut body.held)
    }

    /// Every body.
    pub(super) fn iter(&self) -> impl Iterator<Item = (BlobId, &T)> {
        self.rows.iter().map(|body| (body.id, &body.held))
    }

    /// Every body, with its current place in the queues.
    pub(super) fn placed(&self) -> impl Iterator<Item = (BlobId, &T, QueuePosition)> {
        self.rows.iter().map(|body| {
            let place = QueuePosition { in_main: body.in_main, frequency: body.frequency };
            (body.id, &body.held, place)
        })
    }

    /// Every body, mutable.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.rows.iter_mut().map(|body| &mut body.held)
    }

    /// The number of bodies.
    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The body's current place in the queues.
    pub(super) fn standing(&self, id: BlobId) -> Option<QueuePosition> {
        let body = at(&self.rows, self.number(id)?)?;
        Some(QueuePosition { in_main: body.in_main, frequency: body.frequency })
    }

    /// Marks a body as an index member: it is an index, or an index vouches for it.
    pub(super) fn set_member(&mut self, id: BlobId) {
        if let Some(body) = self.body_mut(id) {
            body.member = true;
        }
    }

    /// Counts a hit.
    pub(super) fn touch(&mut self, id: BlobId) {
        if let Some(body) = self.body_mut(id) {
            body.frequency = (body.frequency + 1).min(MAX_FREQUENCY);
            let no_longer_spared = if std::mem::take(&mut body.spared) { body.size } else { 0 };
            self.spared = self.spared.saturating_sub(no_longer_spared);
        }
    }

    /// The bytes of all bodies, and of those in the main queue (the ones that were hit).
    pub(super) fn bytes(&self) -> (u64, u64) {
        (self.small.bytes + self.main.bytes, self.main.bytes)
    }

    /// The body to evict next, which stays in its place for now. `None` if all are `pinned`. Evicts nothing from the
    /// main queue while that holds at most `spared` bytes.
    pub(super) fn victim(&mut self, spared: u64, pinned: impl Fn(&T) -> bool) -> Option<BlobId> {
        // Each turn takes one hit or the sparing from a body, or passes a pinned one. When the turns are used up, every
        // remaining body is pinned.
        let turns = self.rows.len() * (usize::from(MAX_FREQUENCY) + 4);
        let start = self.next_turn;
        let (mut pinned_small, mut pinned_main) = (0_u64, 0_u64);
        for _ in 0..turns {
            let total = self.small.bytes + self.main.bytes;
            let free_small = self.small.bytes.saturating_sub(pinned_small);
            let free_main = self.main.bytes.saturating_sub(pinned_main);
            let main_stays = self.main.bytes <= spared;
            if main_stays && free_small == 0 {
                return None;
            }
            let from_small = main_stays || free_main == 0 || free_small > total / SMALL_SHARE;
            let row = self.queue(!from_small).first;
            let body = at_mut(&mut self.rows, row)?;
            let (turn, id) = (body.turn, body.id);
            let spare = body.member && !body.spared && body.in_main;
            if pinned(&body.held) {
                // It stays in its queue: one reader at the moment does not make it a frequently used body.
                if turn <= start {
                    *(if from_small { &mut pinned_small } else { &mut pinned_main }) += body.size;
                }
                self.requeue(row, false);
            } else if body.frequency > 0 {
                body.frequency = if from_small { 0 } else { body.frequency - 1 };
                self.requeue(row, true);
            } else if spare && self.spared + body.size <= total / MEMBER_SHARE {
                body.spared = true;
                self.spared += body.size;
                self.requeue(row, true);
            } else {
                return Some(id);
            }
        }
        None
    }

    /// Evicts a body, and remembers it if it was in the small queue.
    pub(super) fn evict(&mut self, id: BlobId) -> Option<T> {
        if self.standing(id).is_some_and(|was| !was.in_main) {
            self.ghosts.put(id);
        }
        self.remove(id)
    }

    /// Removes a body.
    pub(super) fn remove(&mut self, id: BlobId) -> Option<T> {
        let row = self.number(id)?;
        self.unlink(row);
        let hash = self.hasher.hash_one(id);
        self.numbers.find_entry(hash, |number| *number == row).ok()?.remove();
        let body = self.rows.swap_remove(usize::try_from(row).ok()?);
        self.moved(row);
        if body.spared {
            self.spared = self.spared.saturating_sub(body.size);
        }
        let half = self.rows.len() * 2;
        if self.rows.capacity() > SMALL_LIST && half < self.rows.capacity() / 2 {
            let Self { rows, numbers, hasher, .. } = self;
            rows.shrink_to(half);
            let hash_of = |row: &u32| at(rows, *row).map_or(0, |body| hasher.hash_one(body.id));
            numbers.shrink_to(half, hash_of);
        }
        Some(body.held)
    }

    /// Corrects what names the body that was the last row, and is row number `row` now.
    fn moved(&mut self, row: u32) {
        let Some(body) = at(&self.rows, row) else {
            return;
        };
        let (hash, before, after) = (self.hasher.hash_one(body.id), body.before, body.after);
        let in_main = body.in_main;
        let was = u32::try_from(self.rows.len()).unwrap_or(NONE);
        if let Some(number) = self.numbers.find_mut(hash, |number| *number == was) {
            *number = row;
        }
        *self.after(before, in_main) = row;
        *self.before(after, in_main) = row;
    }

    /// Moves a body to the end of its queue, or of the main queue if `to_main`.
    fn requeue(&mut self, row: u32, to_main: bool) {
        self.unlink(row);
        if let Some(body) = at_mut(&mut self.rows, row) {
            body.in_main |= to_main;
        }
        self.append(row);
    }

    /// Puts a row at the end of its queue.
    fn append(&mut self, row: u32) {
        self.next_turn += 1;
        let turn = self.next_turn;
        let Some(body) = at(&self.rows, row) else {
            return;
        };
        let (size, in_main) = (body.size, body.in_main);
        let queue = self.queue(in_main);
        let last = std::mem::replace(&mut queue.last, row);
        queue.bytes += size;
        *self.after(last, in_main) = row;
        if let Some(body) = at_mut(&mut self.rows, row) {
            (body.before, body.after, body.turn) = (last, NONE, turn);
        }
    }

    /// Takes a row out of its queue.
    fn unlink(&mut self, row: u32) {
        let Some(body) = at(&self.rows, row) else {
            return;
        };
        let (size, in_main, before, after) = (body.size, body.in_main, body.before, body.after);
        *self.after(before, in_main) = after;
        *self.before(after, in_main) = before;
        let queue = self.queue(in_main);
        queue.bytes = queue.bytes.saturating_sub(size);
    }

    /// Which row comes after `row` in this queue; which is first if `row` is none.
    fn after(&mut self, row: u32, in_main: bool) -> &mut u32 {
        let queue = if in_main { &mut self.main } else { &mut self.small };
        at_mut(&mut self.rows, row).map_or(&mut queue.first, |body| &mut body.after)
    }

    /// Which row comes before `row` in this queue; which is last if `row` is none.
    fn before(&mut self, row: u32, in_main: bool) -> &mut u32 {
        let queue = if in_main { &mut self.main } else { &mut self.small };
        at_mut(&mut self.rows, row).map_or(&mut queue.last, |body| &mut body.before)
    }

    fn queue(&mut self, main: bool) -> &mut Queue {
        if main { &mut self.main } else { &mut self.small }
    }

    /// The row number of a body.
    fn number(&self, id: BlobId) -> Option<u32> {
        let is_it = |row: &u32| at(&self.rows, *row).is_some_and(|body| body.id == id);
        self.numbers.find(self.hasher.hash_one(id), is_it).copied()
    }

    fn body_mut(&mut self, id: BlobId) -> Option<&mut Body<T>> {
        let row = self.number(id)?;
        at_mut(&mut self.rows, row)
    }
}

/// A row by its number; `None` for [`NONE`].
fn at<T>(rows: &[Body<T>], row: u32) -> Option<&Body<T>> {
    rows.get(usize::try_from(row).ok()?)
}

fn at_mut<T>(rows: &mut [Body<T>], row: u32) -> Option<&mut Body<T>> {
    rows.get_mut(usize::try_from(row).ok()?)
}

/// Bodies that recently left the small queue.
#[derive(Debug, Default)]
struct Ghosts {
    order: VecDeque<u64>,
    known: HashSet<u64>,
    hasher: RandomState,
}

impl Ghosts {
    fn put(&mut self, id: BlobId) {
        let ghost = self.hasher.hash_one(id);
        if self.known.insert(ghost) {
            self.order.push_back(ghost);
        }
        if self.order.len() > MAX_GHOSTS
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }

    /// Whether the body left the small queue recently. It stays remembered until its turn is over, which costs nothing.
    fn take(&self, id: BlobId) -> bool {
        !self.known.is_empty() && self.known.contains(&self.hasher.hash_one(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(number: u32) -> BlobId {
        let mut bytes = [0; 32];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        BlobId::new(bytes)
    }

    /// The rows of a queue from its first to its last. Checks that they are the same from the last to the first.
    fn in_turn(bodies: &Bodies<()>, in_main: bool) -> Vec<u32> {
        let queue = if in_main { &bodies.main } else { &bodies.small };
        let walk = |from: u32, to: fn(&Body<()>) -> u32| {
            let next = |row: &u32| Some(to(at(&bodies.rows, *row)?)).filter(|row| *row != NONE);
            let rows = std::iter::successors(Some(from).filter(|row| *row != NONE), next);
            rows.take(bodies.len() + 1).collect::<Vec<u32>>()
        };
        let (rows, mut back) =
            (walk(queue.first, |body| body.after), walk(queue.last, |body| body.before));
        back.reverse();
        assert_eq!(rows, back);
        assert!(rows.iter().all(|row| at(&bodies.rows, *row).unwrap().in_main == in_main));
        rows
    }

    /// A store may have half a million of them.
    #[test]
    fn a_body_takes_little_memory() {
        assert!(size_of::<Body<super::super::BodyRecord>>() <= 120);
        let mut bodies = Bodies::default();
        for number in 0..10_000 {
            bodies.insert(id(number), 1, (), None);
        }
        for number in 0..9_900 {
            bodies.remove(id(number));
        }
        assert!(bodies.rows.capacity() <= SMALL_LIST);
        assert!((9_900..10_000).all(|number| bodies.get(id(number)).is_some()));
    }

    /// Makes room for one more body of `size` under `cap`, and adds it.
    fn add(bodies: &mut Bodies<()>, number: u32, size: u64, cap: u64) {
        while bodies.small.bytes + bodies.main.bytes + size > cap {
            let victim = bodies.victim(0, |()| false).unwrap();
            bodies.evict(victim);
        }
        bodies.insert(id(number), size, (), None);
    }

    #[test]
    fn a_scan_leaves_what_was_hit() {
        let mut bodies = Bodies::default();
        for number in 0..80 {
            add(&mut bodies, number, 1, 100);
            bodies.touch(id(number));
        }
        for number in 1000..3000 {
            add(&mut bodies, number, 1, 100);
        }
        let kept = (0..80).filter(|number| bodies.get(id(*number)).is_some()).count();
        assert_eq!(kept, 80);
        // The control: without hits the scan evicts all of them.
        let mut bodies = Bodies::default();
        for number in (0..80).chain(1000..3000) {
            add(&mut bodies, number, 1, 100);
        }
        assert!((0..80).all(|number| bodies.get(id(number)).is_none()));
    }

    #[test]
    fn what_was_hit_stays_where_it_takes_no_more_than_is_spared() {
        let mut bodies = Bodies::default();
        for number in 0..10 {
            bodies.insert(id(number), 1, (), None);
            if number < 4 {
                bodies.touch(id(number));
            }
        }
        let gone = |bodies: &mut Bodies<()>, spared| {
            let victims = std::iter::from_fn(|| {
                let victim = bodies.victim(spared, |()| false)?;
                bodies.evict(victim)
            });
            victims.count()
        };
        assert_eq!(gone(&mut bodies, 4), 6);
        assert!((0..4).all(|number| bodies.get(id(number)).is_some()));
        assert_eq!(gone(&mut bodies, 3), 1, "the one too many goes");
        assert_eq!(gone(&mut bodies, 0), 3, "the control: nothing is spared");
    }

    #[test]
    fn what_nobody_hit_and_is_pinned_ends_the_search() {
        let mut bodies = Bodies::default();
        bodies.insert(id(1), 1, true, None);
        bodies.insert(id(2), 1, false, Some(QueuePosition { in_main: true, frequency: 0 }));
        assert_eq!(bodies.victim(1, |pinned| *pinned), None);
        assert_eq!(bodies.victim(0, |pinned| *pinned), Some(id(2)), "the control");
    }

    #[test]
    fn old_favourites_go_when_new_ones_come() {
        let mut bodies = Bodies::default();
        for number in 0..90 {
            add(&mut bodies, number, 1, 100);
            bodies.touch(id(number));
        }
        for number in 1000..2000 {
            add(&mut bodies, number, 1, 100);
            bodies.touch(id(number));
        }
        assert!((0..90).all(|number| bodies.get(id(number)).is_none()));
    }

    #[test]
    fn what_comes_back_soon_stays() {
        let mut bodies = Bodies::default();
        add(&mut bodies, 1, 1, 10);
        for number in 100..111 {
            add(&mut bodies, number, 1, 10);
        }
        assert_eq!(bodies.get(id(1)), None);
        add(&mut bodies, 1, 1, 10);
        assert!(bodies.standing(id(1)).unwrap().in_main);
    }

    #[test]
    fn pinned_bodies_stay_and_nothing_else_is_a_no() {
        let mut bodies = Bodies::default();
        for number in 0..10 {
            bodies.insert(id(number), 1, number, None);
        }
        for _ in 0..9 {
            let victim = bodies.victim(0, |number| *number == 4).unwrap();
            bodies.evict(victim);
        }
        assert_eq!(bodies.victim(0, |number| *number == 4), None);
        assert_eq!(bodies.get(id(4)), Some(&4));
    }

    #[test]
    fn members_in_use_are_spared_a_round_up_to_a_quarter() {
        let mut bodies = Bodies::default();
        for number in 0..100 {
            add(&mut bodies, number, 1, 100);
            bodies.touch(id(number));
            if number < 20 {
                bodies.set_member(id(number));
            }
        }
        for number in 1000..1060 {
            add(&mut bodies, number, 1, 100);
            bodies.touch(id(number));
        }
        let of =
            |range: std::ops::Range<u32>| range.filter(|n| bodies.get(id(*n)).is_some()).count();
        assert_eq!(of(0..20), 20);
        assert!(of(20..100) < 40, "the others made the room");
        // They are not spared for ever.
        for number in 2000..2400 {
            add(&mut bodies, number, 1, 100);
            bodies.touch(id(number));
        }
        assert!((0..20).all(|number| bodies.get(id(number)).is_none()));
    }

    proptest! {
        #[test]
        fn the_accounts_always_agree(steps in prop::collection::vec((0_u8..5, 0_u32..20, 1_u64..9), 0..300)) {
            let mut bodies = Bodies::default();
            for (what, number, size) in steps {
                match what {
                    0 | 1 => bodies.insert(id(number), size, (), None),
                    2 => bodies.touch(id(number)),
                    3 => drop(bodies.remove(id(number))),
                    _ => {
                        bodies.set_member(id(number));
                        if let Some(victim) = bodies.victim(0, |()| false) {
                            bodies.evict(victim);
                        } else {
                            prop_assert_eq!(bodies.len(), 0);
                        }
                    }
                }
                let total: u64 = bodies.rows.iter().map(|body| body.size).sum();
                let spared: u64 = bodies.rows.iter().filter(|b| b.spared).map(|b| b.size).sum();
                prop_assert_eq!(bodies.small.bytes + bodies.main.bytes, total);
                prop_assert_eq!(bodies.spared, spared);
                let (small, main) = (in_turn(&bodies, false), in_turn(&bodies, true));
                prop_assert_eq!(small.len() + main.len(), bodies.len());
                prop_assert_eq!(bodies.numbers.len(), bodies.len());
                for queue in [small, main] {
                    prop_assert!(queue.is_sorted_by_key(|row| at(&bodies.rows, *row).unwrap().turn));
                }
                for (row, body) in bodies.rows.iter().enumerate() {
                    prop_assert_eq!(bodies.number(body.id), u32::try_from(row).ok());
                }
            }
        }
    }
}
