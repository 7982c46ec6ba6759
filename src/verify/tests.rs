use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::claim::{IndexVersion, Relation};
use crate::digest::{Algorithm, BlobId, Hashing, Wanted};
use crate::target::{Root, Target};

const ASKED: Time = Time::from_millis(1_000);

fn digest(byte: u8) -> Digest {
    Digest::new(Algorithm::Sha256, &[byte; 32]).unwrap()
}

/// A content reader that always fails.
struct Broken;

impl crate::digest::Content for Broken {
    fn update(&mut self, _: &[u8]) {}

    fn finish(self: Box<Self>) -> Result<Vec<Digest>, String> {
        Err("torn".to_owned())
    }
}

struct Says {
    number: u64,
    relation: Relation,
    digest: Digest,
    current: bool,
    confirmed: i64,
}

impl Says {
    fn new(number: u64, relation: Relation, byte: u8) -> Self {
        Self { number, relation, digest: digest(byte), current: true, confirmed: 2_000 }
    }

    fn promise(self) -> Promise {
        let index = Target::from_url("https://example.org/simple/a/").unwrap();
        Promise {
            by: Arc::new(IndexVersion {
                number: self.number,
                shown: index.to_string(),
                document: BlobId::new([0; 32]),
                confirmed: Time::from_millis(self.confirmed),
                superseded: (!self.current).then_some(ASKED),
                rank: Rank::Indexed,
                root: Root::directory_of(&index),
                expired_key: false,
                signed_by: None,
            }),
            index: Arc::new(index),
            relation: self.relation,
            digests: vec![self.digest],
            size: None,
            signed: false,
        }
    }
}

fn finding(named: Option<(u8, bool)>, says: Vec<Says>, came: u8) -> Finding {
    let expected = Expectation {
        named: named.map(|(byte, binds)| (digest(byte), binds)),
        promises: says.into_iter().map(Says::promise).collect(),
        otherwise: Proof::of(Rank::Pinned),
    };
    expected.find(&[digest(came)], 3, ASKED)
}

fn rank(finding: &Finding) -> Option<Rank> {
    match finding {
        Finding::Proven { proof, .. } => Some(proof.rank),
        Finding::Excused(_) | Finding::Doubted(_) | Finding::Refused(_) => None,
    }
}

#[test]
fn nothing_promised_is_not_a_mismatch() {
    assert_eq!(rank(&finding(None, vec![], 1)), Some(Rank::Pinned));
}

#[test]
fn a_digest_in_the_url_refuses_only_where_it_binds() {
    assert_eq!(rank(&finding(Some((1, true)), vec![], 1)), Some(Rank::SelfCertified));
    assert!(matches!(finding(Some((1, true)), vec![], 2), Finding::Refused(_)));
    assert_eq!(rank(&finding(Some((1, false)), vec![], 2)), Some(Rank::Pinned));
}

#[test]
fn an_index_refuses_inside_its_root_and_nowhere_else() {
    assert!(matches!(
        finding(None, vec![Says::new(1, Relation::InRoot, 1)], 2),
        Finding::Refused(_)
    ));
    let elsewhere = finding(None, vec![Says::new(1, Relation::Elsewhere, 1)], 2);
    assert_eq!(rank(&elsewhere), Some(Rank::Pinned));
    let Finding::Proven { disagreement: Some(alarm), .. } = elsewhere else { panic!("no alarm") };
    assert_eq!(alarm.elsewhere.unwrap().path(), "/simple/a/");
    assert!(alarm.promised.starts_with("https://example.org/simple/a/ promises sha256:01"));
    assert_eq!(
        rank(&finding(None, vec![Says::new(1, Relation::Elsewhere, 1)], 1)),
        Some(Rank::Indexed)
    );
}

#[test]
fn a_stranger_neither_blocks_nor_blesses_what_the_root_decides() {
    let says =
        |own| vec![Says::new(9, Relation::Elsewhere, 6), Says::new(1, Relation::InRoot, own)];
    assert_eq!(rank(&finding(None, says(1), 1)), Some(Rank::Indexed));
    assert!(matches!(finding(None, says(1), 6), Finding::Refused(_)));
}

#[test]
fn an_index_that_was_not_asked_again_does_not_refuse() {
    let old = Says { confirmed: 999, ..Says::new(1, Relation::InRoot, 1) };
    assert!(matches!(finding(None, vec![old], 2), Finding::Doubted(_)));
}

#[test]
fn an_older_set_excuses_late_bytes_but_does_not_prove_them() {
    let says = || {
        vec![
            Says::new(2, Relation::InRoot, 2),
            Says { current: false, ..Says::new(1, Relation::InRoot, 1) },
        ]
    };
    assert!(matches!(finding(None, says(), 1), Finding::Excused(_)));
    assert_eq!(rank(&finding(None, says(), 2)), Some(Rank::Indexed));
}

#[test]
fn an_older_set_alone_refuses_nothing() {
    let older = || Says { current: false, ..Says::new(1, Relation::InRoot, 1) };
    assert!(matches!(finding(None, vec![older()], 2), Finding::Excused(_)));
}

#[test]
fn what_was_not_computed_is_no_mismatch() {
    let digests = |content: Option<crate::digest::NewContent>| {
        let algorithms = Algorithms::default();
        Hashing::new(Wanted { algorithms, content }).finish()
    };
    let mut promise = Says::new(1, Relation::InRoot, 1).promise();
    promise.digests = vec![Digest::new(Algorithm::Sha512, &[1; 64]).unwrap()];
    let expected =
        Expectation { named: None, promises: vec![promise], otherwise: Proof::of(Rank::Pinned) };
    let found = |expected: Expectation| expected.find(&[digest(2)], 3, ASKED);
    assert!(matches!(found(expected.clone()), Finding::Refused(_)));
    let comparable = expected.clone().comparable(&digests(None));
    assert_eq!(rank(&found(comparable)), Some(Rank::Pinned));
    // Content that cannot be read was still examined: its missing digest is a mismatch.
    let mut of_content = expected;
    for promise in &mut of_content.promises {
        promise.digests = vec![Digest::new(Algorithm::Apk2Sha256, &[1; 32]).unwrap()];
    }
    let unread = of_content.clone().comparable(&digests(None));
    assert_eq!(rank(&found(unread)), Some(Rank::Pinned));
    let broken = digests(Some(|| Box::new(Broken)));
    let refused = found(of_content.comparable(&broken)).because(broken.fault());
    assert!(matches!(&refused, Finding::Refused(why) if why.to_string().ends_with(": torn")));
}

/// Whether a promise that cannot be read binds is not known; any other that does is known.
#[test]
fn a_promise_that_cannot_be_read_may_bind() {
    let read = Says::new(1, Relation::InRoot, 1).promise();
    let mut unread = read.clone();
    unread.digests.clear();
    let mut elsewhere = unread.clone();
    elsewhere.relation = Relation::Elsewhere;
    for (promises, named, binds, may) in [
        (vec![unread.clone()], None, true, true),
        (vec![unread.clone(), read], None, true, false),
        (vec![unread], Some((digest(1), true)), true, false),
        (vec![elsewhere], None, false, false),
        (vec![], None, false, false),
    ] {
        let expected = Expectation { named, promises, otherwise: Proof::of(Rank::Pinned) };
        assert_eq!((expected.binds(), expected.may_bind()), (binds, may), "{expected:?}");
    }
}

#[test]
fn every_digest_and_the_size_must_match() {
    let mut promise = Says::new(1, Relation::InRoot, 1).promise();
    promise.size = Some(4);
    let expected =
        Expectation { named: None, promises: vec![promise], otherwise: Proof::of(Rank::Pinned) };
    assert!(matches!(expected.find(&[digest(1)], 3, ASKED), Finding::Refused(_)));
    assert_eq!(rank(&expected.find(&[digest(1)], 4, ASKED)), Some(Rank::Indexed));
}

#[test]
fn alternatives_of_one_index_are_no_disagreement() {
    let both = |second| {
        let promises =
            vec![Says::new(1, Relation::InRoot, 1), Says::new(second, Relation::InRoot, 2)];
        finding(None, promises, 2)
    };
    assert!(matches!(both(1), Finding::Proven { disagreement: None, .. }));
    assert!(matches!(both(2), Finding::Proven { disagreement: Some(_), .. }));
}

#[test]
fn a_matching_name_outranks_a_disagreeing_index() {
    let finding = finding(Some((1, true)), vec![Says::new(1, Relation::InRoot, 2)], 1);
    assert!(matches!(
        finding,
        Finding::Proven { proof: Proof { rank: Rank::SelfCertified, .. }, disagreement: Some(_) }
    ));
}

/// A signature over a broken digest proves no more than the digest does.
#[test]
fn a_promise_with_a_signature_of_its_own_is_worth_that() {
    for (algorithm, expected) in
        [(Algorithm::Sha512, Rank::Signed), (Algorithm::Sha1, Rank::IndexedWeak)]
    {
        let digest = Digest::new(algorithm, &vec![1; algorithm.length()]).unwrap();
        let mut promise = Says::new(1, Relation::InRoot, 1).promise();
        (promise.digests, promise.signed) = (vec![digest], true);
        let expected_of = Expectation {
            named: None,
            promises: vec![promise],
            otherwise: Proof::of(Rank::Pinned),
        };
        assert_eq!(rank(&expected_of.find(&[digest], 3, ASKED)), Some(expected));
    }
}

#[test]
fn sha_1_of_content_counts_under_a_signature_and_is_flagged() {
    let says = |rank| {
        let mut promise = Says::new(1, Relation::InRoot, 1).promise();
        promise.digests = vec![Digest::new(Algorithm::Apk2Sha1, &[1; 20]).unwrap()];
        promise.by = Arc::new(IndexVersion { rank, ..IndexVersion::clone(&promise.by) });
        Expectation { promises: vec![promise], ..Expectation::nothing(Rank::Pinned) }
    };
    let came = [digest(1), Digest::new(Algorithm::Apk2Sha1, &[1; 20]).unwrap()];
    let proof = |expected: &Expectation| expected.proof_of(&came, 3).unwrap().to_string();
    assert_eq!(proof(&says(Rank::Signed)), "signed+content+weak-hash");
    assert_eq!(proof(&says(Rank::Indexed)), "indexed-weak+content");
    let found = |rank| says(rank).find(&[digest(1)], 3, ASKED);
    assert!(matches!(found(Rank::Signed), Finding::Refused(_)));
    assert!(matches!(found(Rank::Indexed), Finding::Excused(_)));
}

#[test]
fn a_weak_digest_is_a_hint() {
    let mut promise = Says::new(1, Relation::InRoot, 1).promise();
    promise.digests = vec![Digest::new(Algorithm::Md5, &[1; 16]).unwrap()];
    let expected =
        Expectation { named: None, promises: vec![promise], otherwise: Proof::of(Rank::Pinned) };
    assert!(!expected.binds());
    assert!(matches!(expected.find(&[digest(1)], 3, ASKED), Finding::Excused(_)));
}

/// A signature over an index counts only in its own repository.
#[test]
fn a_signed_index_elsewhere_confirms_as_an_index_does() {
    let confirmed = |signed| {
        let mut promise = Says::new(1, Relation::Elsewhere, 1).promise();
        promise.by =
            Arc::new(IndexVersion { rank: Rank::Signed, ..IndexVersion::clone(&promise.by) });
        promise.signed = signed;
        let expected =
            Expectation { promises: vec![promise], ..Expectation::nothing(Rank::Pinned) };
        rank(&expected.find(&[digest(1)], 3, ASKED))
    };
    assert_eq!(confirmed(false), Some(Rank::Indexed));
    // A signature over the promise itself, as npm's registries make it, is valid in every index that repeats it.
    assert_eq!(confirmed(true), Some(Rank::Signed));
}

#[test]
fn what_was_not_computed_is_no_alarm() {
    let mut promise = Says::new(1, Relation::Elsewhere, 1).promise();
    promise.digests = vec![Digest::new(Algorithm::Sha512, &[1; 64]).unwrap()];
    let expected = Expectation { promises: vec![promise], ..Expectation::nothing(Rank::Pinned) };
    let found = |came: &[Digest]| expected.find(came, 3, ASKED);
    assert!(matches!(found(&[digest(1)]), Finding::Proven { disagreement: None, .. }));
    // The control.
    let computed = Digest::new(Algorithm::Sha512, &[2; 64]).unwrap();
    assert!(matches!(found(&[digest(1), computed]), Finding::Proven { disagreement: Some(_), .. }));
}

fn says(relations: &'static [Relation]) -> impl Strategy<Value = Promise> {
    let size = proptest::option::of(2_u64..5);
    let relation = proptest::sample::select(relations);
    let ranks = proptest::sample::select(vec![Rank::Indexed, Rank::Signed, Rank::IndexedWeak]);
    let made = (1_u64..5, relation, 1_u8..4, any::<bool>(), any::<bool>(), any::<bool>());
    (made, size, ranks).prop_map(|((number, relation, byte, current, fresh, weak), size, rank)| {
        let confirmed = if fresh { 2_000 } else { 500 };
        let says = Says { current, confirmed, ..Says::new(number, relation, byte) };
        let mut promise = says.promise();
        if weak {
            promise.digests = vec![Digest::new(Algorithm::Md5, &[byte; 16]).unwrap()];
        }
        promise.by = Arc::new(IndexVersion { rank, ..IndexVersion::clone(&promise.by) });
        Promise { size, ..promise }
    })
}

proptest! {
    /// Row 6 of issue 10: indexes without authority can only confirm or raise alarms, whatever and however many they
    /// are.
    #[test]
    fn strangers_change_nothing_but_alarms_and_rises(
        own in proptest::collection::vec(says(&[Relation::InRoot, Relation::Declared]), 0..4),
        strangers in proptest::collection::vec(says(&[Relation::Elsewhere]), 0..6),
        named in proptest::option::of((1_u8..4, any::<bool>())),
        otherwise in proptest::sample::select(Rank::ALL.to_vec()),
        came in 1_u8..4,
        at in 0_usize..4,
    ) {
        let named = named.map(|(byte, binds)| (digest(byte), binds));
        let without = Expectation { named, promises: own, otherwise: Proof::of(otherwise) };
        let mut with = without.clone();
        let at = at.min(with.promises.len());
        with.promises.splice(at..at, strangers);
        let digests = [digest(came), Digest::new(Algorithm::Md5, &[came; 16]).unwrap()];

        prop_assert_eq!(with.binds(), without.binds());
        prop_assert_eq!(with.vouched(&digests, 3), without.vouched(&digests, 3));
        prop_assert_eq!(with.refusing().count(), without.refusing().count());
        let (alone, beside) = (without.proof_of(&digests, 3), with.proof_of(&digests, 3));
        prop_assert_eq!(alone.is_some(), beside.is_some(), "a stored copy is a miss, or is one no more");
        prop_assert!(alone.map(|proof| proof.rank) <= beside.map(|proof| proof.rank));
        prop_assert_eq!(with.decided().proof_of(&digests, 3), alone);
        let (alone, beside) = (without.find(&digests, 3, ASKED), with.find(&digests, 3, ASKED));
        prop_assert_eq!(std::mem::discriminant(&alone), std::mem::discriminant(&beside));
        if let Finding::Proven { disagreement: Some(said), .. } = &alone {
            let Finding::Proven { disagreement, .. } = &beside else { panic!("{beside:?}") };
            let promised = disagreement.as_ref().map(|disagreement| &disagreement.promised);
            prop_assert_eq!(promised, Some(&said.promised), "hid what its own index says");
        }
    }
}
