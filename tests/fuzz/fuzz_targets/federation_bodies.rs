//! Bodies of requests that other nodes make, and of their answers to ours, as they are parsed before anything is believed.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ruma::{
    api::{
        IncomingRequestExt, IncomingResponseExt,
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

macro_rules! request {
    ($body:expr, $path:expr, $($module:tt)+) => {{
        let request = Request::put("/").body($body).expect("a request");
        let _ = $($module)+::Request::try_from_http_request(request, $path);
    }};
}

macro_rules! answer {
    ($body:expr, $($module:tt)+) => {{
        let response = Response::builder().body($body).expect("an answer");
        let _ = $($module)+::Response::try_from_http_response(response);
    }};
}

fuzz_target!(|bytes: &[u8]| {
    let Some((which, body)) = bytes.split_first() else {
        return;
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
});
