//! How accounts come to be through the client-server API. Closed, unless opened by the node's settings or a token.

use std::time::Duration;

use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedUserId, UInt, UserId,
    api::{
        client::uiaa::{AuthData, AuthType},
        error::ErrorKind,
    },
    exports::http::StatusCode,
};
use zeroize::Zeroizing;

use super::{Accounts, Issued, NewDevice, sessions, uiaa::Purpose, user_in_use};
use crate::Error;

const PURPOSE: Purpose = Purpose {
    step: "register",
    user: None,
};

/// A request for an account.
pub struct Registration {
    /// The wanted localpart; none: one is made up.
    pub localpart: Option<String>,
    /// The password. Clients that only ask for the flows leave it out.
    pub password: Option<Zeroizing<String>>,
    /// The device to log in; none: only the account is made.
    pub device: Option<NewDevice>,
    /// The proof that registering is allowed.
    pub auth: Option<AuthData>,
}

impl Accounts {
    /// Makes a token with which `uses` accounts (none: any number) may be registered for `lifetime` (none: for ever).
    pub async fn create_registration_token(
        &self,
        uses: Option<u32>,
        lifetime: Option<Duration>,
    ) -> Result<String, Error> {
        let token = self.ctx.world.random_token();
        let (hash, expires) = (sessions::hash(&token), lifetime.map(|lifetime| self.after(lifetime)));
        self.ctx
            .store
            .write(move |txn| Ok::<_, Error>(txn.insert_registration_token(&hash, uses, expires)?))
            .await?;
        Ok(token)
    }

    /// Whether a registration token may be used now.
    pub async fn registration_token_valid(&self, token: &str) -> Result<bool, Error> {
        let (hash, now) = (sessions::hash(token), self.ctx.world.now());
        self.ctx
            .store
            .read(move |txn| Ok::<_, Error>(txn.registration_token_valid(&hash, now)?))
            .await
    }

    /// Refuses a localpart that is malformed (`M_INVALID_USERNAME`) or taken (`M_USER_IN_USE`).
    pub async fn check_available(&self, localpart: &str) -> Result<(), Error> {
        let user_id = self.new_user_id(localpart)?;
        match self.user(&user_id).await? {
            Some(_) => Err(user_in_use()),
            None => Ok(()),
        }
    }

    /// Makes an account for whoever may have one, and logs its first device in unless told not to.
    pub async fn register(&self, request: Registration) -> Result<(OwnedUserId, Option<Issued>), Error> {
        let stages = self.registration_stages().await?;
        if let Some(localpart) = &request.localpart {
            self.check_available(localpart).await?;
        }
        let token = self.check_registration_proof(&stages, request.auth.as_ref()).await?;
        let password = request
            .password
            .ok_or_else(|| Error::refused(StatusCode::BAD_REQUEST, ErrorKind::MissingParam, "a password is needed"))?;
        let localpart = request.localpart.unwrap_or_else(|| self.ctx.world.random_token());
        let user_id = self.new_user_id(&localpart)?;
        let password_hash = self.inner.passwords.hash(password).await?;
        let prepared = request
            .device
            .map(|device| self.prepare(user_id.clone(), device))
            .transpose()?;
        let (now, new) = (self.ctx.world.now(), user_id.clone());
        let issued = self
            .ctx
            .store
            .write(move |txn| {
                if let Some(token) = token
                    && !txn.use_registration_token(&token, now)?
                {
                    return Err(Error::forbidden("the registration token is used up"));
                }
                super::insert(txn, &new, &password_hash, now)?;
                prepared.map(|prepared| prepared.save(txn, now)).transpose()
            })
            .await?;
        if let Some(session) = request.auth.as_ref().and_then(AuthData::session) {
            self.inner.uiaa.end(session);
        }
        Ok((user_id, issued))
    }

    /// Which single proofs allow registering now; `M_FORBIDDEN` when none does.
    async fn registration_stages(&self) -> Result<Vec<AuthType>, Error> {
        let now = self.ctx.world.now();
        let by_token = self
            .ctx
            .store
            .read(move |txn| Ok::<_, Error>(txn.any_registration_token(now)?))
            .await?;
        let mut stages = Vec::with_capacity(2);
        if self.ctx.config.open_registration {
            stages.push(AuthType::Dummy);
        }
        if by_token {
            stages.push(AuthType::RegistrationToken);
        }
        if stages.is_empty() {
            return Err(Error::forbidden("registration is closed on this node"));
        }
        Ok(stages)
    }

    /// Checks the proof; returns the hash of the registration token that the new account uses up, if it came by one.
    async fn check_registration_proof(
        &self,
        stages: &[AuthType],
        auth: Option<&AuthData>,
    ) -> Result<Option<kith_store::TokenHash>, Error> {
        let uiaa = &self.inner.uiaa;
        let named = auth.and_then(AuthData::session);
        if let Some(named) = named {
            uiaa.check(&PURPOSE, named)?;
        }
        match auth {
            Some(AuthData::Dummy(_)) if stages.contains(&AuthType::Dummy) => Ok(None),
            Some(AuthData::RegistrationToken(proof)) if stages.contains(&AuthType::RegistrationToken) => {
                if self.registration_token_valid(&proof.token).await? {
                    return Ok(Some(sessions::hash(&proof.token)));
                }
                let message = "unknown or used-up registration token";
                Err(uiaa.refuse(&PURPOSE, stages, named, ErrorKind::Unauthorized, message))
            }
            _ => Err(uiaa.demand(&PURPOSE, stages, named)),
        }
    }

    /// The id of a new user of this node. Appendices, "User Identifiers": only `a-z`, `0-9`, `._=-/+`, 255 bytes in all.
    pub(super) fn new_user_id(&self, localpart: &str) -> Result<OwnedUserId, Error> {
        let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"._=-/+".contains(&byte);
        let user_id = UserId::parse_with_server_name(localpart, &self.ctx.server_name).ok();
        user_id
            .filter(|id| !localpart.is_empty() && localpart.bytes().all(allowed) && id.as_str().len() <= 255)
            .ok_or_else(|| {
                Error::refused(
                    StatusCode::BAD_REQUEST,
                    ErrorKind::InvalidUsername,
                    "a user name has only the characters a-z, 0-9, ., _, =, -, / and +, and is not too long",
                )
            })
    }

    /// The time `lifetime` from now.
    pub(super) fn after(&self, lifetime: Duration) -> MilliSecondsSinceUnixEpoch {
        let millis = u64::try_from(lifetime.as_millis()).unwrap_or(u64::MAX);
        let MilliSecondsSinceUnixEpoch(now) = self.ctx.world.now();
        MilliSecondsSinceUnixEpoch(UInt::new_saturating(u64::from(now).saturating_add(millis)))
    }
}
