//! Public keys of users and devices: published, asked for, handed out, signed, and told on as they change. It never sees a
//! private key, and no message passes through it.

pub(crate) mod announce;
mod claim;
mod cross_signing;
mod dehydrated;
#[cfg(test)]
mod federated_tests;
mod query;
mod remote;
mod show;
mod signatures;
#[cfg(test)]
pub(crate) mod test_keys;
#[cfg(test)]
mod tests;
mod upload;

pub use claim::{ClaimedKeys, Claims};
pub use cross_signing::CrossSigningUpload;
pub use dehydrated::NewDehydratedDevice;
pub use query::KeyQuery;
pub use upload::KeyUpload;

use std::{sync::Arc, time::Duration};

use kith_store::{DeviceListChanges, Seq, WriteTxn};
use ruma::{OwnedServerName, OwnedUserId, UserId, api::error::ErrorKind, exports::http::StatusCode};
use serde_json::{Value, json};

use super::{
    Context, Outbox,
    accounts::{DeviceChange, DeviceChanges},
    tasks::Tasks,
};
use crate::{
    Error,
    network::{Limits, NetworkError},
};

/// Other servers asked at the same time for one client's request.
const SERVERS_AT_ONCE: usize = 16;

/// How long other servers may take when the client does not say.
///
/// Client-server API, `/keys/query`: "10 seconds is the recommended default".
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest a client may have other servers waited for.
const MAX_TIMEOUT: Duration = Duration::from_secs(60);

/// The service of public keys.
#[derive(Clone)]
pub struct Keys {
    ctx: Context,
    outbox: Outbox,
    remote: Arc<remote::Remote>,
    tasks: Tasks,
}

impl Keys {
    /// Makes the service.
    pub fn new(ctx: Context, outbox: Outbox) -> Self {
        Self {
            ctx,
            outbox,
            remote: Arc::default(),
            tasks: Tasks::new(),
        }
    }

    /// Whose keys changed for a local user between two places of `/sync`.
    pub async fn changes(&self, user: OwnedUserId, from: Seq, to: Seq) -> Result<DeviceListChanges, Error> {
        self.ctx
            .store
            .read(move |txn| {
                // A user who changed after `to` too is told now: only the last change of each is known.
                let to = to.max(txn.last_seq()?);
                Ok(txn.device_list_changes(&user, from, to)?)
            })
            .await
    }

    /// Who must hear of changes to devices: connect it to the accounts.
    pub fn device_changes(&self) -> Arc<dyn DeviceChanges> {
        Arc::new(Hook {
            ctx: self.ctx.clone(),
            outbox: self.outbox.clone(),
        })
    }
}

/// Hears of devices renamed or removed. It holds no more of the services than it needs, since the accounts hold it.
struct Hook {
    ctx: Context,
    outbox: Outbox,
}

impl DeviceChanges for Hook {
    fn devices_changed(
        &self,
        txn: &WriteTxn<'_>,
        user: &UserId,
        change: DeviceChange<'_>,
    ) -> Result<Vec<OwnedServerName>, Error> {
        let mut servers = Vec::new();
        match change {
            DeviceChange::Renamed(device) => {
                if txn.device_keys(user, device)?.is_some() {
                    servers = announce::device_changed(txn, &self.ctx, user, device)?;
                }
            }
            DeviceChange::Removed(devices) => {
                // Devices that never published keys concern nobody else.
                for device in devices {
                    if txn.delete_device_keys(user, device)? {
                        servers = announce::device_changed(txn, &self.ctx, user, device)?;
                    }
                }
            }
        }
        Ok(servers)
    }

    fn wake(&self, servers: Vec<OwnedServerName>) {
        self.outbox.wake(servers);
    }
}

/// What one request to another server may cost, when a client waits for it this long.
fn limits(timeout: Option<Duration>) -> Limits {
    Limits {
        deadline: timeout.unwrap_or(DEFAULT_TIMEOUT).min(MAX_TIMEOUT),
        ..Limits::default()
    }
}

/// Why a server's part of an answer is missing, as `failures` tells clients.
fn failure(error: &Error) -> Value {
    let status = match error {
        Error::Network(NetworkError::TimedOut(_)) => StatusCode::GATEWAY_TIMEOUT,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    json!({"status": status.as_u16(), "message": error.to_string()})
}

/// What is wrong with a key, as the client that uploads it is told.
fn key_refused(error: kith_engine::encryption::KeyError) -> Error {
    use kith_engine::encryption::KeyError;
    match error {
        KeyError::Malformed(reason) => Error::bad_json(reason),
        KeyError::MissingSignature(_) | KeyError::InvalidSignature(_) => invalid_signature(error.to_string()),
        _ => Error::invalid_param(error.to_string()),
    }
}

/// 400 `M_INVALID_SIGNATURE`, an error code that ruma does not list.
fn invalid_signature(message: String) -> Error {
    let kind = serde_json::from_value(json!({"errcode": "M_INVALID_SIGNATURE"})).unwrap_or(ErrorKind::InvalidParam);
    Error::refused(StatusCode::BAD_REQUEST, kind, message)
}
