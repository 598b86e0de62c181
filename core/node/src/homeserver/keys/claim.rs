//! One-time keys are handed out: each once, in the commit that takes it from the device's stock. Whoever loses the answer
//! has to claim another.

use std::{collections::BTreeMap, time::Duration};

use futures::{StreamExt, stream};
use kith_store::WriteTxn;
use ruma::{
    OneTimeKeyAlgorithm, OwnedServerName, ServerName,
    api::{
        client::keys::claim_keys::v3::Response as Answer,
        federation::keys::claim_keys::{self, v1::OneTimeKeyClaims},
    },
    encryption::OneTimeKey,
    serde::Raw,
};
use serde_json::value::RawValue;

use super::{Keys, SERVERS_AT_ONCE, failure, limits};
use crate::{Error, federation::client::request_within, network::Limits};

/// Users, their devices, and the algorithm wanted of each.
pub type Claims = OneTimeKeyClaims;

/// Users, their devices, and the key of each; devices without any are absent.
pub type ClaimedKeys = claim_keys::v1::OneTimeKeys;

/// Devices that one request may claim keys of.
const MAX_CLAIMS: usize = 10_000;

impl Keys {
    /// Claims keys for a local user. Servers that cannot be reached stand in `failures`.
    pub async fn claim(&self, claims: Claims, timeout: Option<Duration>) -> Result<Answer, Error> {
        check_size(&claims)?;
        let (mut local, mut remote) = (Claims::new(), BTreeMap::<OwnedServerName, Claims>::new());
        for (user, devices) in claims {
            if self.ctx.is_local(&user) {
                local.insert(user, devices);
            } else {
                let server = user.server_name().to_owned();
                remote.entry(server).or_default().insert(user, devices);
            }
        }
        let limits = limits(timeout);
        let asked = stream::iter(remote)
            .map(|(server, claims)| async move {
                let outcome = self.claim_from(&server, claims, limits).await;
                (server, outcome)
            })
            .buffer_unordered(SERVERS_AT_ONCE)
            .collect::<Vec<_>>();
        let (claimed, asked) = futures::join!(self.claim_local(local), asked);
        let mut answer = Answer::new(claimed?);
        for (server, outcome) in asked {
            match outcome {
                Ok(keys) => answer.one_time_keys.extend(keys),
                Err(error) => drop(answer.failures.insert(server.to_string(), failure(&error))),
            }
        }
        Ok(answer)
    }

    /// Claims keys of local users for another server. Claims for users of other servers get nothing.
    pub async fn serve_claim(&self, mut claims: Claims) -> Result<ClaimedKeys, Error> {
        check_size(&claims)?;
        claims.retain(|user, _| self.ctx.is_local(user));
        self.claim_local(claims).await
    }

    async fn claim_local(&self, claims: Claims) -> Result<ClaimedKeys, Error> {
        if claims.is_empty() {
            return Ok(ClaimedKeys::new());
        }
        self.ctx.store.write(move |txn| take(txn, claims)).await
    }

    /// Claims keys of a server's users. Of the answer, only what was asked for stays.
    async fn claim_from(&self, server: &ServerName, claims: Claims, limits: Limits) -> Result<ClaimedKeys, Error> {
        let request = claim_keys::v1::Request::new(claims.clone());
        let mut keys = request_within(&self.ctx, server, request, limits).await?.one_time_keys;
        keys.retain(|user, devices| {
            let asked = claims.get(user);
            devices.retain(|device, keys| {
                let algorithm = asked.and_then(|devices| devices.get(device));
                keys.retain(|id, _| algorithm.is_some_and(|algorithm| id.algorithm() == *algorithm));
                !keys.is_empty()
            });
            !devices.is_empty()
        });
        Ok(keys)
    }
}

fn check_size(claims: &Claims) -> Result<(), Error> {
    let size: usize = claims.values().map(BTreeMap::len).sum();
    if size > MAX_CLAIMS {
        return Err(Error::invalid_param(format!("at most {MAX_CLAIMS} devices at once")));
    }
    Ok(())
}

/// Takes a key for each device: a one-time key, or else the fallback key.
fn take(txn: &WriteTxn<'_>, claims: Claims) -> Result<ClaimedKeys, Error> {
    let mut taken = ClaimedKeys::new();
    for (user, devices) in claims {
        for (device, algorithm) in devices {
            let algorithm: &OneTimeKeyAlgorithm = &algorithm;
            let key = match txn.claim_one_time_key(&user, &device, algorithm)? {
                Some(key) => Some(key),
                None => txn.use_fallback_key(&user, &device, algorithm)?,
            };
            let Some((id, json)) = key else { continue };
            let json = RawValue::from_string(json)
                .map_err(|error| Error::Internal("a stored one-time key is no JSON", Some(Box::new(error))))?;
            let of_user = taken.entry(user.clone()).or_default();
            of_user.insert(device, BTreeMap::from([(id, Raw::<OneTimeKey>::from_json(json))]));
        }
    }
    Ok(taken)
}
