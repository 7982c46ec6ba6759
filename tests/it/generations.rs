//! Archives that are published while clients read them: larder shows them as they were before or as they are after, and never a
//! mixture. The control of each test is what the origin itself serves at that moment.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use larder::digest::Algorithm;

use crate::signed::{Key, world_trusting};
use crate::world::archive::hex;
use crate::world::{Origin, Page, World};

pub(crate) const SUITE: &str = "/debian/dists/gears";

/// One published state of an archive.
pub(crate) struct State {
    pub(crate) release: Vec<u8>,
    pub(crate) text: String,
    members: Vec<(String, Vec<u8>)>,
}

impl State {
    /// State number `number`, with these members, each with different bytes. Each member names one package, whose bytes are the
    /// member's name.
    pub(crate) fn new(key: &Key, number: u32, by_hash: bool, names: &[&str]) -> Self {
        let members: Vec<(String, Vec<u8>)> = names
            .iter()
            .map(|name| {
                let text = format!(
                    "Package: gear{number}\nFilename: pool/main/g/gear_{number}_all.deb\nSize: {}\nSHA256: {}\nDescription: {name}\n\n",
                    name.len(),
                    hex(Algorithm::Sha256, name.as_bytes())
                );
                ((*name).to_owned(), text.into_bytes())
            })
            .collect();
        let mut text = format!(
            "Origin: x\nSuite: stable\nCodename: gears\nArchitectures: all amd64\nComponents: main\n\
             Date: Fri, 20 Nov 2020 12:{:02}:{:02} UTC\n{}SHA256:\n",
            number / 60,
            number % 60,
            if by_hash { "Acquire-By-Hash: yes\n" } else { "" }
        );
        for (name, bytes) in &members {
            writeln!(text, " {} {} {name}", hex(Algorithm::Sha256, bytes), bytes.len()).unwrap();
        }
        Self { release: key.clear_sign(&text), text, members }
    }

    pub(crate) fn put(&self, origin: &Origin) {
        self.put_release(origin);
        for (name, _) in &self.members {
            self.put_member(origin, name);
        }
    }

    pub(crate) fn put_release(&self, origin: &Origin) {
        origin.put(&format!("{SUITE}/InRelease"), Page::new(self.release.clone()));
    }

    pub(crate) fn put_member(&self, origin: &Origin, name: &str) {
        origin.put(&format!("{SUITE}/{name}"), Page::new(self.bytes(name).to_vec()));
        let named = self.by_hash(name);
        origin.put(&format!("{SUITE}/{named}"), Page::new(self.bytes(name).to_vec()));
    }

    pub(crate) fn bytes(&self, name: &str) -> &[u8] {
        &self.members.iter().find(|(known, _)| known == name).unwrap().1
    }

    pub(crate) fn by_hash(&self, name: &str) -> String {
        let (directory, _) = name.rsplit_once('/').unwrap();
        format!("{directory}/by-hash/SHA256/{}", hex(Algorithm::Sha256, self.bytes(name)))
    }
}

/// A client's connection that is used for several requests.
struct Line {
    sender: http1::SendRequest<Empty<Bytes>>,
    host: String,
    /// The prefix of the path: empty inside a tunnel.
    before: String,
}

#[derive(Debug)]
struct Came {
    status: StatusCode,
    said: String,
    body: Bytes,
}

impl Line {
    async fn new(world: &World, origin: &Origin) -> Self {
        let host = origin.authority();
        let plain = origin.url("").starts_with("http:");
        let (sender, before) = if plain {
            let (sender, line) =
                http1::handshake(TokioIo::new(world.client.dial().await)).await.unwrap();
            tokio::spawn(line);
            (sender, format!("http://{host}"))
        } else {
            let tunnel = world.client.inside(&host).await.unwrap();
            let (sender, line) = http1::handshake(TokioIo::new(tunnel)).await.unwrap();
            tokio::spawn(line);
            (sender, String::new())
        };
        Self { sender, host, before }
    }

    /// A GET as apt sends it; a truncated answer is an error.
    async fn get(&mut self, path: &str) -> Result<Came, String> {
        self.get_with(path, ("cache-control", "max-age=0")).await
    }

    async fn get_with(&mut self, path: &str, header: (&str, &str)) -> Result<Came, String> {
        let request = Request::get(format!("{}{SUITE}/{path}", self.before))
            .header("host", &self.host)
            .header(header.0, header.1)
            .body(Empty::new())
            .unwrap();
        self.sender.ready().await.map_err(|error| error.to_string())?;
        let answer = self.sender.send_request(request).await.map_err(|error| error.to_string())?;
        let status = answer.status();
        let said = answer.headers().get("cache-status").map_or("", |said| said.to_str().unwrap());
        let said = said.to_owned();
        let body = answer.into_body().collect().await.map_err(|error| error.to_string())?;
        Ok(Came { status, said, body: body.to_bytes() })
    }
}

/// A larder that trusts an archive's key, and the archive, over https or over http. Each has an environment of its own, because
/// what one mirror of an archive gave would answer for the other.
pub(crate) async fn archive(https: bool) -> (tempfile::TempDir, Key, World, Origin) {
    let dir = tempfile::tempdir().unwrap();
    let key = Key::new(dir.path(), "archive");
    let world = world_trusting(Some(&key)).await;
    let origin =
        if https { world.another("127.0.0.1").await } else { Origin::plain("127.0.0.1").await };
    (dir, key, world, origin)
}

/// Advances the clock beyond the seconds in which a revalidation also counts for the next request.
pub(crate) fn later(world: &World) {
    world.proxy.clock.advance(Duration::from_secs(6));
}

pub(crate) const PACKAGES: &str = "main/binary-all/Packages";
const OTHER: &str = "main/binary-amd64/Packages";

#[tokio::test(flavor = "multi_thread")]
async fn the_previous_generation_is_given_until_the_new_one_is_whole() {
    for (by_hash, https) in [(false, true), (false, false), (true, true), (true, false)] {
        let (_dir, key, world, origin) = archive(https).await;
        let origin = &origin;
        let states: Vec<State> =
            (1..=3).map(|number| State::new(&key, number, by_hash, &[PACKAGES])).collect();
        let [one, two, three] = &states[..] else { panic!() };
        one.put(origin);
        let mut line = Line::new(&world, origin).await;
        assert_eq!(line.get("InRelease").await.unwrap().body, one.release);
        assert_eq!(line.get(PACKAGES).await.unwrap().body, one.bytes(PACKAGES));
        // The Release first: its members are not there yet.
        two.put_release(origin);
        later(&world);
        for mut line in [line, Line::new(&world, origin).await] {
            let release = line.get("InRelease").await.unwrap();
            assert_eq!(release.body, one.release, "{}", release.said);
            assert!(release.said.contains("signed+stale"), "{}", release.said);
            assert_eq!(line.get(PACKAGES).await.unwrap().body, one.bytes(PACKAGES));
        }
        // The next request finds the new state complete.
        two.put_member(origin, PACKAGES);
        let mut line = Line::new(&world, origin).await;
        let release = line.get("InRelease").await.unwrap();
        assert_eq!(release.body, two.release, "{}", release.said);
        assert!(!release.said.contains("stale"), "{}", release.said);
        let gets = origin.gets(&format!("{SUITE}/{PACKAGES}"));
        let packages = line.get(PACKAGES).await.unwrap();
        assert_eq!(packages.body, two.bytes(PACKAGES));
        assert!(packages.said.contains("hit; detail=\"signed\""), "{}", packages.said);
        assert_eq!(origin.gets(&format!("{SUITE}/{PACKAGES}")), gets, "it was fetched before");
        // The members first: a client that read the old Release gets the members that it names.
        three.put_member(origin, PACKAGES);
        later(&world);
        for mut line in [line, Line::new(&world, origin).await] {
            assert_eq!(line.get("InRelease").await.unwrap().body, two.release);
            assert_eq!(line.get(PACKAGES).await.unwrap().body, two.bytes(PACKAGES));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_gets_the_members_of_the_release_that_it_has_read() {
    for https in [true, false] {
        let (_dir, key, world, origin) = archive(https).await;
        let origin = &origin;
        let one = State::new(&key, 1, false, &[PACKAGES, OTHER]);
        let two = State::new(&key, 2, false, &[PACKAGES, OTHER]);
        one.put(origin);
        let mut early = Line::new(&world, origin).await;
        early.get("InRelease").await.unwrap();
        Line::new(&world, origin).await.get(PACKAGES).await.unwrap();
        two.put(origin);
        later(&world);
        let mut late = Line::new(&world, origin).await;
        assert_eq!(late.get("InRelease").await.unwrap().body, two.release);
        assert_eq!(late.get(PACKAGES).await.unwrap().body, two.bytes(PACKAGES));
        let packages = early.get(PACKAGES).await.unwrap();
        assert_eq!(packages.body, one.bytes(PACKAGES), "{}", packages.said);
        assert!(packages.said.contains("signed"), "{}", packages.said);
        // A connection that has read nothing gets the newest state.
        let mut fresh = Line::new(&world, origin).await;
        assert_eq!(fresh.get(PACKAGES).await.unwrap().body, two.bytes(PACKAGES));
        // After the first connection has read the new Release, it gets the new members too.
        later(&world);
        assert_eq!(early.get("InRelease").await.unwrap().body, two.release);
        assert_eq!(early.get(PACKAGES).await.unwrap().body, two.bytes(PACKAGES));
    }
}

/// No client has the old bytes any more, so no answer is right; the one thing that would be wrong is to give the new bytes.
#[tokio::test(flavor = "multi_thread")]
async fn bytes_of_another_generation_are_never_given() {
    let names: Vec<String> = (0..20).map(|n| format!("main/binary-a{n}/Packages")).collect();
    // More than larder fetches by itself of an archive that it sees for the first time.
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    for https in [true, false] {
        let (_dir, key, world, origin) = archive(https).await;
        let origin = &origin;
        let one = State::new(&key, 1, false, &names);
        let two = State::new(&key, 2, false, &names);
        one.put(origin);
        let mut line = Line::new(&world, origin).await;
        assert_eq!(line.get("InRelease").await.unwrap().body, one.release);
        two.put_member(origin, names[0]);
        let came = line.get(names[0]).await;
        let wrong = came.as_ref().is_ok_and(|came| came.status == StatusCode::OK);
        assert!(!wrong, "{came:?}");
        let mut line = Line::new(&world, origin).await;
        let passed = line.get_with(names[0], ("x-odd", "1")).await.unwrap();
        assert_eq!(passed.status, StatusCode::BAD_GATEWAY, "{}", passed.said);
        // This causes no quarantine: a moment later the right bytes are given.
        one.put_member(origin, names[0]);
        let passed = line.get_with(names[0], ("x-odd", "1")).await.unwrap();
        assert_eq!(passed.body, one.bytes(names[0]), "{}", passed.said);
        let mut line = Line::new(&world, origin).await;
        line.get("InRelease").await.unwrap();
        assert_eq!(line.get(names[0]).await.unwrap().body, one.bytes(names[0]));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_archive_met_while_it_is_published_is_read_until_it_is_of_one_piece() {
    for https in [true, false] {
        let (_dir, key, world, origin) = archive(https).await;
        let origin = &origin;
        let one = State::new(&key, 1, false, &[PACKAGES]);
        let two = State::new(&key, 2, false, &[PACKAGES]);
        // Packages are new already; the Release follows after it was requested twice.
        two.put(origin);
        let asked = Arc::new(AtomicUsize::new(0));
        let (old, new) = (one.release.clone(), two.release.clone());
        origin.script(&format!("{SUITE}/InRelease"), move |request| {
            let first = asked.fetch_add(1, Ordering::SeqCst) < 2;
            let page = Page::new(if first { old.clone() } else { new.clone() });
            async move {
                let mut page = page;
                page.answer(request.method(), request.headers())
            }
        });
        let mut line = Line::new(&world, origin).await;
        assert_eq!(line.get("InRelease").await.unwrap().body, two.release);
        assert_eq!(line.get(PACKAGES).await.unwrap().body, two.bytes(PACKAGES));
    }
}

/// A user who publishes to an own archive reads it a moment later, and wants what was published. Archives list more than they
/// have: a member that never existed, or no longer exists, belongs to no version.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_generation_of_one_piece_is_given_at_once() {
    const NEVER: &str = "main/i18n/Translation-en";
    for https in [true, false] {
        let (_dir, key, world, origin) = archive(https).await;
        let origin = &origin;
        let all = [PACKAGES, OTHER, NEVER];
        let states = [
            State::new(&key, 1, false, &all),
            State::new(&key, 2, false, &all),
            // A member that builds used is no longer in it.
            State::new(&key, 3, false, &[PACKAGES, NEVER]),
            State::new(&key, 4, false, &[PACKAGES, NEVER]),
        ];
        for state in &states {
            state.put_release(origin);
            for (name, _) in state.members.iter().filter(|(name, _)| name != NEVER) {
                state.put_member(origin, name);
            }
            later(&world);
            for _ in 0..2 {
                let mut line = Line::new(&world, origin).await;
                let release = line.get("InRelease").await.unwrap();
                assert_eq!(release.body, state.release, "{}", release.said);
                assert!(!release.said.contains("stale"), "{}", release.said);
                for (name, bytes) in &state.members {
                    let member = line.get(name).await.unwrap();
                    let expected =
                        if name == NEVER { StatusCode::NOT_FOUND } else { StatusCode::OK };
                    assert_eq!(member.status, expected, "{name}: {}", member.said);
                    assert!(name == NEVER || member.body == bytes, "{name}: {}", member.said);
                }
            }
        }
    }
}

/// A member that is listed and no longer exists holds a new version back once. The version that then counts does not have the
/// member, so no client uses it afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn a_member_that_is_gone_for_good_holds_back_once() {
    for https in [true, false] {
        let (_dir, key, world, origin) = archive(https).await;
        let origin = &origin;
        let states: Vec<State> =
            (1..=3).map(|number| State::new(&key, number, false, &[PACKAGES, OTHER])).collect();
        let [one, two, three] = &states[..] else { panic!() };
        let release = async || {
            later(&world);
            let mut line = Line::new(&world, origin).await;
            let release = line.get("InRelease").await.unwrap();
            line.get(PACKAGES).await.unwrap();
            release.body
        };
        one.put(origin);
        assert_eq!(release().await, one.release);
        Line::new(&world, origin).await.get(OTHER).await.unwrap();
        origin.put(&format!("{SUITE}/{OTHER}"), Page::status(404));
        two.put_release(origin);
        two.put_member(origin, PACKAGES);
        assert_eq!(release().await, one.release, "the control: a version that is not whole");
        world.proxy.clock.advance(Duration::from_mins(31));
        assert_eq!(release().await, two.release);
        three.put_release(origin);
        three.put_member(origin, PACKAGES);
        assert_eq!(release().await, three.release);
    }
}

/// Each attempt to fetch a new state brings some of its members; those of the state that is served stay stored.
#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_is_shown_keeps_its_members_however_many_are_half_published() {
    for https in [true, false] {
        let (_dir, key, world, origin) = archive(https).await;
        let origin = &origin;
        let one = State::new(&key, 1, false, &[PACKAGES, OTHER]);
        one.put(origin);
        let mut line = Line::new(&world, origin).await;
        line.get("InRelease").await.unwrap();
        for name in [PACKAGES, OTHER] {
            line.get(name).await.unwrap();
        }
        for number in 2..10 {
            let next = State::new(&key, number, false, &[PACKAGES, OTHER]);
            next.put_release(origin);
            next.put_member(origin, PACKAGES);
            later(&world);
            let mut line = Line::new(&world, origin).await;
            assert_eq!(line.get("InRelease").await.unwrap().body, one.release, "{number}");
            let came = line.get(PACKAGES).await.unwrap();
            assert_eq!(came.body, one.bytes(PACKAGES), "{number}: {}", came.said);
        }
        let last = State::new(&key, 10, false, &[PACKAGES, OTHER]);
        last.put(origin);
        later(&world);
        let mut line = Line::new(&world, origin).await;
        assert_eq!(line.get("InRelease").await.unwrap().body, last.release, "the control");
    }
}

/// nexspence#77: an expired index was served for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_generation_is_not_held_back_for_ever() {
    for https in [true, false] {
        let (_dir, key, world, origin) = archive(https).await;
        let origin = &origin;
        let one = State::new(&key, 1, false, &[PACKAGES]);
        let two = State::new(&key, 2, false, &[PACKAGES]);
        one.put(origin);
        let mut line = Line::new(&world, origin).await;
        line.get("InRelease").await.unwrap();
        line.get(PACKAGES).await.unwrap();
        two.put_release(origin);
        later(&world);
        let line = Line::new(&world, origin).await.get("InRelease").await.unwrap();
        assert_eq!(line.body, one.release);
        world.proxy.clock.advance(Duration::from_mins(31));
        let line = Line::new(&world, origin).await.get("InRelease").await.unwrap();
        assert_eq!(line.body, two.release);
    }
}

/// nexus-apt#46: a 404 from an archive that was incomplete was taken as final.
#[tokio::test(flavor = "multi_thread")]
async fn a_404_says_nothing_where_the_archive_has_the_index_under_its_digest() {
    for (by_hash, https) in [(false, true), (false, false), (true, true), (true, false)] {
        let (_dir, key, world, origin) = archive(https).await;
        let origin = &origin;
        let names = ["main/binary-all/Packages", "main/binary-amd64/Packages"];
        let state = State::new(&key, 1, by_hash, &names);
        // One is served only under its digest; the other is listed, and served nowhere.
        state.put_release(origin);
        let page = Page::new(state.bytes(names[0]).to_vec());
        origin.put(&format!("{SUITE}/{}", state.by_hash(names[0])), page);
        let mut line = Line::new(&world, origin).await;
        assert_eq!(line.get("InRelease").await.unwrap().body, state.release);
        let packages = line.get(names[0]).await.unwrap();
        if by_hash {
            assert_eq!(packages.body, state.bytes(names[0]), "{}", packages.said);
            assert!(packages.said.contains("signed"), "{}", packages.said);
        } else {
            assert_eq!(packages.status, StatusCode::NOT_FOUND, "it does not say so");
        }
        let absent = line.get(names[1]).await.unwrap();
        assert_eq!(absent.status, StatusCode::NOT_FOUND, "{}", absent.said);
    }
}

/// Release and Release.gpg are two files, and no origin replaces two files at once.
#[tokio::test(flavor = "multi_thread")]
async fn a_release_and_its_signature_are_of_one_generation() {
    for https in [true, false] {
        let (dir, key, world, origin) = archive(https).await;
        let one = State::new(&key, 1, false, &[PACKAGES]);
        let two = State::new(&key, 2, false, &[PACKAGES]);
        let three = State::new(&key, 3, false, &[PACKAGES]);
        let signature = |state: &State| {
            let file = dir.path().join("Release");
            std::fs::write(&file, &state.text).unwrap();
            key.gpg(&["--armor", "--output", "-", "--detach-sign", file.to_str().unwrap()]).stdout
        };
        let signatures = [signature(&one), signature(&two), signature(&three)];
        let put = |name: &str, bytes: &[u8]| {
            origin.put(&format!("{SUITE}/{name}"), Page::new(bytes.to_vec()));
        };
        one.put_member(&origin, PACKAGES);
        put("Release", one.text.as_bytes());
        put("Release.gpg", &signatures[0]);
        let mut first = Line::new(&world, &origin).await;
        assert_eq!(first.get("InRelease").await.unwrap().status, StatusCode::NOT_FOUND);
        let expect = async |line: &mut Line, state: &State, signature: &[u8], proof: &str| {
            let release = line.get("Release").await.unwrap();
            assert_eq!(release.body, state.text, "{}", release.said);
            assert!(release.said.contains(proof), "{}", release.said);
            assert_eq!(line.get("Release.gpg").await.unwrap().body, signature);
            assert_eq!(line.get(PACKAGES).await.unwrap().body, state.bytes(PACKAGES));
        };
        expect(&mut first, &one, &signatures[0], "\"signed\"").await;
        // The new Release beside the old signature: the previous pair is given, which matches.
        two.put_member(&origin, PACKAGES);
        put("Release", two.text.as_bytes());
        later(&world);
        let mut line = Line::new(&world, &origin).await;
        expect(&mut line, &one, &signatures[0], "\"signed+stale\"").await;
        put("Release.gpg", &signatures[1]);
        let mut line = Line::new(&world, &origin).await;
        expect(&mut line, &two, &signatures[1], "\"signed\"").await;
        // The new signature beside the old Release: the same; and each client gets what belongs to the Release it has read.
        put("Release.gpg", &signatures[2]);
        three.put_member(&origin, PACKAGES);
        later(&world);
        expect(&mut line, &two, &signatures[1], "\"signed").await;
        assert_eq!(first.get("Release.gpg").await.unwrap().body, signatures[0]);
        // A signature that was fetched without its Release was not kept. The control: once its Release is there, both are given.
        put("Release", three.text.as_bytes());
        later(&world);
        expect(&mut first, &three, &signatures[2], "\"signed\"").await;
    }
}
