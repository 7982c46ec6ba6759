#![expect(clippy::disallowed_methods, reason = "tests damage files; nothing needs to be durable")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate};

use super::*;

mod limits;

fn open(state: &Path) -> Arc<Authority> {
    Authority::open(state, &Clock::system()).unwrap()
}

fn host(text: &str) -> Host {
    Host::parse(text).unwrap()
}

/// Whether `openssl verify` accepts `leaf` in strict mode, which makes the checks of Python 3.13 and newer.
fn strictly_verifies(state: &Path, leaf: &[u8]) -> bool {
    let path = state.join("leaf.pem");
    fs::write(&path, encode_pem("CERTIFICATE", leaf)).unwrap();
    let output = Command::new("openssl")
        .args(["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile"])
        .args([&state.join("ca.crt"), &path])
        .output()
        .expect("the tests need the openssl command");
    output.status.success()
}

#[test]
fn leaves_pass_strict_verification() {
    let state = tempfile::tempdir().unwrap();
    let authority = open(state.path());
    let long = format!("{}.example.org", "a".repeat(63));
    for name in ["example.org", "192.0.2.1", "[2001:db8::1]", "_a.b", &long] {
        let leaf = authority.leaf(&host(name)).unwrap();
        assert_eq!(leaf.cert.len(), 2, "the CA goes along");
        assert!(strictly_verifies(state.path(), &leaf.cert[0]), "{name}");
    }
}

/// Control: without an authority key identifier the same check refuses.
#[test]
fn a_leaf_without_authority_key_identifier_fails_strict_verification() {
    let state = tempfile::tempdir().unwrap();
    let ca = Ca::open(state.path(), &[], Clock::system().now(), false).unwrap();
    let mut params = leaf::params(&ca, &host("example.org"), Clock::system().now()).unwrap();
    params.use_authority_key_identifier_extension = false;
    let key = rcgen::KeyPair::generate().unwrap();
    let bare = params.signed_by(&key, &ca.issuer).unwrap();
    assert!(!strictly_verifies(state.path(), bare.der()));
}

#[test]
fn a_leaf_names_its_host_and_nothing_more() {
    let state = tempfile::tempdir().unwrap();
    let authority = open(state.path());
    for (name, expected) in [
        ("Example.ORG.", GeneralName::DNSName("example.org")),
        ("192.0.2.1", GeneralName::IPAddress(&[192, 0, 2, 1])),
        (
            "[2001:db8::1]",
            GeneralName::IPAddress(&[0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
        ),
    ] {
        let leaf = authority.leaf(&host(name)).unwrap();
        let (_, leaf) = X509Certificate::from_der(&leaf.cert[0]).unwrap();
        let names = leaf.subject_alternative_name().unwrap().unwrap();
        assert_eq!(names.value.general_names, [expected]);
        assert!(!leaf.is_ca());
        let usage = leaf.key_usage().unwrap().unwrap();
        assert_eq!(usage.value.flags, 1, "digitalSignature only");
        let purpose = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(purpose.server_auth && !purpose.client_auth && !purpose.any);
        let validity = leaf.validity();
        let days = (validity.not_after.timestamp() - validity.not_before.timestamp()) / 86_400;
        assert_eq!(days, 90);
    }
}

#[test]
fn the_ca_may_sign_leaves_only_and_says_whose_it_is() {
    let state = tempfile::tempdir().unwrap();
    let authority = open(state.path());
    let der = authority.ca_der();
    let (_, ca) = X509Certificate::from_der(&der).unwrap();
    let constraints = ca.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca);
    assert_eq!(constraints.value.path_len_constraint, Some(0));
    let usage = ca.key_usage().unwrap().unwrap().value;
    assert!(usage.key_cert_sign() && usage.crl_sign() && !usage.digital_signature());
    assert!(
        ca.extensions()
            .iter()
            .any(|e| matches!(e.parsed_extension(), ParsedExtension::SubjectKeyIdentifier(_)))
    );
    let name = ca.subject().iter_common_name().next().unwrap().as_str().unwrap();
    assert!(name.starts_with("larder CA ") && name.len() <= ca::MAX_COMMON_NAME, "{name}");
}

#[test]
fn leaves_have_a_key_of_their_own_and_serial_numbers_of_their_own() {
    let state = tempfile::tempdir().unwrap();
    let authority = open(state.path());
    let one = authority.leaf(&host("one.example.org")).unwrap();
    let two = authority.leaf(&host("two.example.org")).unwrap();
    let der = authority.ca_der();
    let (_, ca) = X509Certificate::from_der(&der).unwrap();
    let (_, one) = X509Certificate::from_der(&one.cert[0]).unwrap();
    let (_, two) = X509Certificate::from_der(&two.cert[0]).unwrap();
    assert_ne!(one.public_key().raw, ca.public_key().raw);
    assert_ne!(one.raw_serial(), two.raw_serial());
    assert!(one.raw_serial().len() >= 16);
}

#[test]
fn a_leaf_is_minted_once_and_again_at_half_its_life() {
    let state = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let authority = Authority::open(state.path(), &clock).unwrap();
    let example = host("example.org");
    let first = authority.leaf(&example).unwrap();
    assert!(Arc::ptr_eq(&first, &authority.leaf(&example).unwrap()));
    clock.advance(Duration::from_hours(43 * 24));
    assert!(Arc::ptr_eq(&first, &authority.leaf(&example).unwrap()));
    clock.advance(Duration::from_hours(2 * 24));
    assert!(!Arc::ptr_eq(&first, &authority.leaf(&example).unwrap()));
}

/// The clock of a machine that starts with a wrong one is corrected when the network is up.
#[test]
fn a_leaf_of_the_future_is_not_used_after_the_clock_was_set_back() {
    let state = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let authority = Authority::open(state.path(), &clock).unwrap();
    let example = host("example.org");
    let minted = |days: u64| {
        let later = clock.now().plus(Duration::from_hours(days * 24));
        let leaf = leaf::mint(&authority.held.load().ca, &authority.key, &example, later).unwrap();
        let leaf = Arc::new(leaf);
        authority.leaves.insert(example.clone(), Arc::clone(&leaf));
        Arc::clone(&leaf.certified)
    };
    let used = || authority.leaf(&example).unwrap();
    assert!(!Arc::ptr_eq(&minted(30), &used()));
    // Control: an hour is within the time by which leaves are backdated.
    assert!(Arc::ptr_eq(&minted(1), &used()));
}

#[test]
fn opening_again_gives_the_same_ca() {
    let state = tempfile::tempdir().unwrap();
    let first = open(state.path());
    let second = open(state.path());
    assert_eq!(first.fingerprint_sha256(), second.fingerprint_sha256());
    assert_eq!(first.ca_pem(), fs::read_to_string(state.path().join("ca.crt")).unwrap());
    // Leaves of the second verify against the certificate that the first one wrote.
    let leaf = second.leaf(&host("example.org")).unwrap();
    assert!(strictly_verifies(state.path(), &leaf.cert[0]));
}

#[test]
fn the_key_is_its_owners_alone() {
    let state = tempfile::tempdir().unwrap();
    // The mode of a file that a crash left must not be inherited.
    fs::write(state.path().join("ca.key.new"), "x").unwrap();
    open(state.path());
    let mode = fs::metadata(state.path().join("ca.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(!format!("{:?}", open(state.path())).contains("PRIVATE"));
}

#[test]
fn a_key_without_its_certificate_gets_a_new_one() {
    let state = tempfile::tempdir().unwrap();
    open(state.path());
    let key = fs::read(state.path().join("ca.key")).unwrap();
    fs::remove_file(state.path().join("ca.crt")).unwrap();
    let leaf = open(state.path()).leaf(&host("example.org")).unwrap();
    assert_eq!(fs::read(state.path().join("ca.key")).unwrap(), key);
    assert!(strictly_verifies(state.path(), &leaf.cert[0]));
}

#[test]
fn what_is_damaged_is_said_and_left_alone() {
    let other = tempfile::tempdir().unwrap();
    open(other.path());
    let foreign = fs::read_to_string(other.path().join("ca.crt")).unwrap();
    for (name, text, why) in [
        ("ca.key", "", "no private key"),
        ("ca.key", "-----BEGIN PRIVATE KEY-----\n", "no private key"),
        ("ca.crt", "", "not PEM"),
        (
            "ca.crt",
            "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
            "no certificate",
        ),
        ("ca.crt", foreign.as_str(), "does not belong to its key, ca.key"),
    ] {
        let state = tempfile::tempdir().unwrap();
        open(state.path());
        fs::write(state.path().join(name), text).unwrap();
        let error = Authority::open(state.path(), &Clock::system()).unwrap_err().to_string();
        assert!(error.contains(why) && error.contains(name) && error.contains("remove"), "{error}");
        assert_eq!(fs::read_to_string(state.path().join(name)).unwrap(), text);
    }
}

#[test]
fn a_certificate_without_its_key_is_an_error() {
    let state = tempfile::tempdir().unwrap();
    open(state.path());
    fs::remove_file(state.path().join("ca.key")).unwrap();
    let error = Authority::open(state.path(), &Clock::system()).unwrap_err();
    assert!(error.to_string().contains("ca.key is missing"), "{error}");
    assert!(!state.path().join("ca.key").exists());
}

#[test]
fn an_expired_ca_is_an_error_that_says_when() {
    let state = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let authority = Authority::open(state.path(), &clock).unwrap();
    clock.advance(Duration::from_hours(3651 * 24));
    let error = Authority::open(state.path(), &clock).unwrap_err();
    assert!(error.to_string().contains(&authority.not_after().to_string()), "{error}");
}

#[test]
fn a_directory_that_cannot_be_written_is_an_error_with_its_path() {
    let state = tempfile::tempdir().unwrap();
    let file = state.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Authority::open(&file.join("state"), &Clock::system()).unwrap_err();
    assert!(error.to_string().contains("file/state"), "{error}");
}

#[test]
fn a_bundle_holds_the_ca_and_the_roots() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (one, two) = (open(one.path()), open(two.path()));
    let bundle = one.bundle_pem(&[two.ca_der()]);
    assert_eq!(bundle, format!("{}{}", one.ca_pem(), two.ca_pem()));
    assert_eq!(pem::parse_many(&bundle).unwrap().len(), 2);
}

#[test]
fn the_fingerprint_is_what_openssl_prints() {
    let state = tempfile::tempdir().unwrap();
    let authority = open(state.path());
    let output = Command::new("openssl")
        .args(["x509", "-noout", "-fingerprint", "-sha256", "-in"])
        .arg(state.path().join("ca.crt"))
        .output()
        .unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.trim().ends_with(&authority.fingerprint_sha256()), "{printed}");
}

fn days(count: u64) -> Duration {
    Duration::from_hours(count * 24)
}

/// Whether the leaf for `name` is signed by `ca`, according to `openssl verify` with that CA only.
fn is_signed_by(authority: &Arc<Authority>, name: &str, ca: &str) -> bool {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("ca.crt"), ca).unwrap();
    strictly_verifies(dir.path(), &authority.leaf(&host(name)).unwrap().cert[0])
}

#[test]
fn the_next_ca_is_trusted_at_once_and_mints_from_its_date_on() {
    let state = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let authority = Authority::open(state.path(), &clock).unwrap();
    let old = authority.ca_pem();
    authority.leaf(&host("example.org")).unwrap();
    // Less than the time by which leaves are backdated: openssl reads the system's clock.
    authority.rotate(days(1)).unwrap();
    let anchors = authority.all();
    let [first, next] = anchors.as_slice() else { panic!("{anchors:?}") };
    assert_eq!(authority.ca_pem(), format!("{}{}", first.pem, next.pem));
    assert!(first.pem == old && first.mints && !next.mints && next.from.is_some());
    assert!(is_signed_by(&authority, "example.org", &old));
    assert!(!is_signed_by(&authority, "example.org", &next.pem), "the control");
    assert!(authority.finish().is_err(), "nobody is to lose the old one before its time");
    assert!(authority.rotate(days(1)).is_err(), "one change at a time");
    clock.advance(Duration::from_hours(25));
    // The leaf that was signed before would still be valid.
    assert!(is_signed_by(&authority, "example.org", &next.pem));
    assert!(!is_signed_by(&authority, "example.org", &old));
    assert_eq!(authority.all().len(), 2);
    let again = Authority::open(state.path(), &clock).unwrap();
    assert_eq!(again.all(), authority.all(), "a restart changes nothing");
    authority.finish().unwrap();
    assert_eq!(authority.ca_pem(), next.pem);
    assert!(is_signed_by(&authority, "example.org", &next.pem));
    let left: Vec<_> =
        fs::read_dir(state.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("next")), "{left:?}");
}

#[test]
fn a_change_that_a_crash_cut_short_goes_on() {
    let state = tempfile::tempdir().unwrap();
    let authority = open(state.path());
    authority.rotate(Duration::ZERO).unwrap();
    let next = authority.all()[1].pem.clone();
    // A crash between the first two writes of `finish`.
    fs::copy(state.path().join("ca.next.key"), state.path().join("ca.key")).unwrap();
    let again = open(state.path());
    assert!(is_signed_by(&again, "example.org", &next));
    again.finish().unwrap();
    assert_eq!(open(state.path()).ca_pem(), next);
    // Without its certificate there is no next CA.
    let state = tempfile::tempdir().unwrap();
    let authority = open(state.path());
    authority.rotate(Duration::ZERO).unwrap();
    fs::remove_file(state.path().join("ca.next.crt")).unwrap();
    assert_eq!(open(state.path()).all().len(), 1);
}

#[test]
fn an_expired_ca_may_be_followed() {
    let state = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let authority = Authority::open(state.path(), &clock).unwrap();
    clock.advance(days(3640));
    authority.rotate(days(5)).unwrap();
    clock.advance(days(20));
    let again = Authority::open(state.path(), &clock).unwrap();
    assert!(again.all()[1].mints && again.not_after() > clock.now());
}

#[test]
fn leaves_end_with_their_ca() {
    let state = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let authority = Authority::open(state.path(), &clock).unwrap();
    clock.advance(days(3600));
    let leaf = authority.leaf(&host("example.org")).unwrap();
    let (_, leaf) = X509Certificate::from_der(&leaf.cert[0]).unwrap();
    assert_eq!(leaf.validity().not_after.timestamp(), authority.not_after().as_millis() / 1000);
}

#[test]
fn a_limited_ca_speaks_for_its_names_alone() {
    let state = tempfile::tempdir().unwrap();
    let permitted = ["example.org".to_owned()];
    let authority = Authority::limited(state.path(), &permitted, &Clock::system()).unwrap();
    for (name, allowed) in [
        ("example.org", true),
        ("files.example.org", true),
        ("0.probe.larder.internal", true),
        ("badexample.org", false),
        ("example.net", false),
        ("192.0.2.1", false),
    ] {
        assert_eq!(authority.check(&host(name)).is_ok(), allowed, "{name}");
        assert_eq!(authority.leaf(&host(name)).is_ok(), allowed, "{name}");
    }
    let told = authority.check(&host("example.net")).unwrap_err().to_string();
    assert!(told.contains("limited to example.org") && told.contains("ca.permitted"), "{told}");
    // Clients enforce it: a leaf for another name is rejected although the CA's key signed it.
    let ca = Ca::open(state.path(), &[], Clock::system().now(), false).unwrap();
    let sign = |name: &str| {
        let key = rcgen::KeyPair::generate().unwrap();
        let params = leaf::params(&ca, &host(name), Clock::system().now()).unwrap();
        let leaf = params.signed_by(&key, &ca.issuer).unwrap();
        strictly_verifies(state.path(), leaf.der())
    };
    assert!(sign("files.example.org"), "the control");
    assert!(!sign("example.net") && !sign("192.0.2.1"));
}

/// An operator's CA with these `extensions`, made by openssl as operators do.
fn made_elsewhere(dir: &Path, extensions: &str, days: &str) -> (String, String) {
    let config =
        format!("[req]\ndistinguished_name=d\nx509_extensions=e\n[d]\n[e]\n{extensions}\n");
    fs::write(dir.join("c"), config).unwrap();
    let output = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args([
            "-subj",
            "/CN=Corporate CA",
            "-days",
            days,
            "-keyout",
            "k",
            "-out",
            "o",
            "-config",
            "c",
        ])
        .current_dir(dir)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    (fs::read_to_string(dir.join("o")).unwrap(), fs::read_to_string(dir.join("k")).unwrap())
}

#[test]
fn a_ca_that_was_made_elsewhere_is_taken_whole_or_not_at_all() {
    const GOOD: &str = "basicConstraints=critical,CA:true,pathlen:0\nkeyUsage=critical,keyCertSign\n\
                        subjectKeyIdentifier=hash\n";
    let dir = tempfile::tempdir().unwrap();
    let (cert, key) = made_elsewhere(dir.path(), GOOD, "100");
    let (_, stranger) = made_elsewhere(dir.path(), GOOD, "100");
    let (leaf, leaf_key) = made_elsewhere(dir.path(), "basicConstraints=CA:false", "100");
    let (mute, mute_key) = made_elsewhere(
        dir.path(),
        "basicConstraints=critical,CA:true\nkeyUsage=critical,cRLSign\nsubjectKeyIdentifier=hash",
        "100",
    );
    let state = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let authority = Authority::open(state.path(), &clock).unwrap();
    let before = authority.ca_pem();
    for (cert, key, why) in [
        (&*cert, &*stranger, "does not belong"),
        (&*leaf, &*leaf_key, "not the certificate of a CA"),
        (&*mute, &*mute_key, "keyCertSign"),
        (&*cert, "nothing", "the key cannot be used"),
        ("nothing", &*key, "not PEM"),
    ] {
        let error = authority.import(cert, key, Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains(why) && error.contains("stays as it is"), "{error}");
        assert!(!state.path().join("ca.next.key").exists(), "{why}: nothing half-imported");
    }
    clock.advance(days(101));
    let late = authority.import(&cert, &key, Duration::ZERO).unwrap_err().to_string();
    assert!(late.contains("expired"), "{late}");
    let authority = open(state.path());
    assert_eq!(authority.ca_pem(), before);
    authority.import(&cert, &key, Duration::ZERO).unwrap();
    let mode = fs::metadata(state.path().join("ca.next.key")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    assert!(is_signed_by(&authority, "example.org", &cert));
    assert!(!is_signed_by(&authority, "example.org", &before), "the control");
    authority.finish().unwrap();
    assert!(is_signed_by(&open(state.path()), "example.org", &cert));
}

/// Whether clients that trust only `roots` accept the chain for `name` that a handshake sends.
fn chain_verifies(authority: &Arc<Authority>, name: &str, roots: &str) -> bool {
    let leaf = authority.leaf(&host(name)).unwrap();
    let sent: Vec<_> = leaf.cert.iter().map(|der| encode_pem("CERTIFICATE", der)).collect();
    clients_accept(&sent[0], &sent.concat(), roots)
}

/// Whether clients that trust only `roots` accept the certificate `leaf`, sent with the certificates `sent`.
fn clients_accept(leaf: &str, sent: &str, roots: &str) -> bool {
    let dir = tempfile::tempdir().unwrap();
    for (name, text) in [("roots", roots), ("leaf", leaf), ("sent", sent)] {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let output = Command::new("openssl")
        .args(["verify", "-x509_strict", "-purpose", "sslserver", "-CAfile", "roots"])
        .args(["-untrusted", "sent", "leaf"])
        .current_dir(dir.path())
        .output()
        .unwrap();
    output.status.success()
}

/// A CA for `subject` with `key`, signed by `issuer` or by itself.
fn certified(
    subject: &str,
    key: &rcgen::KeyPair,
    issuer: Option<&rcgen::Issuer<'_, &rcgen::KeyPair>>,
) -> (rcgen::CertificateParams, String) {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, subject);
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    params.use_authority_key_identifier_extension = true;
    params.not_before = ca::date(Clock::system().now()).unwrap();
    params.not_after = params.not_before + days(100);
    let certificate = match issuer {
        Some(issuer) => params.signed_by(key, issuer),
        None => params.self_signed(key),
    };
    (params, encode_pem("CERTIFICATE", certificate.unwrap().der()))
}

/// Companies sign with a CA below their root, and all their machines trust the root.
#[test]
fn a_ca_below_another_is_taken_with_its_root_which_is_what_clients_trust() {
    let keys: Vec<_> = (0..3).map(|_| rcgen::KeyPair::generate().unwrap()).collect();
    let [top, middle, low] = keys.as_slice() else { panic!() };
    let (params, root) = certified("Corporate root", top, None);
    let issuer = rcgen::Issuer::new(params, top);
    let (params, intermediate) = certified("Corporate CA", middle, Some(&issuer));
    let issuer = rcgen::Issuer::new(params, middle);
    let (_, ours) = certified("CA for larder", low, Some(&issuer));
    let (_, stranger) = certified("Another root", top, None);
    let state = tempfile::tempdir().unwrap();
    let authority = open(state.path());
    let key = low.serialize_pem();
    for (cert, why) in [
        (ours.clone(), "is signed by CN=Corporate CA, whose certificate is not there"),
        (format!("{ours}{intermediate}"), "is signed by CN=Corporate root"),
        (format!("{ours}{intermediate}{stranger}"), "CN=Another root where CN=Corporate root"),
        (format!("{ours}{root}"), "CN=Corporate root where CN=Corporate CA"),
        (format!("{root}{ours}"), "CN=CA for larder below a root"),
        (format!("{ours}{}", intermediate.repeat(9)), "more than"),
    ] {
        let error = authority.import(&cert, &key, Duration::ZERO).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        assert!(!state.path().join("ca.next.key").exists(), "{why}");
    }
    authority.import(&format!("{ours}{intermediate}{root}"), &key, Duration::ZERO).unwrap();
    for authority in [&authority, &open(state.path())] {
        assert!(chain_verifies(authority, "example.org", &root));
        assert!(!chain_verifies(authority, "example.org", &stranger), "the control");
        assert_eq!(authority.all().last().unwrap().pem, root);
    }
    authority.finish().unwrap();
    let again = open(state.path());
    assert_eq!(again.ca_pem(), root);
    assert!(chain_verifies(&again, "example.org", &again.ca_pem()));
}

/// A company renews its CA's certificate for the existing key.
#[test]
fn a_certificate_that_was_renewed_for_the_same_key_follows_like_any_other() {
    let state = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let authority = Authority::open(state.path(), &clock).unwrap();
    let key = fs::read_to_string(state.path().join("ca.key")).unwrap();
    let pair = rcgen::KeyPair::from_pem(&key).unwrap();
    let (_, renewed) = certified("Renewed", &pair, None);
    let old = authority.ca_pem();
    authority.import(&renewed, &key, days(1)).unwrap();
    for authority in [&authority, &Authority::open(state.path(), &clock).unwrap()] {
        assert_eq!(authority.ca_pem(), format!("{old}{renewed}"));
        assert!(is_signed_by(authority, "example.org", &old), "who trusts the old one has a day");
    }
    clock.advance(Duration::from_hours(25));
    authority.finish().unwrap();
    assert_eq!(authority.ca_pem(), renewed);
}

/// No client accepts what an expired CA signs, and a larder that cannot start serves no client.
#[test]
fn no_change_leaves_a_time_without_a_ca() {
    let state = tempfile::tempdir().unwrap();
    let clock = Clock::system();
    let authority = Authority::open(state.path(), &clock).unwrap();
    clock.advance(days(3640));
    authority.rotate(days(30)).unwrap();
    let [old, next] = authority.all().try_into().unwrap();
    assert_eq!(next.from, Some(old.not_after));
    clock.advance(days(11));
    for authority in [&authority, &Authority::open(state.path(), &clock).unwrap()] {
        assert!(authority.all()[1].mints && authority.not_after() > clock.now());
    }
    // A CA that expires before it would be used is refused.
    let (state, clock, dir) =
        (tempfile::tempdir().unwrap(), Clock::system(), tempfile::tempdir().unwrap());
    let authority = Authority::open(state.path(), &clock).unwrap();
    let made = "basicConstraints=critical,CA:true\nkeyUsage=critical,keyCertSign\n";
    let (cert, key) = made_elsewhere(dir.path(), made, "5");
    let error = authority.import(&cert, &key, days(30)).unwrap_err().to_string();
    assert!(error.contains("before it would be used"), "{error}");
    // A next CA that expires unused is ignored, and another may replace it.
    authority.import(&cert, &key, days(4)).unwrap();
    clock.advance(days(6));
    let again = Authority::open(state.path(), &clock).unwrap();
    assert_eq!(again.all().len(), 1);
    assert!(again.finish().is_err());
    again.rotate(days(30)).unwrap();
    assert_eq!(Authority::open(state.path(), &clock).unwrap().all().len(), 2);
}

#[test]
fn a_ca_that_is_not_for_servers_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let state = tempfile::tempdir().unwrap();
    let authority = open(state.path());
    for (purpose, taken) in [("codeSigning", false), ("serverAuth,clientAuth", true)] {
        let made = format!(
            "basicConstraints=critical,CA:true\nkeyUsage=critical,keyCertSign\nextendedKeyUsage={purpose}\n"
        );
        let (cert, key) = made_elsewhere(dir.path(), &made, "100");
        let result = authority.import(&cert, &key, Duration::ZERO);
        assert_eq!(result.is_ok(), taken, "{purpose}: {result:?}");
    }
}
