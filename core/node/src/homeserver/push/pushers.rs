//! Pushers: where users' devices want to be woken.

use kith_store::{ReadTxn, WriteTxn};
use ruma::api::client::push::{Pusher, PusherIds, PusherKind};

use super::Push;
use crate::{Error, homeserver::Session};

/// The longest push key, in bytes. Client-server API, `POST pushers/set`.
const LONGEST_PUSHKEY: usize = 512;
/// The longest app id, in characters. Client-server API, `POST pushers/set`.
const LONGEST_APP_ID: usize = 64;
/// The largest pusher, in bytes of JSON.
const LARGEST: usize = 16 * 1024;
/// Pushers that a user may have.
const MOST: usize = 64;
/// The path of the one endpoint of a push gateway. Push gateway API.
const GATEWAY_PATH: &str = "/_matrix/push/v1/notify";

impl Push {
    /// The user's pushers.
    pub async fn pushers(&self, session: &Session) -> Result<Vec<Pusher>, Error> {
        let user_id = session.user_id.clone();
        self.ctx
            .store
            .read(move |txn: &ReadTxn<'_>| {
                let pushers = txn.pushers(&user_id)?;
                let parsed = pushers.iter().map(|pusher| serde_json::from_str(pusher));
                parsed
                    .collect::<Result<_, _>>()
                    .map_err(|error| Error::Internal("a stored pusher does not parse", Some(Box::new(error))))
            })
            .await
    }

    /// Adds or changes a pusher of the device. Unless it is to be appended, other users of the same key lose theirs.
    pub async fn set_pusher(&self, session: &Session, pusher: Pusher, append: bool) -> Result<(), Error> {
        check(&pusher)?;
        let json = serde_json::to_string(&pusher)
            .map_err(|error| Error::Internal("a pusher did not serialise", Some(Box::new(error))))?;
        if json.len() > LARGEST {
            return Err(Error::invalid_param(format!("a pusher has at most {LARGEST} bytes")));
        }
        let (session, ids) = (session.clone(), pusher.ids);
        self.ctx
            .store
            .write(move |txn: &WriteTxn<'_>| {
                let (app_id, pushkey) = (&ids.app_id, &ids.pushkey);
                if !append {
                    txn.delete_others_pushers(&session.user_id, app_id, pushkey)?;
                }
                txn.set_pusher(&session.user_id, &session.device_id, app_id, pushkey, &json)?;
                if txn.pushers(&session.user_id)?.len() > MOST {
                    return Err(Error::invalid_param(format!("a user has at most {MOST} pushers")));
                }
                Ok(())
            })
            .await
    }

    /// Removes a pusher of the user, if it is there.
    pub async fn delete_pusher(&self, session: &Session, ids: PusherIds) -> Result<(), Error> {
        let user_id = session.user_id.clone();
        self.ctx
            .store
            .write(move |txn| Ok::<_, Error>(txn.delete_pusher(&user_id, &ids.app_id, &ids.pushkey)?))
            .await
    }
}

fn check(pusher: &Pusher) -> Result<(), Error> {
    let PusherIds { app_id, pushkey, .. } = &pusher.ids;
    if pushkey.is_empty() || pushkey.len() > LONGEST_PUSHKEY {
        return Err(Error::invalid_param(format!(
            "a pushkey has 1 to {LONGEST_PUSHKEY} bytes"
        )));
    }
    if app_id.is_empty() || app_id.chars().count() > LONGEST_APP_ID {
        return Err(Error::invalid_param(format!(
            "an app_id has 1 to {LONGEST_APP_ID} characters"
        )));
    }
    let PusherKind::Http(data) = &pusher.kind else {
        return Err(Error::invalid_param("only pushers of kind http are known here"));
    };
    let url = data.url.parse::<http::Uri>().ok();
    let known = url.is_some_and(|url| {
        matches!(url.scheme_str(), Some("https" | "http")) && url.host().is_some() && url.path() == GATEWAY_PATH
    });
    if known {
        Ok(())
    } else {
        Err(Error::invalid_param(format!(
            "a push gateway's URL ends in {GATEWAY_PATH}"
        )))
    }
}
