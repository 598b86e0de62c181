//! Typing, read receipts and read markers.

use axum::Router;
use ruma::{
    api::client::{
        read_marker::set_read_marker,
        receipt::create_receipt::{self, v3::ReceiptType},
        typing::create_typing_event::{self, v3::Typing},
    },
    events::receipt::ReceiptThread,
};

use super::{Args, endpoint};
use crate::{Error, Homeserver, homeserver::ephemeral::ReadMark};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    let router = endpoint(router, create_typing_event);
    let router = endpoint(router, create_receipt);
    endpoint(router, set_read_marker)
}

async fn create_typing_event(
    hs: Homeserver,
    args: Args<create_typing_event::v3::Request>,
) -> Result<create_typing_event::v3::Response, Error> {
    let request = args.request;
    if request.user_id != args.caller.user_id {
        return Err(Error::forbidden("nobody types for someone else"));
    }
    let lasting = match request.state {
        Typing::Yes(info) => Some(info.timeout),
        Typing::No => None,
    };
    hs.ephemeral
        .set_typing(&args.caller.user_id, &request.room_id, lasting)
        .await?;
    Ok(create_typing_event::v3::Response::new())
}

async fn create_receipt(
    hs: Homeserver,
    args: Args<create_receipt::v3::Request>,
) -> Result<create_receipt::v3::Response, Error> {
    let request = args.request;
    let mark = match request.receipt_type {
        ReceiptType::Read => ReadMark::Public(request.thread),
        ReceiptType::ReadPrivate => ReadMark::Private(request.thread),
        ReceiptType::FullyRead if request.thread == ReceiptThread::Unthreaded => ReadMark::FullyRead,
        ReceiptType::FullyRead => return Err(Error::invalid_param("a read marker has no thread")),
        _ => return Err(Error::invalid_param("there is no such type of receipt")),
    };
    hs.ephemeral
        .mark_read(args.caller.user_id, request.room_id, vec![(mark, request.event_id)])
        .await?;
    Ok(create_receipt::v3::Response::new())
}

async fn set_read_marker(
    hs: Homeserver,
    args: Args<set_read_marker::v3::Request>,
) -> Result<set_read_marker::v3::Response, Error> {
    let request = args.request;
    let marks = [
        (ReadMark::FullyRead, request.fully_read),
        (ReadMark::Public(ReceiptThread::Unthreaded), request.read_receipt),
        (
            ReadMark::Private(ReceiptThread::Unthreaded),
            request.private_read_receipt,
        ),
    ];
    let marks = marks.into_iter().filter_map(|(mark, event)| Some((mark, event?)));
    hs.ephemeral
        .mark_read(args.caller.user_id, request.room_id, marks.collect())
        .await?;
    Ok(set_read_marker::v3::Response::new())
}
