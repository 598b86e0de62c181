//! Bodies of federation transactions, as the route parses them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use ruma::api::{IncomingRequestExt, federation::transactions::send_transaction_message};
use ruma::exports::http::Request;

fuzz_target!(|body: &[u8]| {
    let request = Request::put("/_matrix/federation/v1/send/1")
        .body(body)
        .expect("a request");
    if let Ok(request) = send_transaction_message::v1::Request::try_from_http_request(request, &["1"]) {
        for pdu in &request.pdus {
            let _ = kith_engine::required_keys(pdu.get(), &ruma::RoomVersionId::V12);
        }
    }
});
