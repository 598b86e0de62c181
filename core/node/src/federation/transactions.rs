//! Transactions of other servers: events go to the incoming service, each EDU to the service that owns its kind. A
//! transaction is answered once everything in it is kept.

use axum::{
    Router,
    body::Body,
    extract::{RawPathParams, Request, State},
    http::{Response, StatusCode},
    response::IntoResponse,
    routing::put,
};
use futures::future::join_all;
use ruma::{
    ServerName,
    api::{
        Metadata,
        federation::transactions::{edu::Edu, send_transaction_message},
        path_builder::PathBuilder,
    },
    serde::Raw,
};

use super::{
    Peer,
    client::{MINIMAL, PREFER},
};
use crate::{
    Error, Homeserver,
    client_api::{Args, read, render},
    homeserver::{
        Answer,
        outbox::says_something,
        rooms::{DELAYED_INVITE, DelayedInvite},
        topics::{NEW_TOPIC, TopicContent},
    },
};

/// Events in one transaction. Server-server API, "Transactions".
const MAX_PDUS: usize = 50;
/// EDUs in one transaction. Server-server API, "Transactions".
const MAX_EDUS: usize = 100;

type Transaction = send_transaction_message::v1::Request;

pub(super) fn routes(mut router: Router<Homeserver>) -> Router<Homeserver> {
    for path in Transaction::PATH_BUILDER.all_paths() {
        router = router.route(path, put(serve));
    }
    router
}

async fn serve(State(hs): State<Homeserver>, path: RawPathParams, request: Request) -> Response<Body> {
    answer(hs, path, request)
        .await
        .unwrap_or_else(IntoResponse::into_response)
}

/// Answers a transaction, or just that all of its events are accepted, if the other server prefers that.
async fn answer(hs: Homeserver, path: RawPathParams, request: Request) -> Result<Response<Body>, Error> {
    let minimal = request.headers().get(PREFER) == Some(&MINIMAL);
    let args = read::<Transaction>(&hs, &path, request).await?;
    let events = args.request.pdus.len();
    let answer = send_transaction_message(hs, args).await?;
    let accepted = answer.pdus.values().filter(|outcome| outcome.is_ok()).count();
    if minimal && accepted == events {
        return Ok(StatusCode::NO_CONTENT.into_response());
    }
    render(answer)
}

async fn send_transaction_message(
    hs: Homeserver,
    args: Args<Transaction>,
) -> Result<send_transaction_message::v1::Response, Error> {
    let (Peer(peer), request) = (args.caller, args.request);
    if request.origin != peer {
        return Err(Error::forbidden("the transaction is another server's"));
    }
    if request.pdus.len() > MAX_PDUS || request.edus.len() > MAX_EDUS {
        return Err(Error::invalid_param(format!(
            "a transaction holds at most {MAX_PDUS} PDUs and {MAX_EDUS} EDUs"
        )));
    }
    hs.outbox.handle_seen(&peer);
    let spoken = says_something(&request);
    let transaction = match hs.incoming.begin(&peer, &request.transaction_id).await? {
        Ok(transaction) => transaction,
        Err(answered) => return Ok(respond(answered)),
    };
    hs.admission
        .take_transaction(&peer, &request.pdus, request.edus.len())?;
    let only_pdus = request.edus.is_empty();
    let received = hs.incoming.handle_pdus(&transaction, request.pdus, only_pdus).await?;
    for pdu in &received.outside {
        must_be_kept(hs.rooms.handle_outside_member(&peer, pdu).await)?;
    }
    // All at once, so that they share a commit: each begins with its write, and the writer keeps their order.
    for outcome in join_all(request.edus.iter().map(|edu| handle_edu(&hs, &peer, edu))).await {
        must_be_kept(outcome)?;
    }
    if !only_pdus {
        hs.incoming.finish(&transaction, &received.answer).await?;
    }
    if spoken {
        hs.context.network.note_spoken(&peer);
    }
    Ok(respond(received.answer))
}

async fn handle_edu(hs: &Homeserver, peer: &ServerName, edu: &Raw<Edu>) -> Result<(), Error> {
    let malformed = |error: serde_json::Error| Error::bad_json(error.to_string());
    if edu.get_field::<String>("edu_type").map_err(malformed)?.as_deref() == Some(DELAYED_INVITE) {
        let invite = edu.get_field::<DelayedInvite>("content").map_err(malformed)?;
        let invite = invite.ok_or_else(|| Error::bad_json("an invite without content"))?;
        return hs.rooms.handle_invite(peer, invite.into()).await.map(drop);
    }
    if edu.get_field::<String>("edu_type").map_err(malformed)?.as_deref() == Some(NEW_TOPIC) {
        let content = edu.get_field::<TopicContent>("content").map_err(malformed)?;
        let content = content.ok_or_else(|| Error::bad_json("a topic without content"))?;
        // It may be of a room that is being entered.
        hs.rooms.settle(&content.room_id).await;
        let topics = [(content.room_id, content.topic)].into();
        return hs.topics.handle_told(peer, topics).await;
    }
    let edu = edu.deserialize().map_err(malformed)?;
    match edu {
        Edu::DeviceListUpdate(content) => hs.keys.handle_device_list_update(peer, content).await,
        Edu::SigningKeyUpdate(content) => hs.keys.handle_signing_key_update(peer, content).await,
        Edu::DirectToDevice(content) => hs.to_device.handle_direct_to_device(peer, content).await,
        Edu::Presence(content) => hs.presence.handle_presence(peer, content).await,
        Edu::Typing(content) => hs.ephemeral.handle_typing(peer, content).await,
        Edu::Receipt(content) => hs.ephemeral.handle_receipts(peer, content).await,
        other => {
            tracing::debug!(%peer, ?other, "an EDU of a kind that is not known; ignored");
            Ok(())
        }
    }
}

/// What this node refuses stays refused when it is sent again; what it failed at must be sent again.
fn must_be_kept(outcome: Result<(), Error>) -> Result<(), Error> {
    match outcome {
        Err(error @ (Error::Store(_) | Error::Internal(..))) => Err(error),
        Err(error) => {
            tracing::info!(%error, "part of a transaction was refused");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

fn respond(Answer(answer): Answer) -> send_transaction_message::v1::Response {
    let pdus = answer
        .into_iter()
        .map(|(id, refused)| (id, refused.map_or(Ok(()), Err)));
    send_transaction_message::v1::Response::new(pdus.collect())
}
