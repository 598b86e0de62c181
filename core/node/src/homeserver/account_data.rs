//! What clients keep with the server for themselves: account data, tags and filters. Nobody else ever reads it.

use kith_store::WriteTxn;
use ruma::{
    OwnedRoomId, RoomId, UserId,
    api::{
        client::filter::FilterDefinition,
        error::{ErrorKind, LimitExceededErrorData},
    },
    events::tag::{TagEventContent, TagInfo, Tags},
    exports::http::StatusCode,
};
use serde_json::value::RawValue;

use super::{Context, Session};
use crate::Error;

/// The type under which tags stand.
const TAGS: &str = "m.tag";
/// The longest type of an entry or name of a tag, in bytes.
const LONGEST_NAME: usize = 255;
/// Different filters that a user may keep; clients make a handful.
const FILTERS: u32 = 1024;

/// Types that have endpoints of their own. Client-server API, `PUT account_data`: they cannot be set as account data.
const OWN_ENDPOINTS: [&str; 2] = ["m.fully_read", "m.push_rules"];

/// The account data service.
#[derive(Clone)]
pub struct AccountData {
    ctx: Context,
}

impl AccountData {
    /// Makes the service.
    pub fn new(ctx: Context) -> Self {
        Self { ctx }
    }

    /// One entry's content, global or of a room. `M_NOT_FOUND` when it was never set.
    pub async fn entry(
        &self,
        session: &Session,
        user_id: &UserId,
        room_id: Option<OwnedRoomId>,
        kind: String,
    ) -> Result<Box<RawValue>, Error> {
        session.must_be(user_id)?;
        let user_id = user_id.to_owned();
        self.ctx
            .store
            .read(move |txn| Ok::<_, Error>(txn.account_data(&user_id, room_id.as_deref(), &kind)?))
            .await?
            .ok_or_else(|| Error::not_found("there is no such account data"))
    }

    /// Sets one entry, global or of a room. The content must be a JSON object.
    pub async fn set_entry(
        &self,
        session: &Session,
        user_id: &UserId,
        room_id: Option<OwnedRoomId>,
        kind: String,
        content: &RawValue,
    ) -> Result<(), Error> {
        session.must_be(user_id)?;
        if OWN_ENDPOINTS.contains(&kind.as_str()) {
            return Err(Error::refused(
                StatusCode::METHOD_NOT_ALLOWED,
                ErrorKind::BadJson,
                format!("{kind} cannot be set as account data"),
            ));
        }
        check_name(&kind)?;
        if !content.get().trim_start().starts_with('{') {
            return Err(Error::bad_json("account data is a JSON object"));
        }
        let (user_id, content) = (user_id.to_owned(), content.get().to_owned());
        self.ctx
            .store
            .write(move |txn| {
                txn.set_account_data(&user_id, room_id.as_deref(), &kind, &content)?;
                Ok(())
            })
            .await
    }

    /// The tags of a room.
    pub async fn tags(&self, session: &Session, user_id: &UserId, room_id: OwnedRoomId) -> Result<Tags, Error> {
        session.must_be(user_id)?;
        let user_id = user_id.to_owned();
        self.ctx
            .store
            .read(move |txn| {
                let content = txn.account_data(&user_id, Some(&room_id), TAGS)?;
                Ok::<_, Error>(parse_tags(content.as_deref()))
            })
            .await
    }

    /// Sets one tag of a room.
    pub async fn set_tag(
        &self,
        session: &Session,
        user_id: &UserId,
        room_id: OwnedRoomId,
        tag: String,
        info: TagInfo,
    ) -> Result<(), Error> {
        check_name(&tag)?;
        self.change_tags(session, user_id, room_id, move |tags| {
            tags.insert(tag.into(), info);
        })
        .await
    }

    /// Removes one tag of a room, if it is there.
    pub async fn delete_tag(
        &self,
        session: &Session,
        user_id: &UserId,
        room_id: OwnedRoomId,
        tag: String,
    ) -> Result<(), Error> {
        self.change_tags(session, user_id, room_id, move |tags| {
            tags.remove(&tag.into());
        })
        .await
    }

    async fn change_tags(
        &self,
        session: &Session,
        user_id: &UserId,
        room_id: OwnedRoomId,
        change: impl FnOnce(&mut Tags) + Send + 'static,
    ) -> Result<(), Error> {
        session.must_be(user_id)?;
        let user_id = user_id.to_owned();
        self.ctx
            .store
            .write(move |txn| {
                let mut tags = parse_tags(txn.account_data(&user_id, Some(&room_id), TAGS)?.as_deref());
                change(&mut tags);
                save_tags(txn, &user_id, &room_id, tags)
            })
            .await
    }

    /// Keeps a filter and returns its id.
    pub async fn create_filter(
        &self,
        session: &Session,
        user_id: &UserId,
        filter: &FilterDefinition,
    ) -> Result<String, Error> {
        session.must_be(user_id)?;
        let json = serde_json::to_string(filter)
            .map_err(|error| Error::Internal("a filter did not serialise", Some(Box::new(error))))?;
        let user_id = user_id.to_owned();
        let id = self
            .ctx
            .store
            .write(move |txn| Ok::<_, Error>(txn.keep_filter(&user_id, &json, FILTERS)?))
            .await?;
        id.map(|id| id.to_string()).ok_or_else(|| {
            Error::refused(
                StatusCode::TOO_MANY_REQUESTS,
                ErrorKind::LimitExceeded(LimitExceededErrorData::new()),
                format!("an account keeps at most {FILTERS} filters"),
            )
        })
    }

    /// A filter by its id.
    pub async fn filter(
        &self,
        session: &Session,
        user_id: &UserId,
        filter_id: &str,
    ) -> Result<FilterDefinition, Error> {
        session.must_be(user_id)?;
        let unknown = || Error::not_found("there is no such filter");
        let id = filter_id.parse().map_err(|_| unknown())?;
        let user_id = user_id.to_owned();
        let json = self
            .ctx
            .store
            .read(move |txn| Ok::<_, Error>(txn.filter(&user_id, id)?))
            .await?
            .ok_or_else(unknown)?;
        serde_json::from_str(&json).map_err(|error| Error::Internal("a stored filter", Some(Box::new(error))))
    }
}

fn check_name(name: &str) -> Result<(), Error> {
    if name.len() > LONGEST_NAME {
        return Err(Error::invalid_param(format!("a name has at most {LONGEST_NAME} bytes")));
    }
    Ok(())
}

/// Tags of a room. Clients may also set them whole, as account data, and in any shape: what does not parse is no tag.
fn parse_tags(content: Option<&RawValue>) -> Tags {
    content
        .and_then(|content| serde_json::from_str::<TagEventContent>(content.get()).ok())
        .map(|content| content.tags)
        .unwrap_or_default()
}

fn save_tags(txn: &WriteTxn<'_>, user_id: &UserId, room_id: &RoomId, tags: Tags) -> Result<(), Error> {
    let content = serde_json::to_string(&TagEventContent::new(tags))
        .map_err(|error| Error::Internal("tags did not serialise", Some(Box::new(error))))?;
    txn.set_account_data(user_id, Some(room_id), TAGS, &content)?;
    Ok(())
}
