//! Issue 17, faults, row 5: a page that comes in place of an index replaces neither the index nor its claims.

use std::time::Duration;

use larder::digest::Algorithm;

use crate::world::archive::{flipped, hex, simple};
use crate::world::{Got, Mood, Page, World};

const SIGN_IN: &str = "<!DOCTYPE html><html><body><form action=\"/login\">Sign in</form><a href=\"/help\">Help</a></body></html>";

/// An index and a file that it promises.
struct Row {
    name: &'static str,
    index: &'static str,
    accept: &'static str,
    file: &'static str,
    page: fn(&[u8]) -> Page,
}

fn packument(file: &[u8]) -> Page {
    let sha512 = hex(Algorithm::Sha512, file);
    let bytes: Vec<u8> = (0..sha512.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&sha512[at..at + 2], 16).unwrap())
        .collect();
    let integrity = base64(&bytes);
    Page::new(format!(
        "{{\"name\":\"@x/gear\",\"dist-tags\":{{\"latest\":\"1.0.0\"}},\"versions\":{{\"1.0.0\":{{\"name\":\"@x/gear\",\
         \"version\":\"1.0.0\",\"dist\":{{\"tarball\":\"/@x/gear/-/gear-1.0.0.tgz\",\"integrity\":\"sha512-{integrity}\"}}}}}}}}"
    ))
    .header("content-type", "application/json")
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let groups = bytes.chunks(3).map(|three| {
        let all = three.iter().fold(0_u32, |all, byte| all << 8 | u32::from(*byte))
            << (8 * (3 - three.len()));
        let digit = |at: usize| {
            if at > three.len() {
                '='
            } else {
                char::from(DIGITS[(all >> (18 - 6 * at) & 63) as usize])
            }
        };
        (0..4).map(digit).collect::<String>()
    });
    groups.collect()
}

fn packages(file: &[u8]) -> Page {
    let sha256 = hex(Algorithm::Sha256, file);
    Page::new(format!(
        "Package: gear\nVersion: 1.0\nArchitecture: all\nFilename: pool/gear_1.0_all.deb\nSize: {}\nSHA256: {sha256}\n\n",
        file.len()
    ))
}

const ROWS: [Row; 3] = [
    Row {
        name: "PyPI",
        index: "/simple/gear/",
        accept: "text/html",
        file: "/files/gear-1.0-py3-none-any.whl",
        page: |file| simple(&[("/files/gear-1.0-py3-none-any.whl", file)]),
    },
    Row {
        name: "npm",
        index: "/@x%2Fgear",
        accept: "application/json",
        file: "/@x/gear/-/gear-1.0.0.tgz",
        page: packument,
    },
    Row {
        name: "apt",
        index: "/debian/dists/gears/main/binary-all/Packages",
        accept: "*/*",
        file: "/debian/pool/gear_1.0_all.deb",
        page: packages,
    },
];

async fn get(world: &World, row: &Row) -> Got {
    world.proxy.clock.advance(Duration::from_mins(1));
    let ask = world.client.get(&world.origin.url(row.index)).header("accept", row.accept);
    ask.header("cache-control", "max-age=0").send().await.complete()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_page_that_is_no_index_goes_to_its_asker_and_takes_no_place() {
    let html =
        |body: &'static str| Page::new(body).header("content-type", "text/html; charset=utf-8");
    let bad = [
        ("a sign-in page", html(SIGN_IN)),
        ("one without a type", Page::new(SIGN_IN)),
        ("one in capitals", Page::new(SIGN_IN).header("content-type", "Text/HTML")),
        (
            "an error in JSON",
            Page::new("{\"error\":\"maintenance\"}").header("content-type", "application/json"),
        ),
        ("nothing", Page::new("").fresh(3600)),
        ("one that says how long it holds", html(SIGN_IN).fresh(3600).etag("page")),
    ];
    for row in &ROWS {
        for (what, page) in &bad {
            let name = format!("{}, {what}", row.name);
            let world = World::new().await;
            let file = b"a file that never changes".to_vec();
            world.origin.put(row.index, (row.page)(&file));
            let good = get(&world, row).await.body;
            world.origin.put(row.index, page.clone());
            let given = get(&world, row).await;
            assert_eq!(given.body, page.body, "{name}: {}", given.cache_status());
            // Its promises stay in force.
            world.origin.put(row.file, Page::new(flipped(&file)));
            let changed = world.get(&world.origin.url(row.file)).await;
            assert!(!changed.is_complete() || changed.status == 502, "{name}: {changed:?}");
            // It is also what is given while the origin fails.
            world.origin.mood(Mood::Failing(503));
            let stale = get(&world, row).await;
            assert_eq!(stale.body, good, "{name}: {}", stale.cache_status());
            // An empty answer has no last byte that waits for the judgement, so this is checked only now.
            world.proxy.counted("larder_alarms_total", "malformed", 1.0).await;
            let url = world.origin.url(row.index);
            world.told(&["why", &url], "not kept, the index from before stays").await;
            // The control: a real index replaces it, and its promises count.
            world.origin.mood(Mood::Well);
            let next = b"another file".to_vec();
            world.origin.put(row.index, (row.page)(&next));
            world.origin.put(row.file, Page::new(next.clone()));
            world.proxy.clock.advance(Duration::from_mins(2));
            assert_eq!(get(&world, row).await.body, (row.page)(&next).body, "{name}");
            world.proxy.clock.advance(Duration::from_mins(2));
            assert_eq!(world.fetch(&world.origin.url(row.file)).await.body, next, "{name}");
        }
    }
}
