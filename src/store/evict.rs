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
//! This module only decides; it does not touch files.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::hash::{BuildHasher as _, RandomState};

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
    known: HashMap<BlobId, Body<T>>,
    small: Queue,
    main: Queue,
    /// Bytes of the members that are being spared.
    spared: u64,
    next_turn: u64,
    ghosts: Ghosts,
}

#[derive(Debug, Default)]
struct Queue {
    turns: BTreeMap<u64, BlobId>,
    bytes: u64,
}

#[derive(Debug)]
struct Body<T> {
    held: T,
    size: u64,
    turn: u64,
    in_main: bool,
    member: bool,
    spared: bool,
    frequency: u8,
}

/// A body's place in the queues, saved across restarts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct QueuePosition {
    /// Whether it was hit often enough to be in the main queue.
    pub(super) in_main: bool,
    /// Its recent hits.
    pub(super) frequency: u8,
}

impl<T> Default for Bodies<T> {
    fn default() -> Self {
        Self {
            known: HashMap::new(),
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
        let turn = self.turn();
        let body = Body {
            held,
            size,
            turn,
            in_main: was.in_main,
            member: false,
            spared: false,
            frequency: was.frequency.min(MAX_FREQUENCY),
        };
        self.queue(was.in_main).push(turn, id, size);
        self.known.insert(id, body);
    }

    /// The store's data about a body.
    pub(super) fn get(&self, id: BlobId) -> Option<&T> {
        self.known.get(&id).map(|body| &body.held)
    }

    /// The store's data about a body, mutable.
    pub(super) fn get_mut(&mut self, id: BlobId) -> Option<&mut T> {
        self.known.get_mut(&id).map(|body| &mut body.held)
    }

    /// Every body.
    pub(super) fn iter(&self) -> impl Iterator<Item = (BlobId, &T)> {
        self.known.iter().map(|(id, body)| (*id, &body.held))
    }

    /// The number of bodies.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// The body's current place in the queues.
    pub(super) fn standing(&self, id: BlobId) -> Option<QueuePosition> {
        self.known
            .get(&id)
            .map(|body| QueuePosition { in_main: body.in_main, frequency: body.frequency })
    }

    /// Marks a body as an index member: it is an index, or an index vouches for it.
    pub(super) fn set_member(&mut self, id: BlobId) {
        if let Some(body) = self.known.get_mut(&id) {
            body.member = true;
        }
    }

    /// Counts a hit.
    pub(super) fn touch(&mut self, id: BlobId) {
        if let Some(body) = self.known.get_mut(&id) {
            body.frequency = (body.frequency + 1).min(MAX_FREQUENCY);
            if std::mem::take(&mut body.spared) {
                self.spared = self.spared.saturating_sub(body.size);
            }
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
        let turns = self.known.len() * (usize::from(MAX_FREQUENCY) + 4);
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
            let (turn, id) = self.queue(!from_small).turns.first_key_value()?;
            let (turn, id) = (*turn, *id);
            let body = self.known.get_mut(&id)?;
            let spare = body.member && !body.spared && body.in_main;
            if pinned(&body.held) {
                // It stays in its queue: one reader at the moment does not make it a frequently used body.
                if turn <= start {
                    *(if from_small { &mut pinned_small } else { &mut pinned_main }) += body.size;
                }
                self.requeue(id, false);
            } else if body.frequency > 0 {
                body.frequency = if from_small { 0 } else { body.frequency - 1 };
                self.requeue(id, true);
            } else if spare && self.spared + body.size <= total / MEMBER_SHARE {
                body.spared = true;
                self.spared += body.size;
                self.requeue(id, true);
            } else {
                return Some(id);
            }
        }
        None
    }

    /// Evicts a body, and remembers it if it was in the small queue.
    pub(super) fn evict(&mut self, id: BlobId) -> Option<T> {
        if self.known.get(&id).is_some_and(|body| !body.in_main) {
            self.ghosts.put(id);
        }
        self.remove(id)
    }

    /// Removes a body.
    pub(super) fn remove(&mut self, id: BlobId) -> Option<T> {
        let body = self.known.remove(&id)?;
        self.queue(body.in_main).pull(body.turn, body.size);
        if body.spared {
            self.spared = self.spared.saturating_sub(body.size);
        }
        Some(body.held)
    }

    /// Moves a body to the end of its queue, or of the main queue if `to_main`.
    fn requeue(&mut self, id: BlobId, to_main: bool) {
        let turn = self.turn();
        let Some(body) = self.known.get_mut(&id) else {
            return;
        };
        let (size, was_main, old) = (body.size, body.in_main, body.turn);
        body.turn = turn;
        body.in_main = was_main || to_main;
        let in_main = body.in_main;
        self.queue(was_main).pull(old, size);
        self.queue(in_main).push(turn, id, size);
    }

    fn queue(&mut self, main: bool) -> &mut Queue {
        if main { &mut self.main } else { &mut self.small }
    }

    fn turn(&mut self) -> u64 {
        self.next_turn += 1;
        self.next_turn
    }
}

impl Queue {
    fn push(&mut self, turn: u64, id: BlobId, size: u64) {
        self.turns.insert(turn, id);
        self.bytes += size;
    }

    fn pull(&mut self, turn: u64, size: u64) {
        if self.turns.remove(&turn).is_some() {
            self.bytes = self.bytes.saturating_sub(size);
        }
    }
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
                let total: u64 = bodies.known.values().map(|body| body.size).sum();
                let spared: u64 = bodies.known.values().filter(|b| b.spared).map(|b| b.size).sum();
                prop_assert_eq!(bodies.small.bytes + bodies.main.bytes, total);
                prop_assert_eq!(bodies.small.turns.len() + bodies.main.turns.len(), bodies.len());
                prop_assert_eq!(bodies.spared, spared);
            }
        }
    }
}
