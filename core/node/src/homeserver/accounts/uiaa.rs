//! User-interactive authentication: who must prove what again before a grave step, and the sessions of doing so. It
//! checks no proof itself.
//!
//! Every flow here has one stage, so a session only ties the attempts at one step together. Sessions live in memory,
//! bounded in number and age; after a restart a client simply begins again.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedUserId,
    api::{
        client::uiaa::{AuthFlow, AuthType, UiaaInfo},
        error::{ErrorKind, StandardErrorBody},
    },
    exports::http::StatusCode,
};

use crate::{Error, clock::World};

/// Sessions kept at the most; the oldest makes room.
const SESSIONS: usize = 1024;
/// How long a session may take, in milliseconds.
const LIFETIME_MS: u64 = 15 * 60 * 1000;

/// What a session was begun for. A proof given for one step opens no other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Purpose {
    /// Names the step.
    pub(super) step: &'static str,
    /// Who takes it; none while registering.
    pub(super) user: Option<OwnedUserId>,
}

struct Begun {
    purpose: Purpose,
    at: u64,
}

/// The sessions under way.
pub(super) struct Sessions {
    world: World,
    sessions: Mutex<HashMap<String, Begun>>,
}

impl Sessions {
    pub(super) fn new(world: World) -> Self {
        Self {
            world,
            sessions: Mutex::default(),
        }
    }

    /// What to answer a request that lacks a proof: the flows, and a fresh session or the one it named.
    pub(super) fn demand(&self, purpose: &Purpose, stages: &[AuthType], session: Option<&str>) -> Error {
        let session = session.map_or_else(|| self.begin(purpose.clone()), ToOwned::to_owned);
        Error::AuthenticationNeeded(Box::new(info(stages, session)))
    }

    /// What to answer a proof that does not hold.
    pub(super) fn refuse(
        &self,
        purpose: &Purpose,
        stages: &[AuthType],
        session: Option<&str>,
        kind: ErrorKind,
        message: &str,
    ) -> Error {
        let session = session.map_or_else(|| self.begin(purpose.clone()), ToOwned::to_owned);
        let mut info = info(stages, session);
        info.auth_error = Some(Box::new(StandardErrorBody::new(kind, message.to_owned())));
        Error::AuthenticationNeeded(Box::new(info))
    }

    /// Refuses a session that is unknown, too old, or was begun for something else.
    pub(super) fn check(&self, purpose: &Purpose, session: &str) -> Result<(), Error> {
        let now = self.now();
        let sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        match sessions.get(session) {
            Some(begun) if begun.purpose == *purpose && begun.at + LIFETIME_MS > now => Ok(()),
            _ => Err(Error::refused(
                StatusCode::BAD_REQUEST,
                ErrorKind::Unknown,
                "unknown authentication session; begin again without one",
            )),
        }
    }

    /// Ends a session whose proof was given.
    pub(super) fn end(&self, session: &str) {
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        sessions.remove(session);
    }

    fn begin(&self, purpose: Purpose) -> String {
        let (id, now) = (self.world.random_token(), self.now());
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        if sessions.len() >= SESSIONS {
            sessions.retain(|_, begun| begun.at + LIFETIME_MS > now);
        }
        if sessions.len() >= SESSIONS
            && let Some(oldest) = sessions
                .iter()
                .min_by_key(|(_, begun)| begun.at)
                .map(|(id, _)| id.clone())
        {
            sessions.remove(&oldest);
        }
        sessions.insert(id.clone(), Begun { purpose, at: now });
        id
    }

    fn now(&self) -> u64 {
        let MilliSecondsSinceUnixEpoch(now) = self.world.now();
        u64::from(now)
    }
}

fn info(stages: &[AuthType], session: String) -> UiaaInfo {
    let flows = stages.iter().map(|stage| AuthFlow::new(vec![stage.clone()])).collect();
    let mut info = UiaaInfo::new(flows);
    info.session = Some(session);
    // Clients read `params` without asking whether it is there.
    info.params = serde_json::value::to_raw_value(&serde_json::Map::new()).ok();
    info
}
