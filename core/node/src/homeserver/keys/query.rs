//! Who has which devices and cross-signing keys. Local users and tracked remote ones are answered from the database, all
//! others by their servers. It shows nobody a signature that is not theirs to see.

use std::{collections::BTreeMap, time::Duration};

use futures::{StreamExt, stream};
use kith_engine::encryption::PublishedKey;
use kith_store::ReadTxn;
use ruma::{
    OwnedDeviceId, OwnedServerName, OwnedUserId, ServerName, UserId,
    api::{client, federation},
    encryption::{CrossSigningKey, DeviceKeys, KeyUsage},
    serde::Raw,
};
use serde_json::value::RawValue;

use super::{Keys, SERVERS_AT_ONCE, failure, limits, show};
use crate::{
    Error,
    federation::client::request_within,
    network::{Limits, NetworkError},
};

/// Users remote and untracked that one request may ask other servers for.
const MAX_USERS: usize = 10_000;

/// Whose keys: users, each with the devices wanted; none listed: all.
pub type KeyQuery = BTreeMap<OwnedUserId, Vec<OwnedDeviceId>>;

type Answer = client::keys::get_keys::v3::Response;

impl Keys {
    /// Answers a local user. Servers that cannot be reached stand in `failures`; of their users what is held is shown all
    /// the same.
    pub async fn query(&self, viewer: &UserId, query: KeyQuery, timeout: Option<Duration>) -> Result<Answer, Error> {
        if query.len() > MAX_USERS {
            return Err(Error::invalid_param(format!("at most {MAX_USERS} users at once")));
        }
        let limits = limits(timeout);
        let users: Vec<OwnedUserId> = query.keys().filter(|user| !self.ctx.is_local(user)).cloned().collect();
        let stale = self.not_held(users).await?;
        let mut answer = Answer::new();
        let mut untracked: BTreeMap<OwnedServerName, KeyQuery> = BTreeMap::new();
        let mut refreshing: BTreeMap<OwnedServerName, Vec<OwnedUserId>> = BTreeMap::new();
        for (user, tracked) in stale {
            if tracked {
                let of_server = refreshing.entry(user.server_name().to_owned()).or_default();
                of_server.push(user);
            } else if let Some(devices) = query.get(&user) {
                let of_server = untracked.entry(user.server_name().to_owned()).or_default();
                of_server.insert(user, devices.clone());
            }
        }
        let refreshed = stream::iter(refreshing)
            .map(|(server, users)| async move {
                let outcome = self.refresh_all(&server, &users, limits).await;
                (server, outcome)
            })
            .buffer_unordered(SERVERS_AT_ONCE)
            .collect::<Vec<_>>();
        let asked = stream::iter(untracked)
            .map(|(server, query)| async move {
                let outcome = self.ask(&server, query, limits).await;
                (server, outcome)
            })
            .buffer_unordered(SERVERS_AT_ONCE)
            .collect::<Vec<_>>();
        let (refreshed, asked) = futures::join!(refreshed, asked);
        for (server, outcome) in refreshed {
            if let Err(error) = outcome {
                answer.failures.insert(server.to_string(), failure(&error));
            }
        }
        for (server, outcome) in asked {
            match outcome {
                Ok(part) => merge(&mut answer, part),
                Err(error) => drop(answer.failures.insert(server.to_string(), failure(&error))),
            }
        }
        self.add_held(viewer, query, answer).await
    }

    /// Answers another server about local users.
    pub async fn serve_query(&self, query: KeyQuery) -> Result<federation::keys::get_keys::v1::Response, Error> {
        let ctx = self.ctx.clone();
        self.ctx
            .store
            .read(move |txn| {
                let mut answer = Answer::new();
                for (user, devices) in query.iter().filter(|(user, _)| ctx.is_local(user)) {
                    add_local(txn, &mut answer, user, devices, None)?;
                }
                let mut response = federation::keys::get_keys::v1::Response::new(answer.device_keys);
                response.master_keys = answer.master_keys;
                response.self_signing_keys = answer.self_signing_keys;
                Ok(response)
            })
            .await
    }

    /// Completes the copies of one server's users, one after another within the deadline of all. A server that fails once
    /// is not asked again.
    async fn refresh_all(&self, server: &ServerName, users: &[OwnedUserId], limits: Limits) -> Result<(), Error> {
        let refreshing = async {
            for user in users {
                self.refresh(user, limits).await?;
            }
            Ok(())
        };
        let in_time = tokio::time::timeout(limits.deadline, refreshing).await;
        in_time.unwrap_or_else(|_| Err(NetworkError::TimedOut(server.to_owned()).into()))
    }

    /// Those remote users of whom the database holds no complete list, and whether it should, because a room is shared.
    async fn not_held(&self, users: Vec<OwnedUserId>) -> Result<Vec<(OwnedUserId, bool)>, Error> {
        self.ctx
            .store
            .read(move |txn| {
                let mut missing = Vec::new();
                for user in users {
                    if !txn.remote_device_list(&user)?.is_some_and(|list| list.fresh) {
                        let tracked = txn.shares_a_room_with_local(&user)?;
                        missing.push((user, tracked));
                    }
                }
                Ok(missing)
            })
            .await
    }

    /// Adds what the database holds, and to all of it the viewer's own signatures.
    async fn add_held(&self, viewer: &UserId, query: KeyQuery, mut answer: Answer) -> Result<Answer, Error> {
        let (ctx, viewer) = (self.ctx.clone(), viewer.to_owned());
        self.ctx
            .store
            .read(move |txn| {
                for (user, key) in &mut answer.master_keys {
                    add_own_signatures(txn, &viewer, user, key)?;
                }
                for (user, devices) in &query {
                    if ctx.is_local(user) {
                        add_local(txn, &mut answer, user, devices, Some(&viewer))?;
                    } else if txn
                        .remote_device_list(user)?
                        .is_some_and(|list| list.fresh || list.stream_id > 0)
                    {
                        let rows = txn.remote_devices(user)?;
                        let shown = show::devices(txn, user, rows, devices, Some(&viewer))?;
                        answer.device_keys.insert(user.clone(), shown);
                        add_cross_signing(txn, &mut answer, user, Some(&viewer))?;
                    }
                }
                Ok(answer)
            })
            .await
    }

    /// Asks a server about users of its own. Of the answer, only what was asked for and is well formed stays.
    pub(super) async fn ask(&self, server: &ServerName, query: KeyQuery, limits: Limits) -> Result<Answer, Error> {
        let request = federation::keys::get_keys::v1::Request::new(query.clone());
        let response = request_within(&self.ctx, server, request, limits).await?;
        let mut answer = Answer::new();
        for (user, devices) in response.device_keys {
            let Some(wanted) = query.get(&user) else { continue };
            let devices = devices
                .into_iter()
                .filter(|(id, _)| wanted.is_empty() || wanted.contains(id));
            let checked = devices.filter_map(|(id, keys)| {
                let (key, name) = super::remote::checked_device(&user, &id, &keys)?;
                let shown = own_view(&user, key, name)?;
                Some((id, Raw::<DeviceKeys>::from_json(shown)))
            });
            let checked = checked.take(super::remote::MAX_DEVICES).collect();
            answer.device_keys.insert(user, checked);
        }
        let cross_signing = |keys: BTreeMap<OwnedUserId, Raw<CrossSigningKey>>, usage: KeyUsage| {
            let asked = keys.into_iter().filter(|(user, _)| query.contains_key(user));
            asked
                .filter_map(|(user, key)| {
                    let (key, _) = super::remote::checked_cross_signing(&user, &usage, &key)?;
                    let shown = own_view(&user, key, None)?;
                    Some((user, Raw::from_json(shown)))
                })
                .collect::<BTreeMap<_, _>>()
        };
        answer.master_keys = cross_signing(response.master_keys, KeyUsage::Master);
        answer.self_signing_keys = cross_signing(response.self_signing_keys, KeyUsage::SelfSigning);
        Ok(answer)
    }
}

/// A key with its owner's signatures only.
fn own_view(owner: &UserId, mut key: PublishedKey, display_name: Option<String>) -> Option<Box<RawValue>> {
    key.keep_visible(owner, None);
    RawValue::from_string(key.shown(display_name).ok()?).ok()
}

fn merge(answer: &mut Answer, part: Answer) {
    answer.device_keys.extend(part.device_keys);
    answer.master_keys.extend(part.master_keys);
    answer.self_signing_keys.extend(part.self_signing_keys);
}

/// Adds the signatures that the viewer made on a key that another server has just told.
fn add_own_signatures(
    txn: &ReadTxn<'_>,
    viewer: &UserId,
    owner: &UserId,
    shown: &mut Raw<CrossSigningKey>,
) -> Result<(), Error> {
    let Some((mut key, public)) = super::remote::checked_cross_signing(owner, &KeyUsage::Master, shown) else {
        return Ok(());
    };
    for signature in txn.key_signatures(owner, &public)? {
        if signature.signer == viewer.as_str() {
            key.add_signature(&signature);
        }
    }
    let json = key.to_json().ok().and_then(|json| RawValue::from_string(json).ok());
    if let Some(json) = json {
        *shown = Raw::from_json(json);
    }
    Ok(())
}

/// Adds a local user. One without devices stands there empty; one that does not exist is absent.
fn add_local(
    txn: &ReadTxn<'_>,
    answer: &mut Answer,
    user: &OwnedUserId,
    devices: &[OwnedDeviceId],
    viewer: Option<&UserId>,
) -> Result<(), Error> {
    if txn.user(user)?.is_none() {
        return Ok(());
    }
    let rows = txn.devices_with_keys(user)?;
    let shown = show::devices(txn, user, rows, devices, viewer)?;
    answer.device_keys.insert(user.clone(), shown);
    add_cross_signing(txn, answer, user, viewer)
}

/// Adds a user's cross-signing keys; the user-signing key only for the user.
fn add_cross_signing(
    txn: &ReadTxn<'_>,
    answer: &mut Answer,
    user: &OwnedUserId,
    viewer: Option<&UserId>,
) -> Result<(), Error> {
    let add = |usage: KeyUsage, to: &mut BTreeMap<OwnedUserId, Raw<CrossSigningKey>>| {
        if let Some(key) = show::cross_signing_key(txn, user, &usage, viewer)? {
            to.insert(user.clone(), key);
        }
        Ok::<_, Error>(())
    };
    add(KeyUsage::Master, &mut answer.master_keys)?;
    add(KeyUsage::SelfSigning, &mut answer.self_signing_keys)?;
    if viewer.is_some_and(|viewer| viewer == user) {
        add(KeyUsage::UserSigning, &mut answer.user_signing_keys)?;
    }
    Ok(())
}
