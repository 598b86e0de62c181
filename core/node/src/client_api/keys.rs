//! Public keys for end-to-end encryption.

use axum::Router;
use ruma::api::client::keys::{
    claim_keys, get_key_changes, get_keys, upload_keys, upload_signatures, upload_signing_keys,
};

use super::{Args, endpoint};
use crate::{
    Error, Homeserver,
    homeserver::{
        keys::{CrossSigningUpload, KeyUpload},
        timeline::SyncToken,
    },
};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    let router = endpoint(router, upload_keys);
    let router = endpoint(router, get_keys);
    let router = endpoint(router, claim_keys);
    let router = endpoint(router, get_key_changes);
    let router = endpoint(router, upload_signing_keys);
    endpoint(router, upload_signatures)
}

async fn upload_keys(hs: Homeserver, args: Args<upload_keys::v3::Request>) -> Result<upload_keys::v3::Response, Error> {
    let upload = KeyUpload {
        device_keys: args.request.device_keys,
        one_time_keys: args.request.one_time_keys,
        fallback_keys: args.request.fallback_keys,
    };
    let counts = hs.keys.upload(args.caller, upload).await?;
    Ok(upload_keys::v3::Response::new(counts))
}

async fn get_keys(hs: Homeserver, args: Args<get_keys::v3::Request>) -> Result<get_keys::v3::Response, Error> {
    let request = args.request;
    hs.keys
        .query(&args.caller.user_id, request.device_keys, request.timeout)
        .await
}

async fn claim_keys(hs: Homeserver, args: Args<claim_keys::v3::Request>) -> Result<claim_keys::v3::Response, Error> {
    hs.keys.claim(args.request.one_time_keys, args.request.timeout).await
}

async fn get_key_changes(
    hs: Homeserver,
    args: Args<get_key_changes::v3::Request>,
) -> Result<get_key_changes::v3::Response, Error> {
    let place = |token: &str| {
        let place = token.parse().map(|token: SyncToken| token.seq);
        place.map_err(|error| Error::invalid_param(error.to_string()))
    };
    let (from, to) = (place(&args.request.from)?, place(&args.request.to)?);
    let changes = hs.keys.changes(args.caller.user_id, from, to).await?;
    Ok(get_key_changes::v3::Response::new(changes.changed, changes.left))
}

async fn upload_signing_keys(
    hs: Homeserver,
    args: Args<upload_signing_keys::v3::Request>,
) -> Result<upload_signing_keys::v3::Response, Error> {
    let (session, request) = (args.caller, args.request);
    let upload = CrossSigningUpload {
        master: request.master_key,
        self_signing: request.self_signing_key,
        user_signing: request.user_signing_key,
    };
    let upload = upload.check(&session.user_id)?;
    let needs_proof = hs.keys.cross_signing_needs_proof(&session.user_id, &upload).await?;
    if needs_proof {
        hs.accounts
            .confirm(&session, "upload_signing_keys", request.auth.as_ref())
            .await?;
    }
    hs.keys.upload_cross_signing(&session, upload, needs_proof).await?;
    Ok(upload_signing_keys::v3::Response::new())
}

async fn upload_signatures(
    hs: Homeserver,
    args: Args<upload_signatures::v3::Request>,
) -> Result<upload_signatures::v3::Response, Error> {
    let mut response = upload_signatures::v3::Response::new();
    response.failures = hs
        .keys
        .upload_signatures(args.caller.user_id, args.request.signed_keys)
        .await?;
    Ok(response)
}
