//! Access tokens seen lately, so that a request costs no database read. It never outlives a change: whoever changes
//! sessions forgets them here after the commit.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use kith_store::TokenHash;
use ruma::{DeviceId, MilliSecondsSinceUnixEpoch, UserId};

use super::Session;

/// Tokens remembered at the most; when full, it begins anew.
const ENTRIES: usize = 1024;

/// What is remembered of a token.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) session: Session,
    pub(super) expires: Option<MilliSecondsSinceUnixEpoch>,
    /// When the device was last noted as seen.
    pub(super) last_seen: MilliSecondsSinceUnixEpoch,
}

/// The cache.
#[derive(Default)]
pub(super) struct TokenCache {
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    known: HashMap<TokenHash, Known>,
    /// Counts forgettings, so that what was read before one is not remembered after it.
    epoch: u64,
}

impl TokenCache {
    /// What is known of a token, and the epoch to hand to [`Self::remember`] if it has to be read.
    pub(super) fn look_up(&self, hash: &TokenHash) -> (Option<Known>, u64) {
        let inner = self.lock();
        (inner.known.get(hash).cloned(), inner.epoch)
    }

    /// Remembers what was read since `epoch`, unless something was forgotten meanwhile.
    pub(super) fn remember(&self, hash: TokenHash, known: Known, epoch: u64) {
        let mut inner = self.lock();
        if inner.epoch != epoch {
            return;
        }
        if inner.known.len() >= ENTRIES {
            inner.known.clear();
        }
        inner.known.insert(hash, known);
    }

    /// Forgets one device's tokens.
    pub(super) fn forget_device(&self, user_id: &UserId, device_id: &DeviceId) {
        self.forget(|session| session.user_id == user_id && session.device_id == device_id);
    }

    /// Forgets all tokens of a user.
    pub(super) fn forget_user(&self, user_id: &UserId) {
        self.forget(|session| session.user_id == user_id);
    }

    fn forget(&self, whose: impl Fn(&Session) -> bool) {
        let mut inner = self.lock();
        inner.epoch += 1;
        inner.known.retain(|_, known| !whose(&known.session));
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
