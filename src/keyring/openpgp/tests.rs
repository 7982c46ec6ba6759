//! Tests with keys and signatures made on the spot: what counts, and what must not count, each beside a control.

use std::time::Duration;

use pgp::composed::{
    ArmorOptions, EncryptionCaps, KeyType, SecretKeyParamsBuilder, SignedKeyDetails,
    SignedPublicKey, SignedPublicSubKey, SignedSecretKey, SubkeyParamsBuilder,
};
use pgp::crypto::ecc_curve::ECCCurve;
use pgp::crypto::hash::HashAlgorithm;
use pgp::packet::{KeyFlags, Signature, SignatureConfig, SignatureType, Subpacket, SubpacketData};
use pgp::ser::Serialize as _;
use pgp::types::{KeyDetails, Password, SignedUser, SigningKey, Tag, Timestamp};
use rand::thread_rng;

use super::super::contents;
use super::*;

/// The creation time of keys, in seconds; `NOW` is when signatures are verified.
const MADE: u32 = 1_767_225_600;
const NOW: Time = Time::from_millis((MADE as i64 + 1_000_000) * 1000);

const TEXT: &str = "Origin: x\nSuite: stable\n\n- dash\nlast";

/// How a certificate differs from a valid one.
#[expect(clippy::struct_excessive_bools, reason = "each is one flaw")]
#[derive(Clone, Copy, Default)]
struct Flaws {
    expires: Option<u32>,
    revoked: bool,
    subkey_revoked: bool,
    no_back_signature: bool,
    weak_certification: bool,
    subkey_not_for_signing: bool,
}

fn params(kind: KeyType) -> SignedSecretKey {
    let mut subkey = SubkeyParamsBuilder::default();
    subkey
        .key_type(kind.clone())
        .can_sign(true)
        .can_encrypt(EncryptionCaps::None)
        .created_at(Timestamp::from_secs(MADE));
    let mut key = SecretKeyParamsBuilder::default();
    key.key_type(kind)
        .can_certify(true)
        .can_sign(true)
        .can_encrypt(EncryptionCaps::None)
        .created_at(Timestamp::from_secs(MADE))
        .primary_user_id("archive <archive@example.org>".into())
        .subkeys(vec![subkey.build().unwrap()]);
    key.build().unwrap().generate(thread_rng()).unwrap()
}

fn regular(data: SubpacketData) -> Subpacket {
    Subpacket::regular(data).unwrap()
}

fn config(
    key: &impl SigningKey,
    kind: SignatureType,
    at: u32,
    more: Vec<SubpacketData>,
) -> SignatureConfig {
    let mut config = SignatureConfig::from_key(thread_rng(), key, kind).unwrap();
    let created = SubpacketData::SignatureCreationTime(Timestamp::from_secs(at));
    let issuer = SubpacketData::IssuerFingerprint(key.fingerprint());
    config.hashed_subpackets = [created, issuer].into_iter().chain(more).map(regular).collect();
    config.hash_alg = HashAlgorithm::Sha256;
    config
}

fn flags(sign: bool) -> SubpacketData {
    let mut flags = KeyFlags::default();
    flags.set_sign(sign);
    SubpacketData::KeyFlags(flags)
}

/// The public certificate of `key`, with the given flaws.
fn certificate(key: &SignedSecretKey, flaws: Flaws) -> SignedPublicKey {
    let password = Password::empty();
    let (primary, public) = (&key.primary_key, key.primary_key.public_key());
    let user = key.details.users[0].id.clone();
    let mut more = vec![flags(true)];
    if let Some(span) = flaws.expires {
        let span = pgp::types::Duration::from_secs(span);
        more.push(SubpacketData::KeyExpirationTime(span));
    }
    let mut self_signature = config(primary, SignatureType::CertPositive, MADE, more);
    if flaws.weak_certification {
        self_signature.hash_alg = HashAlgorithm::Sha1;
    }
    let certified =
        self_signature.sign_certification(primary, public, &password, Tag::UserId, &user).unwrap();
    let revocation = config(primary, SignatureType::KeyRevocation, MADE + 1, vec![])
        .sign_key(primary, &password, public)
        .unwrap();
    let details = SignedKeyDetails::new(
        if flaws.revoked { vec![revocation] } else { vec![] },
        vec![],
        vec![SignedUser::new(user, vec![certified])],
        vec![],
    );
    SignedPublicKey::new(public.clone(), details, vec![subkey(key, flaws)])
}

fn subkey(key: &SignedSecretKey, flaws: Flaws) -> SignedPublicSubKey {
    let password = Password::empty();
    let (primary, public) = (&key.primary_key, key.primary_key.public_key());
    let secret = &key.secret_subkeys[0].key;
    let subkey = secret.public_key();
    let mut more = vec![flags(!flaws.subkey_not_for_signing)];
    if !flaws.no_back_signature {
        let back = config(secret, SignatureType::KeyBinding, MADE, vec![])
            .sign_primary_key_binding(secret, subkey, &password, public)
            .unwrap();
        more.push(SubpacketData::EmbeddedSignature(Box::new(back)));
    }
    let binding = config(primary, SignatureType::SubkeyBinding, MADE, more)
        .sign_subkey_binding(primary, public, &password, subkey)
        .unwrap();
    let revocation = config(primary, SignatureType::SubkeyRevocation, MADE + 1, vec![])
        .sign_subkey_binding(primary, public, &password, subkey)
        .unwrap();
    let mut signatures = vec![binding];
    if flaws.subkey_revoked {
        signatures.push(revocation);
    }
    SignedPublicSubKey::new(subkey.clone(), signatures)
}

/// How a signature is made.
#[derive(Clone, Copy)]
struct Makes {
    hash: HashAlgorithm,
    at: u32,
    by_subkey: bool,
    only_key_id: bool,
    critical: bool,
}

impl Default for Makes {
    fn default() -> Self {
        Self {
            hash: HashAlgorithm::Sha256,
            at: MADE + 500,
            by_subkey: false,
            only_key_id: false,
            critical: false,
        }
    }
}

fn sign_by(key: &impl SigningKey, data: &[u8], kind: SignatureType, makes: Makes) -> Signature {
    let mut config = config(key, kind, makes.at, vec![]);
    config.hash_alg = makes.hash;
    if makes.only_key_id {
        config.hashed_subpackets.truncate(1);
        config.unhashed_subpackets = vec![regular(SubpacketData::IssuerKeyId(key.legacy_key_id()))];
    }
    if makes.critical {
        let unknown = SubpacketData::Experimental(101, vec![1].into());
        config.hashed_subpackets.push(Subpacket::critical(unknown).unwrap());
    }
    config.sign(key, &Password::empty(), data).unwrap()
}

fn sign(key: &SignedSecretKey, data: &[u8], kind: SignatureType, makes: Makes) -> String {
    let signature = if makes.by_subkey {
        sign_by(&key.secret_subkeys[0].key, data, kind, makes)
    } else {
        sign_by(&key.primary_key, data, kind, makes)
    };
    let detached = pgp::composed::DetachedSignature::new(signature);
    detached.to_armored_string(ArmorOptions::default()).unwrap()
}

/// `TEXT`, clear-signed.
fn clear(key: &SignedSecretKey, makes: Makes) -> String {
    let canonical = TEXT.replace('\n', "\r\n");
    let signature = sign(key, canonical.as_bytes(), SignatureType::Text, makes);
    let escaped = TEXT.replace("- dash", "- - dash");
    format!("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n{escaped}\n{signature}")
}

fn source() -> Source {
    Source::Operator("test".into())
}

fn keyring(certificate: &SignedPublicKey) -> Keyring {
    let mut keyring = Keyring::new();
    let bytes = certificate.to_bytes().unwrap();
    assert_eq!(keyring.read(&bytes, "test", &source()).unwrap(), 1);
    keyring
}

fn verify(keyring: &Keyring, document: &str, now: Time) -> Result<Signed, NotSigned> {
    let cleartext = Cleartext::parse(document.as_bytes()).unwrap();
    keyring.verify_cleartext(&cleartext, now)
}

fn signed_with(flaws: Flaws, makes: Makes) -> Result<Signed, NotSigned> {
    // rPGP refuses to make a weak signature with an Ed25519 key.
    let weak = flaws.weak_certification || makes.hash == HashAlgorithm::Sha1;
    let key = params(if weak { KeyType::Rsa(2048) } else { KeyType::Ed25519Legacy });
    verify(&keyring(&certificate(&key, flaws)), &clear(&key, makes), NOW)
}

#[test]
fn a_trusted_key_and_its_subkey_sign() {
    let sound = Flaws::default();
    for by_subkey in [false, true] {
        for only_key_id in [false, true] {
            let makes = Makes { by_subkey, only_key_id, ..Makes::default() };
            let signed = signed_with(sound, makes).unwrap();
            assert_eq!(signed.signers.len(), 1);
            assert_eq!(signed.created, policy::moment(MADE + 500));
        }
    }
    let key = params(KeyType::Rsa(2048));
    let keys = keyring(&certificate(&key, sound));
    let signed = verify(&keys, &clear(&key, Makes::default()), NOW).unwrap();
    let primary = fingerprint(&key.primary_key.fingerprint());
    assert_eq!(signed.signers, [primary]);
}

#[test]
fn a_fingerprint_names_a_certificate_and_a_subkey_that_is_its_own() {
    let key = params(KeyType::Ed25519Legacy);
    let name = |of: PgpFingerprint| fingerprint(&of).0;
    let primary = name(key.primary_key.fingerprint());
    let subkey = name(key.secret_subkeys[0].key.fingerprint());
    let names = |flaws, named: &str, signer: &str| {
        keyring(&certificate(&key, flaws)).names(named, signer, NOW)
    };
    let sound = Flaws::default();
    assert!(names(sound, &primary, &primary));
    assert!(names(sound, &subkey.to_lowercase(), &primary));
    assert!(!names(sound, &subkey, "0123"), "of another certificate");
    assert!(!names(sound, "0123", &primary));
    assert!(names(sound, "0123", "0123"), "a key that is not known has its name all the same");
    for flaws in [
        Flaws { no_back_signature: true, ..sound },
        Flaws { subkey_revoked: true, ..sound },
        Flaws { subkey_not_for_signing: true, ..sound },
        Flaws { revoked: true, ..sound },
    ] {
        assert!(!names(flaws, &subkey, &primary));
    }
}

#[test]
fn a_flipped_byte_and_a_stranger_are_told_apart() {
    let key = params(KeyType::Ed25519Legacy);
    let keys = keyring(&certificate(&key, Flaws::default()));
    let document = clear(&key, Makes::default());
    let tampered = verify(&keys, &document.replace("stable", "stabla"), NOW).unwrap_err();
    assert!(tampered.is_forged(), "{tampered}");
    let stranger = params(KeyType::Ed25519Legacy);
    let foreign = verify(&keys, &clear(&stranger, Makes::default()), NOW).unwrap_err();
    assert!(!foreign.is_forged(), "{foreign}");
    assert!(matches!(foreign.faults[..], [Fault::Unknown(_)]));
    // One valid signature is enough.
    let foreign = clear(&stranger, Makes::default());
    let (_, signature) = foreign.split_once("-----BEGIN PGP SIGNATURE-----").unwrap();
    let both = format!("{document}-----BEGIN PGP SIGNATURE-----{signature}");
    assert!(verify(&keys, &both, NOW).is_ok());
    assert!(verify(&keys, &document, NOW).is_ok());
    // One invalid signature by a known key refuses the document.
    let over_another = sign(&key, b"Suite: other", SignatureType::Text, Makes::default());
    let spoiled = verify(&keys, &format!("{document}{over_another}"), NOW).unwrap_err();
    assert!(spoiled.is_forged(), "{spoiled}");
}

#[test]
fn what_expired_or_was_revoked_signs_no_more() {
    let expires = Flaws { expires: Some(900_000), ..Flaws::default() };
    let refused = signed_with(expires, Makes::default()).unwrap_err();
    assert!(matches!(refused.faults[..], [Fault::Expired(_)]) && !refused.is_forged());
    let later = Flaws { expires: Some(2_000_000), ..Flaws::default() };
    assert!(signed_with(later, Makes::default()).is_ok());
    let revoked = Flaws { revoked: true, ..Flaws::default() };
    let by_subkey = Makes { by_subkey: true, ..Makes::default() };
    for makes in [Makes::default(), by_subkey] {
        let refused = signed_with(revoked, makes).unwrap_err();
        assert!(refused.is_forged(), "{refused}");
    }
    let subkey_revoked = Flaws { subkey_revoked: true, ..Flaws::default() };
    assert!(signed_with(subkey_revoked, by_subkey).is_err());
    assert!(signed_with(subkey_revoked, Makes::default()).is_ok());
}

/// An older copy of a certificate must not restore a revoked key.
#[test]
fn a_revocation_in_any_copy_counts() {
    let key = params(KeyType::Ed25519Legacy);
    let revoked = Flaws { revoked: true, ..Flaws::default() };
    let mut keys = keyring(&certificate(&key, Flaws::default()));
    assert!(verify(&keys, &clear(&key, Makes::default()), NOW).is_ok());
    Box::new(certificate(&key, revoked)).add_to(&mut keys, &source());
    assert!(verify(&keys, &clear(&key, Makes::default()), NOW).is_err());
}

/// The copy that revokes a key may be one without its subkeys.
#[test]
fn a_revoked_key_takes_the_subkeys_of_every_copy_with_it() {
    let key = params(KeyType::Ed25519Legacy);
    let mut keys = keyring(&certificate(&key, Flaws::default()));
    let by_subkey = clear(&key, Makes { by_subkey: true, ..Makes::default() });
    assert!(verify(&keys, &by_subkey, NOW).is_ok(), "the control");
    assert_eq!(keys.signers().len(), 2, "the control");
    let mut revoked = certificate(&key, Flaws { revoked: true, ..Flaws::default() });
    revoked.public_subkeys.clear();
    Box::new(revoked).add_to(&mut keys, &source());
    assert!(verify(&keys, &by_subkey, NOW).is_err());
    assert!(keys.signers().is_empty(), "{:?}", keys.signers());
}

#[test]
fn a_subkey_signs_only_if_both_sides_say_so() {
    let by_subkey = Makes { by_subkey: true, ..Makes::default() };
    for flaws in [
        Flaws { no_back_signature: true, ..Flaws::default() },
        Flaws { subkey_not_for_signing: true, ..Flaws::default() },
    ] {
        assert!(signed_with(flaws, by_subkey).is_err());
    }
    assert!(signed_with(Flaws::default(), by_subkey).is_ok());
}

#[test]
fn weak_hashes_odd_curves_and_odd_times_do_not_count() {
    for makes in [
        Makes { hash: HashAlgorithm::Sha1, ..Makes::default() },
        // Older than its key, or from the future.
        Makes { at: MADE - 1, ..Makes::default() },
        Makes { at: MADE + 1_200_000, ..Makes::default() },
        Makes { critical: true, ..Makes::default() },
    ] {
        assert!(signed_with(Flaws::default(), makes).is_err());
    }
    let weak = Flaws { weak_certification: true, ..Flaws::default() };
    assert!(signed_with(weak, Makes::default()).is_err());
    for (curve, counts) in [(ECCCurve::P256, true), (ECCCurve::Secp256k1, false)] {
        let key = params(KeyType::ECDSA(curve));
        let keys = keyring(&certificate(&key, Flaws::default()));
        let verified = verify(&keys, &clear(&key, Makes::default()), NOW);
        assert_eq!(verified.is_ok(), counts, "{verified:?}");
    }
}

#[test]
fn a_detached_signature_is_over_the_exact_bytes() {
    let key = params(KeyType::Ed25519Legacy);
    let keys = keyring(&certificate(&key, Flaws::default()));
    let data = b"Origin: x\n";
    let made = sign(&key, data, SignatureType::Binary, Makes::default());
    assert!(keys.verify_detached(data, made.as_bytes(), NOW).is_ok());
    assert!(keys.verify_detached(b"Origin: x\r\n", made.as_bytes(), NOW).is_err());
    // A text signature is not a binary signature: the two treat line ends differently.
    let text = sign(&key, data, SignatureType::Text, Makes::default());
    assert!(keys.verify_detached(data, text.as_bytes(), NOW).is_err());
    assert!(keys.verify_detached(data, b"", NOW).is_err());
}

#[test]
fn the_keys_compiled_in_may_sign() {
    let keys = Keyring::built_in();
    let now = policy::moment(1_795_000_000);
    let about: Vec<KeyDescription> = keys.about(now).collect();
    assert!(about.len() >= 10, "{about:?}");
    assert!(about.iter().any(|key| key.kind.name() == "npm" && key.ends.is_none()));
    for certificate in &keys.openpgp.all {
        let primary = policy::primary_signs(&certificate.key, now);
        let subkeys = certificate.key.public_subkeys.iter();
        let mut signing = subkeys.map(|subkey| policy::subkey_signs(&certificate.key, subkey, now));
        let sign = primary.is_ok() || signing.any(|may| may.is_ok());
        // The keys of 2012 certify themselves with SHA-1; no current archive is signed with them.
        let old = seconds_of(&certificate.key) < 1_400_000_000;
        assert!(sign || old, "{} {primary:?}", certificate.fingerprint());
    }
}

fn seconds_of(key: &SignedPublicKey) -> u32 {
    key.primary_key.created_at().as_secs()
}

#[test]
fn files_that_are_not_keys_are_named_and_left_out() {
    let key = params(KeyType::Ed25519Legacy);
    let public = certificate(&key, Flaws::default());
    let armoured = public.to_armored_string(ArmorOptions::default()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let mut file = std::fs::File::create_new(dir.path().join(name)).unwrap();
        std::io::Write::write_all(&mut file, bytes).unwrap();
    };
    write("a.gpg", b"\0\0\0\x20\x01\x01\0\x02KBXf\0\0\0\0");
    write("b.asc", b"not a key");
    write("c.asc", format!("# two\n{armoured}\n{armoured}").as_bytes());
    write("d.gpg", &public.to_bytes().unwrap());
    write("old-removed-keys.gpg", &public.to_bytes().unwrap());
    write("e.txt", &public.to_bytes().unwrap());
    let mut keys = Keyring::new();
    keys.add_path(dir.path(), Source::Operator);
    assert_eq!(keys.len(), 3);
    let keybox = keys.add_file(&dir.path().join("a.gpg"), &source()).unwrap_err();
    assert!(keybox.to_string().contains("gpg --export"), "{keybox}");
    assert!(keys.add_file(&dir.path().join("none.gpg"), &source()).is_err());
    let about = keys.about(NOW.plus(Duration::from_secs(1))).next().unwrap();
    assert_eq!(about.user, "archive <archive@example.org>");
}

/// The error that a file gives, or its number of keys and whether a part of it is damaged.
fn contents_of(bytes: &[u8], name: &str) -> Result<(usize, bool), String> {
    let found = contents::read(bytes, name).map_err(|error| error.to_string())?;
    Ok((found.keys.len(), found.damaged))
}

#[test]
fn what_is_in_a_file_is_told_by_its_bytes() {
    let key = params(KeyType::Ed25519Legacy);
    let public = certificate(&key, Flaws::default());
    let binary = public.to_bytes().unwrap();
    let armoured = public.to_armored_string(ArmorOptions::default()).unwrap();
    let said = |bytes: &[u8]| contents_of(bytes, "x");
    assert_eq!(said(&binary), Ok((1, false)));
    assert_eq!(said(&[binary.clone(), binary.clone()].concat()), Ok((2, false)));
    let both = format!("\u{feff}Schl\u{fc}ssel\n{armoured}\n{armoured}");
    assert_eq!(said(both.as_bytes()), Ok((2, false)));
    // A truncated file is reported as damaged.
    assert_eq!(said(&binary[..binary.len() - 1]), Ok((1, true)));
    let (whole, cut) = (armoured.as_str(), armoured.split_at(armoured.len() / 2).0);
    assert_eq!(said(format!("{whole}{cut}").as_bytes()), Ok((1, true)));
    let rsa = params(KeyType::Rsa(2048));
    assert_eq!(said(&certificate(&rsa, Flaws::default()).to_bytes().unwrap()), Ok((1, false)));
    for (bytes, why) in [
        (&b""[..], "empty"),
        (b" \n", "empty"),
        (b"hello", "not a file of public keys"),
        (&[0x80; 40], "not a file of public keys"),
        (b"{", "keys endpoint"),
        (
            b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
            "not a file of public keys",
        ),
    ] {
        let refused = said(bytes).unwrap_err();
        assert!(refused.contains(why), "{refused}");
    }
}

#[test]
fn a_private_key_is_refused_in_every_form() {
    let key = params(KeyType::Ed25519Legacy);
    let armoured = key.to_armored_string(ArmorOptions::default()).unwrap();
    let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
    for secret in [key.to_bytes().unwrap(), armoured.into_bytes(), pem.into_bytes()] {
        let refused = contents_of(&secret, "x").unwrap_err();
        assert!(refused.contains("private key"), "{refused}");
    }
}

#[test]
fn a_key_in_pem_is_a_registrys_or_alpines() {
    let npm = rcgen::KeyPair::generate().unwrap();
    let found = contents::read(npm.public_key_pem().as_bytes(), "x").unwrap();
    let (name, file) = found.keys[0].to_file().unwrap();
    assert_eq!(found.keys[0].kind().name(), "npm");
    assert_eq!(contents_of(&file, &name), Ok((1, false)));
    let rsa = rcgen::KeyPair::generate_for(&rcgen::PKCS_RSA_SHA256).unwrap().public_key_pem();
    let found = contents::read(rsa.as_bytes(), "a@example.org-5261cecb.rsa.pub").unwrap();
    assert_eq!(found.keys[0].kind().name(), "apk");
    assert_eq!(&*found.keys[0].fingerprint().0, "a@example.org-5261cecb.rsa.pub");
    // The name is the key's identity, and becomes the name of a stored file.
    for name in ["x", ".pub", "../a.rsa.pub", "a b.rsa.pub", "a.pem"] {
        assert!(contents_of(rsa.as_bytes(), name).unwrap_err().contains("file's name"), "{name}");
    }
}
