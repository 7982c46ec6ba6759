//! Ranges beside a fill.

use super::*;

#[tokio::test]
async fn a_range_beside_the_fill_is_granted_outside_the_gap_only() {
    let world = World::new();
    let length = 64 << 20;
    world.begin(true, length).await;
    let flight = &world.lead.flight;
    assert!(World::grants(flight, length - 100, length).await, "the gap makes way");
    assert!(!World::grants(flight, length - 100 - GAP, length - 100).await, "there it is now");
    assert!(World::grants(flight, 0, 100).await);
    assert!(!World::grants(flight, 50, 150).await, "no byte is fetched beside the fill twice");
}

/// P3: a client that holds the head of a body that broke is given no range beside the next body, whose gap could lie elsewhere.
#[tokio::test]
async fn a_range_beside_a_fill_that_began_again_is_not_granted_by_its_first_head() {
    let world = World::new();
    let length = 64 << 20;
    let flight = &world.lead.flight;
    world.begin(true, length).await;
    let first = flight.lock().answered.clone().unwrap();
    assert!(flight.restart(), "nothing was given");
    let grant =
        async |answered| flight.grant_beside(answered, length - 100, length).await.is_some();
    assert!(!grant(&first).await, "nobody knows where the next gap lies");
    world.begin(true, length).await;
    assert!(!grant(&first).await, "this is another body");
    let second = flight.lock().answered.clone().unwrap();
    assert!(grant(&second).await, "the control");
}

/// A body that is not in a file cannot be compared with a range that was given beside it.
#[tokio::test]
async fn no_range_is_granted_beside_a_body_that_is_not_stored() {
    for stored in [true, false] {
        let mut world = World::new();
        let length = 64 << 20;
        world.begin(true, length).await;
        let _reader = world.reader();
        if stored {
            world.write(b"ab");
        } else {
            world.lead.flight.push(Bytes::from_static(b"ab")).await.unwrap();
        }
        assert_eq!(World::grants(&world.lead.flight, length / 2, length).await, stored);
    }
}

/// What was given of a range is compared with the body, and nothing more of it is given meanwhile.
#[tokio::test]
async fn a_range_agrees_with_the_body_that_has_its_bytes() {
    let body: Vec<u8> = (0..300_000_u32).map(|n| u8::try_from(n % 251).unwrap()).collect();
    for lie in [false, true] {
        let mut world = World::new();
        world.begin(true, body.len() as u64).await;
        world.write(&body);
        let flight = &world.lead.flight;
        let answered = flight.lock().answered.clone().unwrap();
        let beside = flight.grant_beside(&answered, 200_000, 300_000).await.unwrap();
        assert!(flight.begin_beside(&answered, &beside).await);
        let mut range = body[200_000..250_000].to_vec();
        range[49_999] ^= u8::from(lie);
        assert!(beside.give(&range[..20_000]) && beside.give(&range[20_000..]));
        let given = flight.close_besides();
        assert!(!beside.give(b"more"));
        assert_eq!((given[0].start, given[0].length), (200_000, 50_000));
        assert_eq!(given[0].agrees_with(&world.file).unwrap(), !lie);
        assert!(!World::grants(flight, 0, 100).await, "the body is being judged");
    }
}

/// A range that the origin did not answer with was not given: it does not spend the gap, and is granted again.
#[tokio::test]
async fn a_range_that_was_not_fetched_was_not_given() {
    let length = 64 << 20;
    for fetched in [false, true] {
        let world = World::new();
        world.begin(false, length).await;
        let flight = &world.lead.flight;
        let answered = flight.lock().answered.clone().unwrap();
        let beside = flight.grant_beside(&answered, length - 100, length).await.unwrap();
        assert!(flight.grant_beside(&answered, length - 100, length).await.is_none(), "only once");
        if fetched {
            assert!(flight.begin_beside(&answered, &beside).await);
        }
        assert_eq!(flight.nothing_given(), !fetched);
        drop(beside);
        if !fetched {
            assert!(flight.grant_beside(&answered, length - 100, length).await.is_some());
        }
        flight.bind(Binding::Yes).await;
        let hold = flight.lock().holding.hold;
        assert_eq!(hold, if fetched { Hold::Whole } else { Hold::Gap });
    }
}

/// A promise may come while the range is fetched.
#[tokio::test]
async fn a_range_is_not_given_if_the_gap_lies_there_by_then() {
    for binds in [false, true] {
        let world = World::new();
        let length = 64 << 20;
        world.begin(false, length).await;
        let flight = &world.lead.flight;
        let answered = flight.lock().answered.clone().unwrap();
        let beside = flight.grant_beside(&answered, length - 100, length).await.unwrap();
        if binds {
            flight.bind(Binding::Yes).await;
        }
        assert_eq!(flight.begin_beside(&answered, &beside).await, !binds);
    }
}
