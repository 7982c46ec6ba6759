//! Whether the signatures on which claims rest still count when the keyring has changed meanwhile.

use std::io;

use super::Pipeline;
use super::unproven::{digests_of, is_lost, lower_unsigned};
use crate::claim::IndexVersion;
use crate::entry::Entry;
use crate::proof::Rank;
use crate::target::{Partition, Target};

impl Pipeline {
    /// Deletes claims that were just published, if they rest on a signature by a key that is not trusted any more: it may have
    /// been removed after the signature was checked, and what it proved was deleted before these claims were published. The error
    /// says that the document is to be read again.
    pub(super) fn check_signers(
        &self,
        published: &IndexVersion,
        (index, reader): (&Target, Partition),
        entry: &Entry,
    ) -> io::Result<()> {
        let keys = self.keys.get();
        let standing = keys.standing();
        let vouchers = self.store.vouchers_of(&published.root);
        let below = vouchers.iter().any(|signer| !standing.contains(signer));
        // As long as a file of keys cannot be read, it is unknown whose key is lost.
        let of = (index, reader, &*digests_of(entry));
        if !keys.is_whole() || !is_lost(&self.store, &standing, published, of, below) {
            return Ok(());
        }
        let withdrawn =
            self.store.withdraw_claims(&|set| set.generation.number == published.number);
        if let Some(entry) = self.as_stored(entry).filter(|_| published.rank == Rank::Signed) {
            let own = published.signed_by.as_ref().map(|by| &*by.index);
            let own = own.filter(|own| !own.is_empty());
            lower_unsigned(&self.store, &self.keys, &entry, own);
        }
        withdrawn.inspect_err(|error| {
            tracing::error!(
                url = published.shown, %error,
                "claims that a removed key proved no longer count, but are still on disk; larder tries to delete them again, and \
                 they count after a restart if that fails: then stop larder, delete the directory v1/claims in its data directory, and \
                 start it"
            );
        })?;
        Err(io::Error::new(
            io::ErrorKind::Interrupted,
            "a key that signed it was removed meanwhile",
        ))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use hyper::{HeaderMap, StatusCode};

    use super::super::unproven::{lower_unsigned, retract};
    use super::super::{Pipeline, for_tests};
    use crate::claim::{Claim, ClaimSink as _, IndexVersion, Snapshot, Standing, Topic};
    use crate::digest::{Algorithm, Algorithms, BlobId, Digest};
    use crate::ecosystem::{self, Ecosystem, Shape};
    use crate::entry::{Entry, Head};
    use crate::keyring::{Keyring, Source, signs_packages};
    use crate::proof::{Proof, Rank};
    use crate::received::Received;
    use crate::store::{ClaimBatch, may_pass};
    use crate::target::{Partition, Root, Target};
    use crate::verify::{Expectation, Verdict, judge};

    const RELEASE: &str = "https://example.org/debian/dists/stable/InRelease";
    const PACKUMENT: &str = "https://example.org/npm/@gear%2fgear";

    /// The rank of an index, the signers of the index itself, and one signer for each of its claims.
    type SignedBy<'a> = (Rank, Option<&'a [Box<str>]>, &'a [Box<str>]);

    struct World {
        pipeline: Pipeline,
        data: tempfile::TempDir,
    }

    fn target(url: &str) -> Target {
        Target::from_url(url).unwrap()
    }

    fn ecosystem_of(index: &Target) -> &'static dyn Ecosystem {
        ecosystem::recognise(&Shape { target: index, accept: "*/*" }).unwrap().ecosystem
    }

    impl World {
        /// One that trusts the compiled-in keys.
        fn new() -> Self {
            let data = tempfile::tempdir().unwrap();
            let pipeline = for_tests(data.path());
            pipeline.keys.set(Keyring::built_in());
            Self { pipeline, data }
        }

        /// Two trusted keys that sign archives, or packages.
        fn keys(&self, packages: bool) -> Vec<Box<str>> {
            let trusted = self.pipeline.keys.get().signers().into_iter();
            let mut keys: Vec<_> = trusted.filter(|key| signs_packages(key) == packages).collect();
            keys.truncate(2);
            assert_eq!(keys.len(), 2);
            keys
        }

        /// A stored index, as it came over TLS.
        fn stored(&self, index: &Target, number: u8) -> Arc<Entry> {
            let (store, now) = (&self.pipeline.store, self.pipeline.clock.now());
            let mut spool = store.spool(Some(1), Algorithms::NONE).unwrap();
            spool.append(&[number]).unwrap();
            let head = Head { status: StatusCode::OK, headers: HeaderMap::new() };
            let received = Received {
                body: spool.finish(),
                head: head.clone(),
                plain: false,
                answered_by: None,
                resumed: false,
                requested_at: now,
                received_at: now,
            };
            let verdict = judge(received, &Expectation::nothing(Rank::Origin), now);
            let Verdict::Keep(verified, _) = verdict else { panic!("{verdict:?}") };
            let entry = Entry {
                key: index.key(Partition::Public),
                shown: index.to_string(),
                variant: String::new(),
                partition: Partition::Public,
                ecosystem: String::new(),
                index: true,
                blob: BlobId::new([0; 32]),
                size: 0,
                digests: Vec::new(),
                head,
                varied: Vec::new(),
                proof: Proof::of(Rank::Origin),
                generation: 0,
                answered_by: None,
                requested_at: now,
                received_at: now,
                checked_at: now,
            };
            store.commit(verified, entry).unwrap()
        }

        fn rank(&self, entry: &Entry) -> Rank {
            self.pipeline.store.entries(entry.key)[0].proof.rank
        }

        fn current(&self, index: &Target) -> Option<Arc<IndexVersion>> {
            self.pipeline.store.current_claims(index)
        }

        fn claim(number: u8) -> Claim {
            let file = target(&format!("https://example.org/npm/gear/-/gear-{number}.0.0.tgz"));
            let digests = vec![Digest::new(Algorithm::Sha256, &[number; 32]).unwrap()];
            Claim { target: file, topic: Topic::new("npm", "gear"), digests, size: None }
        }

        /// A batch with one signed claim by each of `signers`.
        fn batch(&self, entry: &Entry, signers: &[Box<str>]) -> ClaimBatch {
            let index = target(&entry.shown);
            let ecosystem = ecosystem_of(&index);
            let mut batch =
                self.pipeline.batch(ecosystem, &index, entry.blob, Partition::Public).unwrap();
            for (number, signer) in (1..).zip(signers) {
                batch.signed_claim(Self::claim(number), signer).unwrap();
            }
            batch
        }

        /// Publishes claims that were read while all `signers` were trusted: the index's own, or those of a claim in it.
        fn publish(
            &self,
            entry: &Arc<Entry>,
            (rank, of_index, of_claims): SignedBy<'_>,
        ) -> std::io::Result<()> {
            let index = target(&entry.shown);
            let (apt, root) = (ecosystem_of(&index), Root::directory_of(&index));
            let mut batch = self.batch(entry, of_claims);
            if let Some(signers) = of_index {
                let (signers, makers) = (signers.to_vec(), signers.to_vec());
                batch.edition(Snapshot { signers, makers, ..Snapshot::default() });
            }
            let standing = Standing { rank, root };
            self.pipeline.publish(apt, &index, batch, &standing, entry)
        }
    }

    /// A keyring of which a file cannot be read now.
    fn unread(world: &World) -> Keyring {
        let file = world.data.path().join("unread.gpg");
        // Nobody can open a link to itself.
        let _before = std::os::unix::fs::symlink(&file, &file);
        let mut keyring = Keyring::new();
        keyring.add_path(&file, Source::System);
        keyring
    }

    /// The keyring without any key: whichever key signed, it is removed while its claims are published.
    #[test]
    fn claims_of_a_key_that_is_removed_meanwhile_do_not_stay_in_an_unsigned_index() {
        let world = World::new();
        let index = target(PACKUMENT);
        let (entry, keys) = (world.stored(&index, 1), world.keys(true));
        let by = (Rank::Indexed, None, &keys[..1]);
        world.publish(&entry, by).unwrap();
        assert!(world.current(&index).is_some(), "the control");
        world.pipeline.keys.set(Keyring::new());
        world.pipeline.keys.set(unread(&world));
        world.publish(&entry, by).unwrap();
        assert!(world.current(&index).is_some(), "its file may be readable again");
        world.pipeline.keys.set(Keyring::new());
        // An index whose claims are not signed needs no key.
        world.publish(&world.stored(&index, 2), (Rank::Indexed, None, &[])).unwrap();
        assert!(world.current(&index).is_some(), "the control");
        let error = world.publish(&world.stored(&index, 3), by).unwrap_err();
        assert!(may_pass(&error), "it is read again: {error}");
        assert!(world.current(&index).is_none());
    }

    #[test]
    fn a_change_of_the_keyring_that_takes_no_signer_costs_no_claims() {
        let world = World::new();
        let (release, packument) = (target(RELEASE), target(PACKUMENT));
        let (keys, of_packages) = (world.keys(false), world.keys(true));
        let other = target("https://example.org/debian/dists/testing/InRelease");
        let other_entry = world.stored(&other, 9);
        world.publish(&other_entry, (Rank::Signed, Some(&keys), &[])).unwrap();
        let entry = world.stored(&release, 1);
        for turn in 0..2 {
            world.publish(&entry, (Rank::Signed, Some(&keys), &[])).unwrap();
            let entry = world.stored(&packument, turn + 2);
            world.publish(&entry, (Rank::Indexed, None, &of_packages)).unwrap();
            world.pipeline.keys.set(Keyring::built_in());
        }
        for index in [&release, &packument, &other] {
            assert!(world.current(index).is_some(), "{index}");
        }
        // The control. Only what was just published goes; the rest is revoked by whoever removes the key.
        world.pipeline.keys.set(Keyring::new());
        let entry = world.stored(&release, 8);
        world.publish(&entry, (Rank::Signed, Some(&keys), &[])).unwrap_err();
        assert!(world.current(&release).is_none() && world.current(&other).is_some());
    }

    /// One of several signers of an index is enough, and a claim needs its own.
    #[test]
    fn another_signer_vouches_for_an_index_and_not_for_anothers_claim() {
        let world = World::new();
        let (release, packument) = (target(RELEASE), target(PACKUMENT));
        let (of_index, of_claims) = (world.keys(false), world.keys(true));
        let strange: Box<str> = "gone".into();
        let signers = [strange.clone(), of_index[0].clone()];
        world.publish(&world.stored(&release, 1), (Rank::Signed, Some(&signers), &[])).unwrap();
        assert!(world.current(&release).is_some());
        let signers = [strange, of_claims[0].clone()];
        let entry = world.stored(&packument, 2);
        world.publish(&entry, (Rank::Indexed, None, &signers)).unwrap_err();
        assert!(world.current(&packument).is_none());
    }

    /// One document may be published as signed by one key, and then by another: `Release` with another `Release.gpg`.
    #[test]
    fn what_another_key_signed_of_the_same_document_stays_when_the_first_is_lost() {
        for same in [false, true] {
            let world = World::new();
            let (index, keys) = (target(RELEASE), world.keys(false));
            let entry = world.stored(&index, 1);
            // A stranger's signature would not count.
            world.pipeline.store.bind_signers(&Root::directory_of(&index), &keys);
            for key in [&keys[..1], if same { &keys[..1] } else { &keys[1..] }] {
                world.publish(&entry, (Rank::Signed, Some(key), &[])).unwrap();
            }
            let standing = [keys[1].clone()].into();
            let roots = [Root::directory_of(&index)].into();
            retract(&world.pipeline.store, &standing, &roots, &mut BTreeSet::new()).unwrap();
            assert_eq!(world.current(&index).is_none(), same, "the control: {same}");
        }
    }

    /// The list of packages is fetched under another name than its claims have: the signed index names the compressed file.
    #[test]
    fn a_compressed_list_stays_as_long_as_a_trusted_key_signs_the_index_that_names_it() {
        let world = World::new();
        let (pipeline, release) = (&world.pipeline, target(RELEASE));
        let index = target("https://example.org/debian/dists/stable/main/binary-all/Packages");
        let at = target(&format!("{index}.xz"));
        let (entry, list) = (world.stored(&release, 1), world.stored(&at, 2));
        let signers: Vec<Box<str>> = vec!["gone".into(), world.keys(false)[0].clone()];
        let standing = Standing {
            rank: Rank::Signed,
            root: Root::directory_of(&target("https://example.org/debian/x")),
        };
        let apt = ecosystem_of(&release);
        let mut batch = world.batch(&entry, &[]);
        let makers = signers.clone();
        batch.edition(Snapshot { signers, makers, ..Snapshot::default() });
        let digests = vec![list.blob.digest()];
        let topic = apt.topics(&index).remove(0);
        batch.claim(Claim { target: at.clone(), topic, digests, size: None }).unwrap();
        pipeline.publish(apt, &release, batch, &standing, &entry).unwrap();
        let publish = || {
            let batch = pipeline.batch(apt, &index, list.blob, Partition::Public).unwrap();
            pipeline.publish(apt, &at, batch, &standing, &list)
        };
        publish().unwrap();
        let roots = [standing.root.clone()].into();
        let revoke = |trusted: &BTreeSet<Box<str>>| {
            retract(&pipeline.store, trusted, &roots, &mut BTreeSet::new()).unwrap();
        };
        revoke(&pipeline.keys.get().signers());
        assert!(world.current(&index).is_some());
        revoke(&BTreeSet::new());
        assert!(world.current(&index).is_none(), "the control");
    }

    /// What cannot be read when a key is removed may be readable afterwards.
    #[test]
    #[expect(clippy::disallowed_methods, reason = "the disk fails")]
    fn claims_that_cannot_be_read_while_a_key_is_removed_do_not_come_back() {
        let (index, world) = (target(RELEASE), World::new());
        let keys = world.keys(false);
        world.publish(&world.stored(&index, 1), (Rank::Signed, Some(&keys), &[])).unwrap();
        let World { pipeline, data } = world;
        drop(pipeline);
        let claims = data.path().join("v1/claims");
        let file = claims.read_dir().unwrap().next().unwrap().unwrap().path();
        let aside = data.path().join("aside");
        std::fs::rename(&file, &aside).unwrap();
        // Nobody can open a link to itself.
        std::os::unix::fs::symlink(&file, &file).unwrap();
        let pipeline = for_tests(data.path());
        let store = &pipeline.store;
        let roots = [Root::directory_of(&index)].into();
        let revoke = || retract(store, &BTreeSet::new(), &roots, &mut BTreeSet::new());
        let done = revoke();
        std::fs::remove_file(&file).unwrap();
        std::fs::rename(&aside, &file).unwrap();
        let is_current = || {
            let _read = store.promises(&index, &[], pipeline.clock.now());
            store.current_claims(&index).is_some()
        };
        assert!(is_current(), "the control: it can be read");
        assert!(done.is_err(), "so it is tried again");
        revoke().unwrap();
        assert!(!is_current());
    }

    /// An index remembers a limited number of signers; of more, a claim cannot be withdrawn with its key.
    #[test]
    fn a_claim_whose_signer_cannot_be_noted_counts_as_not_signed() {
        let world = World::new();
        let (index, keys) = (target(PACKUMENT), world.keys(true));
        let entry = world.stored(&index, 1);
        let mut signers: Vec<Box<str>> = (0..20).map(|n| format!("SHA256:{n}").into()).collect();
        signers.insert(0, keys[0].clone());
        let mut batch = world.batch(&entry, &signers);
        batch.signed_claim(World::claim(99), &keys[0]).unwrap();
        let by = batch.signed_by(Rank::Indexed);
        assert!(by.claims.len() < signers.len(), "the control");
        let root = Root::directory_of(&index);
        batch.publish(&Standing { rank: Rank::Indexed, root }, entry.requested_at).unwrap();
        let signed = |number: u8| {
            let claim = World::claim(number);
            let now = world.pipeline.clock.now();
            let promises = world.pipeline.store.promises(&claim.target, &[claim.topic], now);
            assert_eq!(promises.len(), 1, "{number}");
            promises[0].signed
        };
        assert!(signed(1) && signed(99), "the control");
        assert!(!signed(21));
    }

    /// The index was stored before its signature became verifiable, and the key goes while the index is read again.
    #[test]
    fn an_index_is_not_raised_by_a_key_that_is_removed_meanwhile() {
        let world = World::new();
        let (index, keys) = (target(RELEASE), world.keys(false));
        let entry = world.stored(&index, 1);
        let by = (Rank::Signed, Some(&keys[..]), &[][..]);
        world.publish(&entry, by).unwrap();
        assert_eq!(world.rank(&entry), Rank::Signed, "the control");
        let other = target("https://example.org/other/dists/stable/InRelease");
        let entry = world.stored(&other, 2);
        world.pipeline.keys.set(Keyring::new());
        world.publish(&entry, by).unwrap_err();
        assert_eq!(world.rank(&entry), Rank::Origin);
    }

    /// A member has no signature of its own: the signers of its archive decide.
    #[test]
    fn what_is_stored_as_signed_after_its_key_went_is_lowered() {
        let world = World::new();
        let (store, keys) = (&world.pipeline.store, world.keys(false));
        let member = target("https://example.org/debian/dists/stable/main/binary-all/Packages");
        let entry = world.stored(&member, 1);
        let raised = || {
            let raise = |entry: &mut Entry| entry.proof = Proof::of(Rank::Signed);
            store.update(&entry, raise).unwrap()
        };
        let lowers = |signers| lower_unsigned(store, &world.pipeline.keys, &raised(), signers);
        assert!(!lowers(None), "the control: nobody is known to have signed there");
        store.note_vouchers(
            &Root::directory_of(&target("https://example.org/debian/x")),
            &keys[..1],
        );
        assert!(!lowers(None) && !lowers(Some(&keys)), "the control");
        world.pipeline.keys.set(unread(&world));
        assert!(!lowers(None) && !lowers(Some(&keys)), "their file may be readable again");
        world.pipeline.keys.set(Keyring::new());
        for signers in [None, Some(&keys[..])] {
            assert!(lowers(signers));
            assert_eq!(world.rank(&entry), Rank::Origin);
        }
    }
}
