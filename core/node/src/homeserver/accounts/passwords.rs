//! Password hashing: argon2id, away from the async threads, a few at a time. It never sees whose password it is.

use std::sync::Arc;

use argon2::{
    Argon2, PasswordHash, PasswordHasher as _, PasswordVerifier as _,
    password_hash::{self, SaltString},
};
use ruma::{
    api::error::{ErrorKind, LimitExceededErrorData, RetryAfter},
    exports::http::StatusCode,
};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::{Error, clock::World};

/// Hashes computed at once; each takes 19 MiB and tens of milliseconds of one core.
const AT_ONCE: usize = 2;
/// Requests that may wait for their turn; further ones are told to come back.
const WAITING: usize = 32;
/// The longest password, in bytes.
const LONGEST: usize = 512;

/// Hashes and verifies passwords.
#[derive(Clone)]
pub(super) struct Passwords {
    running: Arc<Semaphore>,
    admitted: Arc<Semaphore>,
    world: World,
}

impl Passwords {
    pub(super) fn new(world: World) -> Self {
        Self {
            running: Arc::new(Semaphore::new(AT_ONCE)),
            admitted: Arc::new(Semaphore::new(AT_ONCE + WAITING)),
            world,
        }
    }

    /// The PHC string of a new password.
    pub(super) async fn hash(&self, password: Zeroizing<String>) -> Result<String, Error> {
        if password.is_empty() || password.len() > LONGEST {
            return Err(Error::refused(
                StatusCode::BAD_REQUEST,
                ErrorKind::WeakPassword,
                format!("a password has 1 to {LONGEST} bytes"),
            ));
        }
        let salt = SaltString::encode_b64(&self.world.random_bytes::<16>()).map_err(hashing_failed)?;
        self.run(move || {
            let hash = Argon2::default()
                .hash_password(password.as_bytes(), &salt)
                .map_err(hashing_failed)?;
            Ok(hash.to_string())
        })
        .await
    }

    /// Whether a password matches. Without a stored hash it takes as long and answers no, so that the time taken does not
    /// tell which users exist.
    pub(super) async fn verify(&self, password: Zeroizing<String>, stored: Option<String>) -> Result<bool, Error> {
        if password.len() > LONGEST {
            return Ok(false);
        }
        let salt = SaltString::encode_b64(&[0; 16]).map_err(hashing_failed)?;
        self.run(move || {
            let Some(stored) = stored else {
                Argon2::default()
                    .hash_password(password.as_bytes(), &salt)
                    .map_err(hashing_failed)?;
                return Ok(false);
            };
            let stored = PasswordHash::new(&stored).map_err(hashing_failed)?;
            match Argon2::default().verify_password(password.as_bytes(), &stored) {
                Ok(()) => Ok(true),
                Err(password_hash::Error::Password) => Ok(false),
                Err(error) => Err(hashing_failed(error)),
            }
        })
        .await
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let _admitted = self.admitted.try_acquire().map_err(|_| busy())?;
        let _running = self.running.acquire().await.map_err(|_| busy())?;
        self.world
            .compute(work)
            .await
            .map_err(|error| Error::Internal("password hashing was cut short", Some(Box::new(error))))?
    }
}

fn busy() -> Error {
    let mut data = LimitExceededErrorData::new();
    data.retry_after = Some(RetryAfter::Delay(std::time::Duration::from_secs(1)));
    Error::refused(
        StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::LimitExceeded(data),
        "too many log-ins at once",
    )
}

fn hashing_failed(error: password_hash::Error) -> Error {
    Error::Internal("password hashing failed", Some(Box::new(error)))
}
