//! Bodies of requests that other nodes make, and of their answers to ours, as they are parsed before anything is believed.
#![no_main]

use kith_fuzz::seeds::{self, cross_signing_key};
use libfuzzer_sys::fuzz_target;
use ruma::{
    RoomVersionId,
    api::{
        IncomingRequestExt, IncomingResponseExt, Metadata,
        federation::{
            authorization::get_event_authorization,
            backfill::get_backfill,
            device::get_devices,
            event::{get_missing_events, get_room_state, get_room_state_ids},
            keys::{claim_keys, get_keys},
            membership::{
                create_invite, create_join_event, create_knock_event, create_leave_event, prepare_join_event,
                prepare_knock_event, prepare_leave_event,
            },
            query::get_profile_information,
            space::get_hierarchy,
        },
    },
    exports::http::{Request, Response},
};
use serde_json::{Value, json};

macro_rules! request {
    ($body:expr, $path:expr, $($module:tt)+) => {{
        let request = Request::builder().method($($module)+::Request::METHOD).body($body).expect("a request");
        $($module)+::Request::try_from_http_request(request, $path).is_ok()
    }};
}

macro_rules! answer {
    ($body:expr, $($module:tt)+) => {{
        let response = Response::builder().body($body).expect("an answer");
        $($module)+::Response::try_from_http_response(response).is_ok()
    }};
}

/// One body of each kind, after its number.
fn seeds() -> impl Iterator<Item = Vec<u8>> {
    let bodies = bodies().into_iter().zip(0..);
    bodies
        .map(|(body, number)| [&[number][..], body.to_string().as_bytes()].concat())
        .inspect(|bytes| assert!(parses(bytes), "{}", String::from_utf8_lossy(bytes)))
}

/// In the order of the numbers below.
fn bodies() -> Vec<Value> {
    let events: Vec<Value> = seeds::events(&RoomVersionId::V11)
        .iter()
        .map(|event| serde_json::from_str(event.pdu().json()).expect("JSON"))
        .collect();
    let ids: Vec<&str> = vec!["$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"; 2];
    let (user, member) = ("@a:one", &events[1]);
    let stripped = json!([{"type": "m.room.name", "state_key": "", "sender": user, "content": {"name": "x"}}]);
    let template = json!({"room_version": "11", "event": member});
    let keys = json!({user: {"DEVICE": seeds::device_keys()}});
    let one_time = json!({user: {"DEVICE": {"signed_curve25519:AAAA": {
        "key": "AAAA", "fallback": true, "signatures": {user: {"ed25519:DEVICE": "AAAA"}},
    }}}});
    let room = json!({
        "room_id": "!a:b", "name": "x", "topic": "y", "num_joined_members": 2, "world_readable": true, "guest_can_join": false,
        "join_rule": "restricted", "allowed_room_ids": ["!c:d"], "room_type": "m.space", "canonical_alias": "#x:one",
        "avatar_url": "mxc://one/x", "children_state": [{
            "type": "m.space.child", "state_key": "!c:d", "sender": user, "origin_server_ts": 1, "content": {"via": ["one"]},
        }],
    });
    vec![
        json!({"room_version": "11", "event": member, "invite_room_state": stripped, "via": ["one"]}),
        member.clone(),
        member.clone(),
        member.clone(),
        json!({"limit": 10, "min_depth": 0, "earliest_events": ids, "latest_events": ids}),
        json!({"device_keys": {user: ["DEVICE"], "@b:one": []}}),
        json!({"one_time_keys": {user: {"DEVICE": "signed_curve25519"}}}),
        json!({
            "origin": "one", "members_omitted": false, "servers_in_room": ["one"], "auth_chain": events, "state": events,
            "event": member,
        }),
        template.clone(),
        template.clone(),
        template,
        json!({"events": events}),
        json!({"origin": "one", "origin_server_ts": 1, "pdus": events}),
        json!({"auth_chain": events, "pdus": events}),
        json!({"auth_chain_ids": ids, "pdu_ids": ids}),
        json!({"auth_chain": events}),
        json!({
            "device_keys": keys, "master_keys": {user: cross_signing_key("master")},
            "self_signing_keys": {user: cross_signing_key("self_signing")},
        }),
        json!({"one_time_keys": one_time}),
        json!({
            "user_id": user, "stream_id": 1, "master_key": cross_signing_key("master"),
            "self_signing_key": cross_signing_key("self_signing"),
            "devices": [{"device_id": "DEVICE", "device_display_name": "x", "keys": seeds::device_keys()}],
        }),
        json!({"displayname": "x", "avatar_url": "mxc://one/x", "m.tz": "Europe/Paris", "org.example": {"y": 1}}),
        json!({"room": room, "children": [room], "inaccessible_children": ["!e:f"]}),
        json!({"event": member}),
    ]
}

/// Whether the body after the first byte is one of the kind that this says.
fn parses(bytes: &[u8]) -> bool {
    let Some((which, body)) = bytes.split_first() else {
        return false;
    };
    let (room, event) = ("!a:b", "$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
    match which {
        0 => request!(body, &[room, event], create_invite::v2),
        1 => request!(body, &[room, event], create_join_event::v2),
        2 => request!(body, &[room, event], create_leave_event::v2),
        3 => request!(body, &[room, event], create_knock_event::v1),
        4 => request!(body, &[room], get_missing_events::v1),
        5 => request!(body, &[] as &[&str], get_keys::v1),
        6 => request!(body, &[] as &[&str], claim_keys::v1),
        7 => answer!(body, create_join_event::v2),
        8 => answer!(body, prepare_join_event::v1),
        9 => answer!(body, prepare_leave_event::v1),
        10 => answer!(body, prepare_knock_event::v1),
        11 => answer!(body, get_missing_events::v1),
        12 => answer!(body, get_backfill::v1),
        13 => answer!(body, get_room_state::v1),
        14 => answer!(body, get_room_state_ids::v1),
        15 => answer!(body, get_event_authorization::v1),
        16 => answer!(body, get_keys::v1),
        17 => answer!(body, claim_keys::v1),
        18 => answer!(body, get_devices::v1),
        19 => answer!(body, get_profile_information::v1),
        20 => answer!(body, get_hierarchy::v1),
        _ => answer!(body, create_invite::v2),
    }
}

fuzz_target!(init: seeds::plant(seeds()), |bytes: &[u8]| {
    parses(bytes);
});
