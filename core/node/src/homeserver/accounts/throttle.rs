//! Slows down guessing: failed attempts per account draw from a bucket that refills with time. It keeps no secret.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use ruma::{
    MilliSecondsSinceUnixEpoch,
    api::error::{ErrorKind, LimitExceededErrorData, RetryAfter},
    exports::http::StatusCode,
};

use crate::Error;

/// Failures in a row before waiting begins.
const BURST: u64 = 10;
/// How long until one more attempt is allowed, in milliseconds.
const REFILL_MS: u64 = 6_000;
/// Accounts watched at once. When full, those whose buckets have refilled make room; if none has, new names share one.
const WATCHED: usize = 4096;

/// Failed attempts by name.
#[derive(Default)]
pub(super) struct Throttle {
    /// Per name: the time at which its bucket is full again, in milliseconds since the epoch.
    full_again: Mutex<HashMap<String, u64>>,
}

impl Throttle {
    /// Takes one attempt, to be given back with [`Self::succeeded`].
    pub(super) fn attempt(&self, name: &str, now: MilliSecondsSinceUnixEpoch) -> Result<(), Error> {
        let now = u64::from(now.0);
        let mut full_again = self.full_again.lock().unwrap_or_else(PoisonError::into_inner);
        if full_again.len() >= WATCHED && !full_again.contains_key(name) {
            full_again.retain(|_, at| *at > now);
        }
        let crowded = full_again.len() >= WATCHED && !full_again.contains_key(name);
        let name = if crowded { "" } else { name };
        let next = full_again.get(name).copied().unwrap_or(0).max(now) + REFILL_MS;
        if next > now + BURST * REFILL_MS {
            let wait = next - (now + BURST * REFILL_MS);
            let mut data = LimitExceededErrorData::new();
            data.retry_after = Some(RetryAfter::Delay(Duration::from_millis(wait)));
            return Err(Error::refused(
                StatusCode::TOO_MANY_REQUESTS,
                ErrorKind::LimitExceeded(data),
                "too many failed attempts; try again later",
            ));
        }
        full_again.insert(name.to_owned(), next);
        Ok(())
    }

    /// Forgets the failures of a name whose owner has just proven to know the password.
    pub(super) fn succeeded(&self, name: &str) {
        self.full_again
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(name);
    }
}

#[cfg(test)]
mod tests {
    use ruma::UInt;

    use super::*;

    fn at(millis: u64) -> MilliSecondsSinceUnixEpoch {
        MilliSecondsSinceUnixEpoch(UInt::new(1_700_000_000_000 + millis).unwrap())
    }

    #[test]
    fn failures_run_out_refill_and_are_forgiven() {
        let throttle = Throttle::default();
        for _ in 0..BURST {
            throttle.attempt("alice", at(0)).unwrap();
        }
        let Err(Error::Refused { status, kind, .. }) = throttle.attempt("alice", at(0)) else {
            panic!("an eleventh attempt passed");
        };
        assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
        let ErrorKind::LimitExceeded(data) = *kind else {
            panic!("{kind:?}");
        };
        assert_eq!(
            data.retry_after,
            Some(RetryAfter::Delay(Duration::from_millis(REFILL_MS)))
        );

        throttle.attempt("bob", at(0)).unwrap();
        throttle.attempt("alice", at(REFILL_MS)).unwrap();
        throttle.attempt("alice", at(REFILL_MS)).unwrap_err();
        throttle.succeeded("alice");
        throttle.attempt("alice", at(REFILL_MS)).unwrap();
    }

    #[test]
    fn many_names_cannot_grow_it() {
        let throttle = Throttle::default();
        for name in 0..WATCHED {
            throttle.attempt(&name.to_string(), at(0)).unwrap();
        }
        for _ in 0..BURST {
            throttle.attempt("one more", at(0)).unwrap();
        }
        throttle.attempt("and another", at(0)).unwrap_err();
        throttle.attempt("and another", at(REFILL_MS * BURST)).unwrap();
    }
}
