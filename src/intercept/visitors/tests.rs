//! Who gets a seat or a place, and which connection makes room (issue 10, rows 5 and 10).

use super::*;
use crate::config::Config;

fn visitors(change: impl FnOnce(&mut Clients)) -> Arc<Visitors> {
    let mut clients = Config::default().clients;
    change(&mut clients);
    Visitors::new(&clients)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn seated(visitors: &Arc<Visitors>, address: &str) -> Arc<Door> {
    let door = visitors.enter(ip(address)).unwrap();
    assert!(door.has_seat(), "{address}");
    door
}

#[test]
fn an_ipv6_client_is_its_network() {
    assert_eq!(client(ip("2001:db8::1")), client(ip("2001:db8::ffff:1")));
    assert_eq!(client(ip("::ffff:192.0.2.1")), ip("192.0.2.1"));
    // The control: another IPv6 network, and the next IPv4 address, are other clients.
    assert_ne!(client(ip("2001:db8::1")), client(ip("2001:db8:0:1::1")));
    assert_ne!(client(ip("192.0.2.1")), client(ip("192.0.2.2")));
}

#[test]
fn one_address_does_not_get_all_seats() {
    let visitors = visitors(|clients| {
        clients.max_connections = 16;
        clients.connections_per_address = 16;
    });
    let doors: Vec<_> = (0..16).filter_map(|_| visitors.enter(ip("192.0.2.1"))).collect();
    assert_eq!(doors.iter().filter(|door| door.has_seat()).count(), 14);
    let _other = seated(&visitors, "192.0.2.2");
    drop(doors);
    // The control: seats that were given back can be taken again.
    let _again: Vec<_> = (0..14).map(|_| seated(&visitors, "192.0.2.1")).collect();
}

/// A connection that arrives while the last one of its address ends shares its limits with all later ones.
#[test]
fn limits_stay_the_same_while_one_connection_arrives_and_another_ends() {
    let visitors = visitors(|clients| clients.connections_per_address = 2);
    let last = seated(&visitors, "192.0.2.1");
    let arriving = visitors.arrive(ip("192.0.2.1"));
    drop(last);
    let doors: Vec<_> = (0..2).map(|_| seated(&visitors, "192.0.2.1")).collect();
    assert!(doors.iter().all(|door| Arc::ptr_eq(&door.house, &arriving)));
    assert!(!visitors.enter(ip("192.0.2.1")).unwrap().has_seat());
    drop(doors);
    visitors.depart(ip("192.0.2.1"));
    // The control: an address without connections costs no memory.
    assert!(lock(&visitors.addresses).is_empty());
}

#[tokio::test]
async fn the_longest_quiet_of_the_address_with_most_makes_way_and_none_that_is_answered() {
    let visitors = visitors(|clients| {
        clients.max_connections = 12;
        clients.connections_per_address = 9;
    });
    let many: Vec<_> = (0..9).map(|_| seated(&visitors, "192.0.2.1")).collect();
    let busy = many[0].activity().begin();
    let few: Vec<_> = (0..3).map(|_| seated(&visitors, "192.0.2.2")).collect();
    let newcomer = visitors.enter(ip("192.0.2.3")).unwrap();
    assert!(!newcomer.has_seat());
    let left = |doors: &[Arc<Door>]| doors.iter().filter(|d| d.leave.is_cancelled()).count();
    // The control: a connection that has just begun is not quiet yet.
    assert_eq!((left(&many), left(&few)), (0, 0));
    newcomer.house.close_quiet(|_| Some(now()));
    assert_eq!((left(&many), left(&few)), (0, 0), "it has none that could be closed");
    let most = Arc::clone(&many[0].house);
    most.close_quiet(|_| Some(now()));
    assert_eq!((left(&many), left(&few)), (8, 0));
    assert!(!many[0].leave.is_cancelled());
    drop(busy);
}

/// Issue 17, fault 9: tunnels make room too, after the kept connections, which clients just open again, and after a longer time.
#[test]
fn tunnels_make_way_after_all_others_and_who_waits_for_a_server_last() {
    let visitors = visitors(|_| {});
    let (tunnel, asking) = (seated(&visitors, "192.0.2.1"), seated(&visitors, "192.0.2.1"));
    for (door, asks) in [(&tunnel, false), (&asking, true)] {
        // As `tunnel::copy` does.
        std::mem::forget(door.activity().begin());
        door.activity().tunnels(asks);
    }
    assert_eq!(tunnel.activity().quiet(), Some(Quiet::Tunnel));
    assert_eq!(asking.activity().quiet(), Some(Quiet::Asking));
    let kept: Vec<_> = (0..CLOSED_AT_ONCE).map(|_| seated(&visitors, "192.0.2.1")).collect();
    let left = |doors: &[Arc<Door>]| doors.iter().filter(|d| d.leave.is_cancelled()).count();
    let house = Arc::clone(&tunnel.house);
    house.close_quiet(|_| Some(now()));
    let tunnels = [tunnel, asking];
    assert_eq!((left(&kept), left(&tunnels)), (CLOSED_AT_ONCE, 0));
    house.close_quiet(|quiet| (quiet != Quiet::Asking).then(now));
    assert_eq!(left(&tunnels), 1);
    assert!(tunnels[0].leave.is_cancelled());
    assert!(must_be_quiet(Quiet::Asking) > must_be_quiet(Quiet::Tunnel));
    // The control: a tunnel in which a byte has just moved stays, and one whose client got an answer is no longer `Asking`.
    tunnels[1].activity().note_written(1);
    assert_eq!(tunnels[1].activity().quiet(), Some(Quiet::Tunnel));
    house.close_quiet(|_| now().checked_sub(10_000));
    assert_eq!(left(&tunnels), 1);
    // If connections to origins run out, kept connections stay, because they hold none.
    let another = seated(&visitors, "192.0.2.1");
    house.close_quiet(|quiet| (quiet != Quiet::Kept).then(now));
    assert_eq!((left(&tunnels), another.leave.is_cancelled()), (2, false));
}

/// When connections to origins run out, an address with few tunnels does not pay for one with many.
#[test]
fn tunnels_of_the_address_with_most_make_way_for_connections_to_origins() {
    let visitors = visitors(|_| {});
    let tunnels = |address: &str, count| -> Vec<Arc<Door>> {
        let doors = (0..count).map(|_| seated(&visitors, address));
        doors.inspect(|door| door.activity().tunnels(false)).collect()
    };
    let (few, many) = (tunnels("192.0.2.1", 2), tunnels("192.0.2.2", CLOSED_AT_ONCE + 3));
    // An address with many other connections has no more tunnels for that.
    let _kept: Vec<_> = (0..2 * CLOSED_AT_ONCE).map(|_| seated(&visitors, "192.0.2.3")).collect();
    let left = |doors: &[Arc<Door>]| doors.iter().filter(|d| d.leave.is_cancelled()).count();
    visitors.close_tunnels(|_| Some(now()));
    assert_eq!((left(&few), left(&many)), (0, CLOSED_AT_ONCE));
    // The control: once it has no more of them, it is the other one's turn too.
    visitors.close_tunnels(|_| Some(now()));
    visitors.close_tunnels(|_| Some(now()));
    assert_eq!((left(&few), left(&many)), (2, CLOSED_AT_ONCE + 3));
    // However many requests wait, tunnels are searched for once in a while.
    let last = AtomicU64::new(0);
    let at = millis(CLOSES_EVERY);
    assert!(is_due(&last, at) && !is_due(&last, at + 1) && is_due(&last, 2 * at));
}

#[tokio::test]
async fn who_stands_in_the_lobby_sits_down_when_a_seat_is_free_and_else_hears_why_not() {
    let visitors = visitors(|clients| clients.connections_per_address = 1);
    let first = seated(&visitors, "192.0.2.1");
    let busy = first.activity().begin();
    let second = visitors.enter(ip("192.0.2.1")).unwrap();
    let refusal = second.sit().await.unwrap_err();
    assert_eq!(refusal.response().headers()["retry-after"], "5");
    assert!(refusal.text.contains("clients.connections_per_address"), "{refusal}");
    // The control: another address is served, and a seat that becomes free is taken.
    let _other = seated(&visitors, "192.0.2.2");
    let (sat, ()) = tokio::join!(second.sit(), async { drop((first, busy)) });
    assert!(sat.is_ok() && second.has_seat());
}

#[tokio::test]
async fn requests_are_counted_for_each_address() {
    let visitors = visitors(|clients| clients.requests_per_address = 2);
    let (one, same) = (seated(&visitors, "192.0.2.1"), seated(&visitors, "192.0.2.1"));
    let other = seated(&visitors, "192.0.2.2");
    let places = (one.request().await.unwrap(), same.request().await.unwrap());
    let refusal = one.request().await.unwrap_err();
    assert!(refusal.text.contains("clients.requests_per_address"), "{refusal}");
    assert!(other.request().await.is_ok());
    drop(places);
    assert!(one.request().await.is_ok());
    let refused = visitors.readings().into_iter().find(|r| r.name == "requests_per_address");
    assert_eq!(refused.unwrap().refused, 1);
}

#[test]
fn the_lobby_is_not_filled_by_who_asks_for_nothing() {
    let visitors = visitors(|clients| {
        clients.max_connections = 2;
        clients.connections_per_address = 1;
    });
    let seat = seated(&visitors, "192.0.2.1");
    let _busy = seat.activity().begin();
    let mut silent = Vec::new();
    for _ in 0..1000 {
        silent.push(visitors.enter(ip("192.0.2.1")).unwrap());
        assert!(!silent.last().unwrap().leave.is_cancelled(), "the newest may ask");
        // The tasks of the closed connections end.
        silent.retain(|door| !door.leave.is_cancelled());
        assert!(silent.len() <= visitors.limits.lobby / 4);
    }
}

#[test]
fn an_address_without_a_connection_is_forgotten() {
    let visitors = visitors(|_| {});
    for number in 0..100 {
        drop(seated(&visitors, &format!("192.0.2.{number}")));
    }
    assert!(lock(&visitors.addresses).is_empty());
}
