use std::time::Duration;

use kith_net::{PeerId, probe::Answer};
use serde_json::json;

use super::*;

fn status(online: bool, listen: &[&str], places: &[bool]) -> Status {
    let relays: Vec<_> = places
        .iter()
        .map(|place| json!({"address": "/ip4/192.0.2.1/tcp/1", "configured": false, "place": place}))
        .collect();
    serde_json::from_value(json!({
        "version": "0", "server_name": "a", "online": online, "peer_id": "", "listen": listen, "ticket": "", "users": [],
        "peers": [{"server_name": "b", "path": "relayed", "addresses": []}], "relays": relays, "contacts": ["b", "c"],
        "room_count": 0, "rooms": [], "reports": [],
    }))
    .unwrap()
}

fn tried(relay: PeerId, quic: bool, seen_as: Option<&str>) -> Probe {
    Probe {
        address: "/ip4/192.0.2.1/tcp/1".parse().unwrap(),
        relay,
        quic,
        answer: seen_as.map_or(Err("no answer".to_owned()), |address| {
            Ok(Answer {
                after: Duration::from_millis(20),
                seen_as: address.parse().unwrap(),
            })
        }),
    }
}

#[test]
fn each_hindrance_is_named_and_has_its_advice() {
    use Verdict::{Bad, Fair, Good};
    let (first, second) = (PeerId::random(), PeerId::random());
    let here = Some("/ip4/198.51.100.1/udp/7/quic-v1");
    let there = Some("/ip4/198.51.100.1/udp/8/quic-v1");
    let far = ["/ip4/192.168.0.2/udp/1/quic-v1"];
    let well = status(true, &far, &[true, true]);
    let both = |seen| [tried(first, true, seen), tried(first, false, seen)];
    // What was seen, the step that matters, and how it stands.
    let cases = [
        (well.clone(), both(here).to_vec(), "udp", Good),
        (well.clone(), both(here).to_vec(), "places", Good),
        (
            well.clone(),
            vec![tried(first, true, None), tried(first, false, here)],
            "udp",
            Fair,
        ),
        (
            well.clone(),
            vec![tried(first, true, here), tried(first, false, None)],
            "tcp",
            Fair,
        ),
        (well.clone(), both(None).to_vec(), "relays", Bad),
        (
            well.clone(),
            vec![tried(first, true, here), tried(second, true, here)],
            "router",
            Good,
        ),
        (
            well.clone(),
            vec![tried(first, true, here), tried(second, true, there)],
            "router",
            Fair,
        ),
        (well.clone(), both(here).to_vec(), "listening", Good),
        (well, both(here).to_vec(), "outside", Fair),
        (
            status(true, &["/ip4/127.0.0.1/tcp/1"], &[true]),
            Vec::new(),
            "listening",
            Bad,
        ),
        (status(false, &[], &[true]), Vec::new(), "listening", Bad),
        (status(true, &far, &[false]), Vec::new(), "places", Bad),
        (status(true, &far, &[true, false]), Vec::new(), "places", Fair),
        (status(true, &far, &[]), Vec::new(), "relays", Bad),
    ];
    for (status, probes, step, verdict) in cases {
        let all = findings(&status, &probes, &[]);
        let one = all.iter().find(|finding| finding.step == step).unwrap();
        assert_eq!(one.verdict, verdict, "{one:?}");
        assert!(verdict != Bad || one.advice.is_some(), "{one:?}");
    }
    let unplugged = findings(&status(true, &far, &[false]), &both(None), &[]);
    assert!(
        unplugged
            .iter()
            .all(|finding| !["udp", "tcp", "router"].contains(&finding.step.as_str())),
        "what is said once is not said again: {unplugged:?}"
    );
    assert!(
        unplugged
            .iter()
            .all(|finding| !finding.found.contains("they come through relays"))
    );
    let alone = findings(&status(true, &far, &[true]), &both(here), &[]);
    assert!(
        alone.iter().all(|finding| finding.step != "router"),
        "one relay cannot tell"
    );
    let outside = ["/ip4/198.51.100.1/udp/7/quic-v1".parse().unwrap()];
    let reached = findings(&status(true, &far, &[true]), &[], &outside);
    assert!(
        reached
            .iter()
            .any(|finding| finding.step == "outside" && finding.verdict == Good)
    );
}
