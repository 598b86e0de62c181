//! Profiles: names, pictures and whatever else users tell about themselves. It tells no room of a change: rooms do.

use ruma::{
    MxcUri, OwnedUserId, UserId,
    api::{error::ErrorKind, federation::query::get_profile_information},
    exports::http::StatusCode,
    profile::{ProfileFieldName, ProfileFieldValue, UserProfile},
};

use super::{Context, Session};
use crate::{Error, federation::client};

/// The longest field name, in bytes. Client-server API, "Profiles".
const LONGEST_FIELD_NAME: usize = 255;
/// The largest profile, in bytes of JSON. Client-server API, "Profiles".
const LARGEST_PROFILE: usize = 64 * 1024;
/// The longest display name, in bytes: it travels in every membership event, which has a limit of its own.
const LONGEST_DISPLAY_NAME: usize = 1024;

/// The profiles service.
#[derive(Clone)]
pub struct Profiles {
    ctx: Context,
}

impl Profiles {
    /// Makes the service.
    pub fn new(ctx: Context) -> Self {
        Self { ctx }
    }

    /// Anyone's profile; another server's user is asked for there. `M_NOT_FOUND` for a user who does not exist.
    pub async fn profile(&self, user_id: &UserId) -> Result<UserProfile, Error> {
        if self.ctx.is_local(user_id) {
            return self.local_profile(user_id).await;
        }
        self.remote_profile(user_id, None).await
    }

    /// One field of anyone's profile. None when it is not set.
    pub async fn field(&self, user_id: &UserId, field: &ProfileFieldName) -> Result<Option<ProfileFieldValue>, Error> {
        let profile = if self.ctx.is_local(user_id) {
            self.local_profile(user_id).await?
        } else {
            self.remote_profile(user_id, Some(field.clone())).await?
        };
        let value = profile.get(field.as_str()).cloned();
        // A value of the wrong shape can only come from another server; it is as good as none.
        Ok(value.and_then(|value| ProfileFieldValue::new(field.as_str(), value).ok()))
    }

    /// The profile of a user of this node, as other servers may ask for it.
    pub async fn local_profile(&self, user_id: &UserId) -> Result<UserProfile, Error> {
        let user_id = user_id.to_owned();
        self.ctx
            .store
            .read(move |txn| {
                if txn.user(&user_id)?.is_none() {
                    return Err(no_profile());
                }
                Ok(txn.profile(&user_id)?)
            })
            .await
    }

    /// Sets one field of one's own profile. An empty name or picture is none.
    ///
    /// Refuses with `M_FORBIDDEN`, `M_INVALID_PARAM`, `M_KEY_TOO_LARGE` or `M_PROFILE_TOO_LARGE`.
    pub async fn set_field(&self, session: &Session, user_id: &UserId, value: ProfileFieldValue) -> Result<(), Error> {
        session.must_be(user_id)?;
        let field = value.field_name();
        match &value {
            ProfileFieldValue::DisplayName(name) if name.is_empty() => return self.remove(user_id, field).await,
            ProfileFieldValue::AvatarUrl(url) if url.as_str().is_empty() => return self.remove(user_id, field).await,
            ProfileFieldValue::DisplayName(name) if name.len() > LONGEST_DISPLAY_NAME => {
                return Err(Error::invalid_param(format!(
                    "a display name has at most {LONGEST_DISPLAY_NAME} bytes"
                )));
            }
            ProfileFieldValue::AvatarUrl(url) => check_picture(url)?,
            _ => {}
        }
        if field.as_str().len() > LONGEST_FIELD_NAME {
            return Err(Error::refused(
                StatusCode::BAD_REQUEST,
                ErrorKind::KeyTooLarge,
                format!("a field name has at most {LONGEST_FIELD_NAME} bytes"),
            ));
        }
        let json = value.value().to_string();
        self.change(user_id.to_owned(), field, Some(json)).await
    }

    /// Removes one field of one's own profile.
    pub async fn delete_field(
        &self,
        session: &Session,
        user_id: &UserId,
        field: ProfileFieldName,
    ) -> Result<(), Error> {
        session.must_be(user_id)?;
        self.remove(user_id, field).await
    }

    async fn remove(&self, user_id: &UserId, field: ProfileFieldName) -> Result<(), Error> {
        self.change(user_id.to_owned(), field, None).await
    }

    async fn change(&self, user_id: OwnedUserId, field: ProfileFieldName, json: Option<String>) -> Result<(), Error> {
        self.ctx
            .store
            .write(move |txn| {
                match &json {
                    Some(json) => txn.set_profile_field(&user_id, field.as_str(), json)?,
                    None => txn.delete_profile_field(&user_id, field.as_str())?,
                }
                check_size(&txn.profile(&user_id)?)
            })
            .await
    }

    async fn remote_profile(&self, user_id: &UserId, field: Option<ProfileFieldName>) -> Result<UserProfile, Error> {
        let mut request = get_profile_information::v1::Request::new(user_id.to_owned());
        request.field = field;
        match client::request(&self.ctx, user_id.server_name(), request).await {
            Ok(response) => {
                check_size(&response.data)?;
                Ok(response.data)
            }
            Err(error) => Err(error.passed_on()),
        }
    }
}

fn check_picture(url: &MxcUri) -> Result<(), Error> {
    url.validate()
        .map_err(|error| Error::invalid_param(format!("the picture is no mxc: URI: {error}")))
}

fn check_size(profile: &UserProfile) -> Result<(), Error> {
    let size = serde_json::to_vec(profile).map_or(usize::MAX, |json| json.len());
    if size > LARGEST_PROFILE {
        return Err(Error::refused(
            StatusCode::BAD_REQUEST,
            ErrorKind::ProfileTooLarge,
            format!("a profile has at most {LARGEST_PROFILE} bytes"),
        ));
    }
    Ok(())
}

fn no_profile() -> Error {
    Error::not_found("there is no such profile")
}
