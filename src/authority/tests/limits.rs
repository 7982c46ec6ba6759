//! Name constraints of CAs that were made elsewhere: larder says for which hosts clients accept what such a CA signs.

use rcgen::{GeneralSubtree, NameConstraints};

use super::*;

/// Whether clients that trust `roots` accept what `ca` signs for `host`.
fn accept_of(ca: &Ca, host: &Host, roots: &str) -> bool {
    let key = rcgen::KeyPair::generate().unwrap();
    let leaf = leaf::params(ca, host, Clock::system().now()).unwrap();
    let leaf = leaf.signed_by(&key, &ca.issuer).unwrap();
    clients_accept(&encode_pem("CERTIFICATE", leaf.der()), &ca.text(), roots)
}

/// The hosts of which clients accept a certificate. larder must say the same of each.
fn accepted(ca: &Ca, roots: &str, about: &str) -> Vec<&'static str> {
    const LONG: &str =
        "a-name-that-is-longer-than-the-longest-common-name-may-be-there.example.org";
    let hosts =
        ["example.org", "a.example.org", "b.a.example.org", "bexample.org", "192.0.2.1", LONG];
    let accepted = hosts.into_iter().filter(|name| {
        let accepted = accept_of(ca, &host(name), roots);
        assert_eq!(ca.limits.allow(&host(name)), accepted, "{about}: {name}");
        accepted
    });
    accepted.map(|name| if name == LONG { "long" } else { name }).collect()
}

/// RFC 5280 §4.2.1.10, as clients implement it: a name with a leading dot is that of its subdomains only, and a leaf with a
/// subject is held to constraints on subjects.
#[test]
fn larder_speaks_for_the_hosts_for_which_clients_accept_its_ca() {
    const BASIC: &str = "basicConstraints=critical,CA:true\nkeyUsage=critical,keyCertSign\n\
                         subjectKeyIdentifier=hash\nnameConstraints=critical,";
    let all = "example.org a.example.org b.a.example.org bexample.org 192.0.2.1 long";
    for (constraints, names) in [
        ("permitted;DNS:example.org", "example.org a.example.org b.a.example.org 192.0.2.1 long"),
        ("permitted;DNS:.example.org", "a.example.org b.a.example.org 192.0.2.1 long"),
        ("excluded;DNS:.a.example.org", "example.org a.example.org bexample.org 192.0.2.1 long"),
        ("excluded;DNS:a.example.org", "example.org bexample.org 192.0.2.1 long"),
        (
            "permitted;IP:198.51.100.0/255.255.255.0",
            "example.org a.example.org b.a.example.org bexample.org long",
        ),
        ("permitted;email:example.org", all),
        ("permitted;dirName:corp\n[corp]\nO=Corp", all),
        ("excluded;dirName:name\n[name]\nCN=example.org", all),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = made_elsewhere(dir.path(), &format!("{BASIC}{constraints}"), "100");
        let now = Clock::system().now();
        let key = rcgen::KeyPair::from_pem(&key).unwrap();
        let ca = Ca::load(key, dir.path(), &cert, now, false).unwrap();
        assert_eq!(accepted(&ca, &cert, constraints).join(" "), names, "{constraints}");
    }
}

/// A CA may also sign only for what the CAs above it may.
#[test]
fn the_limits_of_the_cas_above_hold_as_well() {
    for limited in 0..3 {
        let keys: Vec<_> = (0..3).map(|_| rcgen::KeyPair::generate().unwrap()).collect();
        let mut above: Option<rcgen::CertificateParams> = None;
        let mut texts = Vec::new();
        for (place, key) in keys.iter().enumerate() {
            let (mut params, _) = certified(&format!("CA {place}"), key, None);
            params.name_constraints = (place == limited).then(|| NameConstraints {
                permitted_subtrees: vec![GeneralSubtree::DnsName("example.org".into())],
                excluded_subtrees: Vec::new(),
            });
            let certificate = match above.take() {
                Some(above) => {
                    params.signed_by(key, &rcgen::Issuer::new(above, &keys[place - 1])).unwrap()
                }
                None => params.self_signed(key).unwrap(),
            };
            texts.push(encode_pem("CERTIFICATE", certificate.der()));
            above = Some(params);
        }
        texts.reverse();
        let state = tempfile::tempdir().unwrap();
        let authority = open(state.path());
        authority.import(&texts.concat(), &keys[2].serialize_pem(), Duration::ZERO).unwrap();
        let told = authority.check(&host("example.net")).unwrap_err().to_string();
        assert!(told.contains("limited to example.org"), "{told}");
        assert!(authority.leaf(&host("example.net")).is_err());
        assert!(chain_verifies(&authority, "a.example.org", texts.last().unwrap()), "the control");
    }
}
