//! Tokens that live for minutes and in memory only. They prove who a user is to someone else and never open a session here.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use kith_store::TokenHash;
use ruma::{MilliSecondsSinceUnixEpoch, OwnedUserId};

/// Tokens waiting at the most; the one nearest its end makes room.
const TOKENS: usize = 256;

/// Tokens by hash, with whose they are and when they end.
#[derive(Default)]
pub(super) struct TemporaryTokens {
    tokens: Mutex<HashMap<TokenHash, (OwnedUserId, MilliSecondsSinceUnixEpoch)>>,
}

impl TemporaryTokens {
    /// Adds a token.
    pub(super) fn put(&self, hash: TokenHash, user_id: OwnedUserId, expires: MilliSecondsSinceUnixEpoch) {
        let mut tokens = self.lock();
        if tokens.len() >= TOKENS
            && let Some(first) = tokens.iter().min_by_key(|(_, (_, at))| *at).map(|(hash, _)| *hash)
        {
            tokens.remove(&first);
        }
        tokens.insert(hash, (user_id, expires));
    }

    /// Uses a token up.
    pub(super) fn take(&self, hash: &TokenHash, now: MilliSecondsSinceUnixEpoch) -> Option<OwnedUserId> {
        let (user_id, expires) = self.lock().remove(hash)?;
        (expires > now).then_some(user_id)
    }

    /// Whose a token is; it goes on working.
    pub(super) fn look_up(&self, hash: &TokenHash, now: MilliSecondsSinceUnixEpoch) -> Option<OwnedUserId> {
        let tokens = self.lock();
        let (user_id, expires) = tokens.get(hash)?;
        (*expires > now).then(|| user_id.clone())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<TokenHash, (OwnedUserId, MilliSecondsSinceUnixEpoch)>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
