//! Small apk repositories, made from the specification: packages, indexes, and signatures by throw-away keys.
//!
//! The unit tests of the ecosystem build their files here, too.

use std::io::Write as _;

use aws_lc_rs::digest::{Algorithm, SHA1_FOR_LEGACY_USE_ONLY, SHA256, SHA512, digest};
use rsa::pkcs8::EncodePublicKey as _;
use rsa::{Pkcs1v15Sign, RsaPrivateKey};

/// A tar of `files`, without the end-of-archive blocks.
pub(crate) fn cut_tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (name, data) in files {
        let mut header = [0; 512];
        let mut put =
            |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, name);
        put(100, "0000644\0");
        put(108, "0000000\0");
        put(116, "0000000\0");
        put(124, &format!("{:011o}\0", data.len()));
        put(136, "00000000000\0");
        put(148, "        0");
        put(257, "ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.extend(header);
        tar.extend(*data);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar
}

/// A tar of `files`.
pub(crate) fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = cut_tar(files);
    tar.resize(tar.len() + 1024, 0);
    tar
}

/// One gzip member.
pub(crate) fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut to = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    to.write_all(plain).unwrap();
    to.finish().unwrap()
}

/// A builder's key.
pub(crate) struct Key {
    /// The name of its public key file.
    pub(crate) name: String,
    key: RsaPrivateKey,
}

/// The kinds of signatures: the kind's name, the hash, and the `DigestInfo` before the digest (RFC 8017 §9.2).
const KINDS: [(&str, &Algorithm, &[u8]); 3] = [
    (
        "RSA",
        &SHA1_FOR_LEGACY_USE_ONLY,
        b"\x30\x21\x30\x09\x06\x05\x2b\x0e\x03\x02\x1a\x05\x00\x04\x14",
    ),
    (
        "RSA256",
        &SHA256,
        b"\x30\x31\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01\x05\x00\x04\x20",
    ),
    (
        "RSA512",
        &SHA512,
        b"\x30\x51\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x03\x05\x00\x04\x40",
    ),
];

impl Key {
    /// A new key, whose file is called `<name>.rsa.pub`.
    pub(crate) fn new(name: &str) -> Self {
        let key = RsaPrivateKey::new(&mut rand::thread_rng(), 2048).unwrap();
        Self { name: format!("{name}.rsa.pub"), key }
    }

    /// The public key file, in PEM.
    pub(crate) fn pem(&self) -> String {
        let spki = self.key.to_public_key().to_public_key_der().unwrap();
        pem::encode(&pem::Pem::new("PUBLIC KEY", spki.as_bytes()))
    }

    /// A signature of `kind` over `message`.
    pub(crate) fn sign(&self, kind: &str, message: &[u8]) -> Vec<u8> {
        let (_, hash, prefix) = KINDS.iter().find(|(name, ..)| *name == kind).unwrap();
        let scheme = Pkcs1v15Sign { hash_len: Some(hash.output_len()), prefix: (*prefix).into() };
        self.key.sign(scheme, digest(hash, message).as_ref()).unwrap()
    }

    /// The gzip member with a signature of `kind` over `message`.
    pub(crate) fn member(&self, kind: &str, message: &[u8]) -> Vec<u8> {
        member(&format!(".SIGN.{kind}.{}", self.name), &self.sign(kind, message))
    }
}

/// A gzip member with one file, as signatures are stored.
pub(crate) fn member(name: &str, signature: &[u8]) -> Vec<u8> {
    gzip(&cut_tar(&[(name, signature)]))
}

/// A package, as its three parts.
#[derive(Clone)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) signature: Vec<u8>,
    pub(crate) control: Vec<u8>,
    pub(crate) data: Vec<u8>,
}

impl Package {
    /// `name` 1.0-r0 for `x86_64`, signed by `key` as abuild does.
    pub(crate) fn new(name: &str, content: &[u8], key: &Key) -> Self {
        let data = gzip(&tar(&[("usr/share/gear", content)]));
        let info = format!(
            "# made\npkgname = {name}\npkgver = 1.0-r0\narch = x86_64\ndatahash = {}\n",
            datahash(&data)
        );
        let control =
            gzip(&cut_tar(&[(".PKGINFO", info.as_bytes()), (".post-install", b"#!/bin/sh\n")]));
        let signature = key.member("RSA", &control);
        Self { name: name.to_owned(), signature, control, data }
    }

    /// The name of the package's file.
    pub(crate) fn file_name(&self) -> String {
        format!("{}-1.0-r0.apk", self.name)
    }

    /// The package's file.
    pub(crate) fn file(&self) -> Vec<u8> {
        [&self.signature[..], &self.control, &self.data].concat()
    }

    /// The package's index record, with SHA-1 (`Q1`) or SHA-256 (`Q2`), built at `built`.
    pub(crate) fn record(&self, sum: &str, built: u64) -> String {
        let hash = if sum == "Q1" { &SHA1_FOR_LEGACY_USE_ONLY } else { &SHA256 };
        format!(
            "C:{sum}{}\nP:{}\nV:1.0-r0\nA:x86_64\nS:{}\nI:4096\nT:A gear\nt:{built}\np:so:libgear.so.1\n\n",
            base64(digest(hash, &self.control).as_ref()),
            self.name,
            self.file().len(),
        )
    }
}

/// An index of `records`, without a signature.
pub(crate) fn index(records: &str) -> Vec<u8> {
    gzip(&tar(&[("DESCRIPTION", b"gears"), ("APKINDEX", records.as_bytes())]))
}

/// An index of `records`, signed by `key`.
pub(crate) fn signed_index(records: &str, kind: &str, key: &Key) -> Vec<u8> {
    let rest = index(records);
    [key.member(kind, &rest), rest].concat()
}

/// The `datahash` of `data`, as a control part has it.
pub(crate) fn datahash(data: &[u8]) -> String {
    hex(digest(&SHA256, data).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    let digit = |value: u8| char::from_digit(u32::from(value), 16).unwrap();
    bytes.iter().flat_map(|byte| [digit(byte >> 4), digit(byte & 15)]).collect()
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0_u32, |bits, byte| bits << 8 | u32::from(*byte));
        let bits = bits << (8 * (3 - three.len()));
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place) & 63) as usize];
            text.push(if place <= three.len() { char::from(digit) } else { '=' });
        }
    }
    text
}
