//! Accounts of this node: users, their passwords, devices and sessions. It knows no room.

mod cache;
mod devices;
mod passwords;
mod registration;
mod sessions;
mod temporary;
#[cfg(test)]
mod tests;
mod throttle;
mod uiaa;

pub use devices::{DeviceChange, DeviceChanges};
pub use registration::Registration;
pub use sessions::{Issued, NewDevice, Session};

use std::sync::{Arc, OnceLock};

use kith_store::{Device, User, WriteTxn};
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedUserId, UserId,
    api::{
        client::uiaa::{AuthData, AuthType, UserIdentifier},
        error::{ErrorKind, UnknownTokenErrorData},
    },
    exports::http::StatusCode,
    profile::ProfileFieldName,
};
use zeroize::Zeroizing;

use crate::{
    Error,
    homeserver::{Context, push},
};

/// The accounts service.
#[derive(Clone)]
pub struct Accounts {
    ctx: Context,
    inner: Arc<Inner>,
}

struct Inner {
    passwords: passwords::Passwords,
    throttle: throttle::Throttle,
    uiaa: uiaa::Sessions,
    cache: cache::TokenCache,
    login_tokens: temporary::TemporaryTokens,
    openid_tokens: temporary::TemporaryTokens,
    device_changes: OnceLock<Arc<dyn DeviceChanges>>,
}

impl Accounts {
    /// Makes the service.
    pub fn new(ctx: Context) -> Self {
        let inner = Inner {
            passwords: passwords::Passwords::new(ctx.world.clone()),
            throttle: throttle::Throttle::default(),
            uiaa: uiaa::Sessions::new(ctx.world.clone()),
            cache: cache::TokenCache::default(),
            login_tokens: temporary::TemporaryTokens::default(),
            openid_tokens: temporary::TemporaryTokens::default(),
            device_changes: OnceLock::new(),
        };
        Self {
            ctx,
            inner: Arc::new(inner),
        }
    }

    /// Adds an account. The first one of a node administers it.
    ///
    /// Refuses with `M_INVALID_USERNAME`, `M_USER_IN_USE` or `M_WEAK_PASSWORD`.
    pub async fn create_user(&self, localpart: &str, password: &str) -> Result<OwnedUserId, Error> {
        let user_id = self.new_user_id(localpart)?;
        let hash = self.inner.passwords.hash(Zeroizing::new(password.to_owned())).await?;
        let (now, new) = (self.ctx.world.now(), user_id.clone());
        self.ctx.store.write(move |txn| insert(txn, &new, &hash, now)).await?;
        Ok(user_id)
    }

    /// One account of this node, deactivated ones too.
    pub async fn user(&self, user_id: &UserId) -> Result<Option<User>, Error> {
        let user_id = user_id.to_owned();
        self.ctx
            .store
            .read(move |txn| Ok::<_, Error>(txn.user(&user_id)?))
            .await
    }

    /// Every account of this node, oldest first.
    pub async fn users(&self) -> Result<Vec<User>, Error> {
        self.ctx.store.read(|txn| Ok::<_, Error>(txn.users()?)).await
    }

    /// The devices of a user, as an administrator may ask for anyone of this node, and everyone for themselves.
    pub async fn whois(&self, session: &Session, user_id: &UserId) -> Result<Vec<Device>, Error> {
        if session.must_be(user_id).is_err() {
            self.must_administer(session).await?;
        }
        match self.user(user_id).await? {
            Some(_) => self.devices(user_id).await,
            None => Err(no_such_user()),
        }
    }

    /// Whether an account is locked, as an administrator may ask.
    pub async fn is_locked(&self, session: &Session, user_id: &UserId) -> Result<bool, Error> {
        self.must_administer(session).await?;
        self.must_be_local(user_id)?;
        let user = self.user(user_id).await?.filter(|user| !user.deactivated);
        user.map(|user| user.locked).ok_or_else(no_such_user)
    }

    /// Locks or unlocks an account in an administrator's name. Administrators are not locked.
    pub async fn lock(&self, session: &Session, user_id: &UserId, locked: bool) -> Result<(), Error> {
        self.must_administer(session).await?;
        self.must_be_local(user_id)?;
        if self.user(user_id).await?.is_some_and(|user| user.admin) {
            return Err(Error::forbidden("an administrator cannot be locked"));
        }
        self.set_locked(user_id, locked).await
    }

    async fn must_administer(&self, session: &Session) -> Result<(), Error> {
        match self.user(&session.user_id).await? {
            Some(user) if user.admin => Ok(()),
            _ => Err(Error::forbidden("only an administrator of this node may do that")),
        }
    }

    fn must_be_local(&self, user_id: &UserId) -> Result<(), Error> {
        if self.ctx.is_local(user_id) {
            Ok(())
        } else {
            Err(Error::invalid_param("that user is another server's"))
        }
    }

    /// Locks or unlocks an account. A locked account keeps its devices, and every request of theirs gets `M_USER_LOCKED`.
    pub async fn set_locked(&self, user_id: &UserId, locked: bool) -> Result<(), Error> {
        let user = user_id.to_owned();
        let found = self
            .ctx
            .store
            .write(move |txn| Ok::<_, Error>(txn.set_locked(&user, locked)?))
            .await?;
        self.inner.cache.forget_user(user_id);
        if found { Ok(()) } else { Err(no_such_user()) }
    }

    /// Demands that the user prove the password again before a grave step (user-interactive authentication). `step`
    /// names it: a proof given for one step opens no other.
    ///
    /// Fails with [`Error::AuthenticationNeeded`] until `auth` holds the proof.
    pub async fn confirm(&self, session: &Session, step: &'static str, auth: Option<&AuthData>) -> Result<(), Error> {
        let purpose = uiaa::Purpose {
            step,
            user: Some(session.user_id.clone()),
        };
        let stages = [AuthType::Password];
        let named = auth.and_then(AuthData::session);
        if let Some(named) = named {
            self.inner.uiaa.check(&purpose, named)?;
        }
        let Some(AuthData::Password(proof)) = auth else {
            return Err(self.inner.uiaa.demand(&purpose, &stages, named));
        };
        let same_user = self.identified(&proof.identifier).as_ref() == Some(&session.user_id);
        let password = Zeroizing::new(proof.password.clone());
        if !same_user || self.check_password(&session.user_id, password).await?.is_none() {
            let uiaa = &self.inner.uiaa;
            return Err(uiaa.refuse(
                &purpose,
                &stages,
                named,
                ErrorKind::Forbidden,
                "wrong user name or password",
            ));
        }
        if let Some(named) = named {
            self.inner.uiaa.end(named);
        }
        Ok(())
    }

    /// Sets a new password, and logs the user's other devices out if asked.
    pub async fn change_password(
        &self,
        session: &Session,
        password: Zeroizing<String>,
        log_out_others: bool,
    ) -> Result<(), Error> {
        let hash = self.inner.passwords.hash(password).await?;
        let (keep, hook) = (session.clone(), self.device_changes());
        let servers = self
            .ctx
            .store
            .write(move |txn| {
                txn.set_password(&keep.user_id, &hash)?;
                if !log_out_others {
                    return Ok(Vec::new());
                }
                let others = txn.devices(&keep.user_id)?.into_iter().map(|device| device.device_id);
                let others: Vec<_> = others.filter(|id| *id != keep.device_id).collect();
                devices::remove(txn, hook.as_deref(), &keep.user_id, &others)
            })
            .await?;
        self.inner.cache.forget_user(&session.user_id);
        self.wake(servers);
        Ok(())
    }

    /// Gives an account up for ever: its devices and data go, its name is never given out again. `erase`: the profile goes
    /// too.
    pub async fn deactivate(&self, user_id: &UserId, erase: bool) -> Result<(), Error> {
        let (user, hook) = (user_id.to_owned(), self.device_changes());
        let servers = self
            .ctx
            .store
            .write(move |txn| {
                let all: Vec<_> = txn.devices(&user)?.into_iter().map(|device| device.device_id).collect();
                let servers = devices::remove(txn, hook.as_deref(), &user, &all)?;
                txn.deactivate_user(&user)?;
                txn.delete_account_data(&user)?;
                if erase {
                    txn.delete_profile(&user)?;
                }
                Ok::<_, Error>(servers)
            })
            .await?;
        self.inner.cache.forget_user(user_id);
        self.wake(servers);
        Ok(())
    }

    /// The account, if the password is right; draws on the limit of failures.
    async fn check_password(&self, user_id: &UserId, password: Zeroizing<String>) -> Result<Option<User>, Error> {
        let user = self.user(user_id).await?.filter(|user| !user.deactivated);
        self.inner.throttle.attempt(user_id.as_str(), self.ctx.world.now())?;
        let stored = user.as_ref().and_then(|user| user.password_hash.clone());
        if !self.inner.passwords.verify(password, stored).await? {
            return Ok(None);
        }
        self.inner.throttle.succeeded(user_id.as_str());
        Ok(user)
    }

    /// Whom a client means: a full user id or a bare localpart, in any case. None when nobody here can be meant.
    fn identified(&self, identifier: &UserIdentifier) -> Option<OwnedUserId> {
        let UserIdentifier::Matrix(matrix) = identifier else {
            return None;
        };
        self.named(&matrix.user)
    }

    fn named(&self, name: &str) -> Option<OwnedUserId> {
        if name.starts_with('@') {
            let user_id = UserId::parse(name).ok()?;
            return self.ctx.is_local(&user_id).then_some(user_id);
        }
        UserId::parse_with_server_name(name.to_ascii_lowercase(), &self.ctx.server_name).ok()
    }

    fn device_changes(&self) -> Option<Arc<dyn DeviceChanges>> {
        self.inner.device_changes.get().cloned()
    }

    fn wake(&self, servers: Vec<ruma::OwnedServerName>) {
        if let Some(hook) = self.inner.device_changes.get() {
            hook.wake(servers);
        }
    }
}

/// Adds an account with what every account has from the start: a display name and the default push rules.
fn insert(
    txn: &WriteTxn<'_>,
    user_id: &UserId,
    password_hash: &str,
    now: MilliSecondsSinceUnixEpoch,
) -> Result<(), Error> {
    if !txn.insert_user(user_id, Some(password_hash), now)? {
        return Err(user_in_use());
    }
    // Names of servers are long: a user that has said nothing yet is shown by what they chose to be called.
    let name = serde_json::Value::from(user_id.localpart()).to_string();
    txn.set_profile_field(user_id, ProfileFieldName::DisplayName.as_str(), &name)?;
    push::rules::keep_default_rules(txn, user_id)
}

fn no_such_user() -> Error {
    Error::not_found("there is no such user")
}

fn user_in_use() -> Error {
    Error::refused(StatusCode::BAD_REQUEST, ErrorKind::UserInUse, "that name is taken")
}

pub(super) fn unknown_token(soft_logout: bool) -> Error {
    let mut data = UnknownTokenErrorData::new();
    data.soft_logout = soft_logout;
    let message = if soft_logout {
        "the access token has expired; refresh it"
    } else {
        "unknown access token"
    };
    Error::refused(StatusCode::UNAUTHORIZED, ErrorKind::UnknownToken(data), message)
}
