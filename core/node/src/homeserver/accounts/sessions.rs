//! Logging in, and the tokens that prove a session from then on. Tokens leave here in the clear once; only their hashes stay.

use std::{net::IpAddr, time::Duration};

use kith_store::{NewToken, TokenHash, TokenKind, WriteTxn};
use ruma::{
    DeviceId, MilliSecondsSinceUnixEpoch, OwnedDeviceId, OwnedUserId, UserId,
    api::{client::uiaa::UserIdentifier, error::ErrorKind},
    exports::http::StatusCode,
};
use zeroize::Zeroizing;

use super::{Accounts, cache::Known, unknown_token};
use crate::Error;

/// How long an access token of a client that can refresh works.
const ACCESS_LIFETIME: Duration = Duration::from_secs(60 * 60);
/// How long a refresh token may lie unused.
pub(super) const REFRESH_LIFETIME: Duration = Duration::from_secs(180 * 24 * 60 * 60);
/// How long a login token works; two minutes as the specification suggests.
const LOGIN_TOKEN_LIFETIME: Duration = Duration::from_secs(120);
/// How long an OpenID token works.
const OPENID_TOKEN_LIFETIME: Duration = Duration::from_secs(60 * 60);
/// How stale a device's `last_seen_ts` may be, in milliseconds; each update costs a write.
const LAST_SEEN_MS: u64 = 10 * 60 * 1000;
/// The longest device id a client may choose, in bytes.
const LONGEST_DEVICE_ID: usize = 255;

/// A logged-in device of a local user, as an access token proves it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    /// The user.
    pub user_id: OwnedUserId,
    /// The device.
    pub device_id: OwnedDeviceId,
}

impl Session {
    /// Refuses acting for anyone else.
    pub fn must_be(&self, user_id: &UserId) -> Result<(), Error> {
        if self.user_id == user_id {
            Ok(())
        } else {
            Err(Error::forbidden(format!("you are not {user_id}")))
        }
    }
}

/// The device that a login is for.
#[derive(Debug, Clone, Default)]
pub struct NewDevice {
    /// A device that existed before, or the id wanted; none: one is made up.
    pub device_id: Option<OwnedDeviceId>,
    /// Its name, if it is new.
    pub display_name: Option<String>,
    /// Whether the client can refresh its access token.
    pub refresh: bool,
}

/// What a client gets to hold after logging in or refreshing.
#[derive(Clone)]
pub struct Issued {
    /// Whose session it is.
    pub session: Session,
    /// The access token.
    pub access_token: String,
    /// The refresh token, for clients that asked for one.
    pub refresh_token: Option<String>,
    /// How long the access token works; none: until logged out.
    pub expires_in: Option<Duration>,
}

/// The hash under which a secret token is kept.
pub(super) fn hash(token: &str) -> TokenHash {
    *blake3::hash(token.as_bytes()).as_bytes()
}

impl Accounts {
    /// Logs in by user name (localpart or full id) and password; `M_FORBIDDEN` without saying which of them is wrong.
    pub async fn log_in_by_password(
        &self,
        identifier: &UserIdentifier,
        password: Zeroizing<String>,
        device: NewDevice,
    ) -> Result<Issued, Error> {
        let refused = || Error::forbidden("wrong user name or password");
        let user_id = self.identified(identifier).ok_or_else(refused)?;
        self.check_password(&user_id, password).await?.ok_or_else(refused)?;
        self.log_in(user_id, device).await
    }

    /// Logs in by a token from [`Self::create_login_token`]; it works once.
    pub async fn log_in_by_token(&self, token: &str, device: NewDevice) -> Result<Issued, Error> {
        let taken = self.inner.login_tokens.take(&hash(token), self.ctx.world.now());
        let user_id = taken.ok_or_else(|| Error::forbidden("unknown, used or expired login token"))?;
        self.log_in(user_id, device).await
    }

    /// A token with which another device of the user may log in, and how long it works. Kept in memory only.
    pub fn create_login_token(&self, user_id: OwnedUserId) -> (String, Duration) {
        let token = self.ctx.world.random_token();
        let expires = self.after(LOGIN_TOKEN_LIFETIME);
        self.inner.login_tokens.put(hash(&token), user_id, expires);
        (token, LOGIN_TOKEN_LIFETIME)
    }

    /// A token by which a third party can learn from this server who the user is, and how long it works.
    pub fn create_openid_token(&self, session: &Session, user_id: &UserId) -> Result<(String, Duration), Error> {
        session.must_be(user_id)?;
        let token = self.ctx.world.random_token();
        let expires = self.after(OPENID_TOKEN_LIFETIME);
        self.inner.openid_tokens.put(hash(&token), user_id.to_owned(), expires);
        Ok((token, OPENID_TOKEN_LIFETIME))
    }

    /// Who handed out an OpenID token; `M_UNKNOWN_TOKEN` for one that is unknown or expired.
    pub fn openid_user(&self, token: &str) -> Result<OwnedUserId, Error> {
        let tokens = &self.inner.openid_tokens;
        tokens
            .look_up(&hash(token), self.ctx.world.now())
            .ok_or_else(|| unknown_token(false))
    }

    /// Whose session an access token proves.
    ///
    /// Refuses with `M_UNKNOWN_TOKEN` (`soft_logout` when it has only expired) or `M_USER_LOCKED`.
    pub async fn authenticate(&self, token: &str, from: Option<IpAddr>) -> Result<Session, Error> {
        let (hash, now) = (hash(token), self.ctx.world.now());
        let (known, epoch) = self.inner.cache.look_up(&hash);
        let mut known = match known {
            Some(known) => known,
            None => self.read_token(hash, now).await?,
        };
        if known.expires.is_some_and(|expires| expires <= now) {
            return Err(unknown_token(true));
        }
        if u64::from(now.0).saturating_sub(u64::from(known.last_seen.0)) >= LAST_SEEN_MS {
            let (session, from) = (known.session.clone(), from.map(|ip| ip.to_string()));
            self.ctx
                .store
                .write(move |txn| {
                    Ok::<_, Error>(txn.touch_device(&session.user_id, &session.device_id, now, from.as_deref())?)
                })
                .await?;
            known.last_seen = now;
        }
        let session = known.session.clone();
        self.inner.cache.remember(hash, known, epoch);
        Ok(session)
    }

    /// Trades a refresh token for the next pair. The old pair works until the client shows that it got the new one.
    pub async fn refresh(&self, refresh_token: &str) -> Result<Issued, Error> {
        let (old, now) = (hash(refresh_token), self.ctx.world.now());
        let tokens = self.new_tokens(true);
        let (access, refresh) = (self.ctx.world.random_token(), self.ctx.world.random_token());
        let kept = tokens.hashes(&access, Some(&refresh));
        let session = self
            .ctx
            .store
            .write(move |txn| {
                let unknown = || unknown_token(false);
                let old = txn.token(&old, TokenKind::Refresh)?.ok_or_else(unknown)?;
                if old.expires.is_some_and(|expires| expires <= now) {
                    return Err(unknown());
                }
                if old.locked {
                    return Err(locked());
                }
                if old.unconfirmed {
                    txn.confirm_tokens(&old.user_id, &old.device_id, old.generation)?;
                }
                txn.delete_unconfirmed_tokens(&old.user_id, &old.device_id)?;
                txn.insert_tokens(&old.user_id, &old.device_id, old.generation + 1, &kept)?;
                Ok(Session {
                    user_id: old.user_id,
                    device_id: old.device_id,
                })
            })
            .await?;
        self.inner.cache.forget_device(&session.user_id, &session.device_id);
        Ok(Issued {
            session,
            access_token: access,
            refresh_token: Some(refresh),
            expires_in: Some(ACCESS_LIFETIME),
        })
    }

    /// Logs a user who has proven who they are in on a device.
    async fn log_in(&self, user_id: OwnedUserId, device: NewDevice) -> Result<Issued, Error> {
        let (prepared, now) = (self.prepare(user_id, device)?, self.ctx.world.now());
        let issued = self
            .ctx
            .store
            .write(move |txn| {
                let user = txn.user(&prepared.issued.session.user_id)?;
                match user {
                    Some(user) if user.locked => Err(locked()),
                    Some(user) if !user.deactivated => prepared.save(txn, now),
                    _ => Err(Error::refused(
                        StatusCode::FORBIDDEN,
                        ErrorKind::UserDeactivated,
                        "the account was deactivated",
                    )),
                }
            })
            .await?;
        let session = &issued.session;
        self.inner.cache.forget_device(&session.user_id, &session.device_id);
        Ok(issued)
    }

    /// Makes tokens for a device, to be saved in a write.
    pub(super) fn prepare(&self, user_id: OwnedUserId, device: NewDevice) -> Result<Prepared, Error> {
        let device_id = match device.device_id {
            Some(id) if id.as_str().is_empty() || id.as_str().len() > LONGEST_DEVICE_ID => {
                return Err(Error::invalid_param(format!(
                    "a device id has 1 to {LONGEST_DEVICE_ID} bytes"
                )));
            }
            Some(id) => id,
            None => self.new_device_id(),
        };
        let access_token = self.ctx.world.random_token();
        let refresh_token = device.refresh.then(|| self.ctx.world.random_token());
        let tokens = self.new_tokens(device.refresh);
        Ok(Prepared {
            tokens: tokens.hashes(&access_token, refresh_token.as_deref()),
            display_name: device.display_name,
            issued: Issued {
                session: Session { user_id, device_id },
                access_token,
                refresh_token,
                expires_in: device.refresh.then_some(ACCESS_LIFETIME),
            },
        })
    }

    /// Ten upper-case letters and digits, as people are used to compare when verifying a device.
    fn new_device_id(&self) -> OwnedDeviceId {
        let text = data_encoding::BASE32_NOPAD.encode(&self.ctx.world.random_bytes::<10>());
        <&DeviceId>::from(text.get(..10).unwrap_or(&text)).to_owned()
    }

    fn new_tokens(&self, refresh: bool) -> Lifetimes {
        Lifetimes {
            access: refresh.then(|| self.after(ACCESS_LIFETIME)),
            refresh: self.after(REFRESH_LIFETIME),
        }
    }

    async fn read_token(&self, hash: TokenHash, now: MilliSecondsSinceUnixEpoch) -> Result<Known, Error> {
        let token = self
            .ctx
            .store
            .read(move |txn| Ok::<_, Error>(txn.token(&hash, TokenKind::Access)?))
            .await?
            .ok_or_else(|| unknown_token(false))?;
        if token.locked {
            return Err(locked());
        }
        let known = Known {
            session: Session {
                user_id: token.user_id,
                device_id: token.device_id,
            },
            expires: token.expires,
            last_seen: token.last_seen,
        };
        if token.unconfirmed && known.expires.is_none_or(|expires| expires > now) {
            let (session, generation) = (known.session.clone(), token.generation);
            self.ctx
                .store
                .write(move |txn| {
                    // It may have been superseded since it was read.
                    txn.token(&hash, TokenKind::Access)?
                        .ok_or_else(|| unknown_token(false))?;
                    Ok::<_, Error>(txn.confirm_tokens(&session.user_id, &session.device_id, generation)?)
                })
                .await?;
            self.inner
                .cache
                .forget_device(&known.session.user_id, &known.session.device_id);
        }
        Ok(known)
    }
}

struct Lifetimes {
    access: Option<MilliSecondsSinceUnixEpoch>,
    refresh: MilliSecondsSinceUnixEpoch,
}

impl Lifetimes {
    fn hashes(&self, access: &str, refresh: Option<&str>) -> Vec<NewToken> {
        let access = NewToken {
            hash: hash(access),
            kind: TokenKind::Access,
            expires: self.access,
        };
        let refresh = refresh.map(|refresh| NewToken {
            hash: hash(refresh),
            kind: TokenKind::Refresh,
            expires: Some(self.refresh),
        });
        std::iter::once(access).chain(refresh).collect()
    }
}

/// A login that only needs saving.
pub(super) struct Prepared {
    tokens: Vec<NewToken>,
    display_name: Option<String>,
    issued: Issued,
}

impl Prepared {
    pub(super) fn save(self, txn: &WriteTxn<'_>, now: MilliSecondsSinceUnixEpoch) -> Result<Issued, Error> {
        let Session { user_id, device_id } = &self.issued.session;
        txn.log_device_in(user_id, device_id, self.display_name.as_deref(), now)?;
        txn.insert_tokens(user_id, device_id, 0, &self.tokens)?;
        Ok(self.issued)
    }
}

fn locked() -> Error {
    Error::refused(
        StatusCode::UNAUTHORIZED,
        ErrorKind::UserLocked,
        "an administrator has locked the account",
    )
}
