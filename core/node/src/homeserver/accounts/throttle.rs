//! Slows down guessing: failed attempts per account draw from a bucket that refills with time. It keeps no secret.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use kith_engine::{Allowance, Allowances};
use ruma::MilliSecondsSinceUnixEpoch;

use crate::{Error, homeserver::admission::too_much};

/// Failures in a row before waiting begins, and how long until one more attempt is allowed.
const ALLOWED: Allowance = Allowance {
    burst: 10,
    refill: Duration::from_secs(6),
};

/// Failed attempts by name.
pub(super) struct Throttle(Mutex<Allowances>);

impl Default for Throttle {
    fn default() -> Self {
        Self(Mutex::new(Allowances::new(ALLOWED)))
    }
}

impl Throttle {
    /// Takes one attempt, to be given back with [`Self::succeeded`]. 429 `M_LIMIT_EXCEEDED` if none is left.
    pub(super) fn attempt(&self, name: &str, now: MilliSecondsSinceUnixEpoch) -> Result<(), Error> {
        let now = Duration::from_millis(now.get().into());
        self.lock().take(name, 1, now).map_err(too_much)
    }

    /// Forgets the failures of a name whose owner has just proven to know the password.
    pub(super) fn succeeded(&self, name: &str) {
        self.lock().restore(name);
    }

    /// A poisoned lock only says that another thread panicked; allowances are whole at every step.
    fn lock(&self) -> MutexGuard<'_, Allowances> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use ruma::{
        UInt,
        api::error::{ErrorKind, RetryAfter},
        exports::http::StatusCode,
    };

    use super::*;

    fn at(millis: u64) -> MilliSecondsSinceUnixEpoch {
        MilliSecondsSinceUnixEpoch(UInt::new(1_700_000_000_000 + millis).unwrap())
    }

    #[test]
    fn failures_run_out_refill_and_are_forgiven() {
        let throttle = Throttle::default();
        for _ in 0..ALLOWED.burst {
            throttle.attempt("alice", at(0)).unwrap();
        }
        let Err(Error::Refused { status, kind, .. }) = throttle.attempt("alice", at(0)) else {
            panic!("an eleventh attempt passed");
        };
        assert_eq!(status, StatusCode::TOO_MANY_REQUESTS);
        let ErrorKind::LimitExceeded(data) = *kind else {
            panic!("{kind:?}");
        };
        assert_eq!(data.retry_after, Some(RetryAfter::Delay(ALLOWED.refill)));

        throttle.attempt("bob", at(0)).unwrap();
        throttle.attempt("alice", at(6_000)).unwrap();
        throttle.attempt("alice", at(6_000)).unwrap_err();
        throttle.succeeded("alice");
        throttle.attempt("alice", at(6_000)).unwrap();
    }
}
