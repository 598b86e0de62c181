//! Bodies of federation transactions, and what is in them, as the route parses them.
#![no_main]

use kith_fuzz::{VERSIONS, seeds};
use libfuzzer_sys::fuzz_target;
use ruma::{
    RoomVersionId,
    api::{IncomingRequestExt, federation::transactions::send_transaction_message},
    exports::http::Request,
};

fn parse(body: &[u8]) -> Option<send_transaction_message::v1::Request> {
    let request = Request::put("/_matrix/federation/v1/send/1")
        .body(body)
        .expect("a request");
    send_transaction_message::v1::Request::try_from_http_request(request, &["1"]).ok()
}

fn seeds() -> impl Iterator<Item = String> {
    seeds::texts(VERSIONS.iter().map(seeds::transaction)).inspect(|body| {
        let request = parse(body.as_bytes()).expect("a transaction");
        for edu in &request.edus {
            edu.deserialize().expect("an ephemeral event");
        }
    })
}

fuzz_target!(init: seeds::plant(seeds()), |body: &[u8]| {
    if let Some(request) = parse(body) {
        for pdu in &request.pdus {
            let _ = kith_engine::required_keys(pdu.get(), &RoomVersionId::V12);
        }
        for edu in &request.edus {
            let _ = edu.deserialize();
        }
    }
});
