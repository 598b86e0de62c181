//! Room aliases: names like `#room:server` that a server hands out for rooms. A node answers only for its own.

use ruma::{
    OwnedRoomAliasId, OwnedRoomId, OwnedServerName, RoomAliasId, RoomId, RoomOrAliasId, UserId,
    api::{error::ErrorKind, federation::query::get_room_information},
    events::{
        StateEventType,
        room::{canonical_alias::RoomCanonicalAliasEventContent, member::MembershipState},
    },
    exports::http::StatusCode,
};

use super::{
    Rooms,
    state::{find_room, get_room, is_world_readable, may_send_state, room_of_member},
};
use crate::{Error, federation::client};

/// Servers named in an answer about an alias, and tried when joining, at the most.
pub(super) const MAX_SERVERS: usize = 20;

impl Rooms {
    /// Makes an alias of this node for a room that the user is joined to.
    pub async fn create_alias(&self, user: &UserId, alias: &RoomAliasId, room: &RoomId) -> Result<(), Error> {
        self.must_be_own_alias(alias)?;
        let (user, alias, room) = (user.to_owned(), alias.to_owned(), room.to_owned());
        self.ctx
            .store
            .write(move |txn| {
                room_of_member(txn, &room, &user)?;
                if !txn.add_alias(&alias, &room, &user)? {
                    return Err(taken(&alias));
                }
                Ok(())
            })
            .await
    }

    /// Removes an alias of this node. Its maker may, and whoever may change the room's canonical alias.
    pub async fn delete_alias(&self, user: &UserId, alias: &RoomAliasId) -> Result<(), Error> {
        self.must_be_own_alias(alias)?;
        let (user, alias) = (user.to_owned(), alias.to_owned());
        self.ctx
            .store
            .write(move |txn| {
                let found = txn.alias(&alias)?.ok_or_else(|| unknown(&alias))?;
                let may = found.creator == user
                    || match find_room(txn, &found.room_id)? {
                        Some(room) => may_send_state(&room, &user, StateEventType::RoomCanonicalAlias)?,
                        None => false,
                    };
                if !may {
                    return Err(Error::forbidden("this alias is somebody else's"));
                }
                txn.remove_alias(&alias)?;
                Ok(())
            })
            .await
    }

    /// What an alias names, and servers to reach the room through. Other servers' aliases are asked for.
    pub async fn resolve_alias(&self, alias: &RoomAliasId) -> Result<(OwnedRoomId, Vec<OwnedServerName>), Error> {
        if self.ctx.is_self(alias.server_name()) {
            return self.own_alias(alias).await;
        }
        let request = get_room_information::v1::Request::new(alias.to_owned());
        let answer = client::request(&self.ctx, alias.server_name(), request)
            .await
            .map_err(Error::passed_on)?;
        Ok((answer.room_id, answer.servers))
    }

    /// [`Rooms::resolve_alias`] for this node's aliases only.
    pub async fn own_alias(&self, alias: &RoomAliasId) -> Result<(OwnedRoomId, Vec<OwnedServerName>), Error> {
        self.must_be_own_alias(alias)?;
        let alias = alias.to_owned();
        let own = self.ctx.server_name.clone();
        self.ctx
            .store
            .read(move |txn| {
                let found = txn.alias(&alias)?.ok_or_else(|| unknown(&alias))?;
                let mut servers = vec![own.clone()];
                let others = txn.joined_servers(&found.room_id)?.into_iter();
                servers.extend(others.filter(|server| *server != own).take(MAX_SERVERS - 1));
                Ok((found.room_id, servers))
            })
            .await
    }

    /// The room that a client names, with the servers it names beside those that an alias leads to.
    pub async fn locate(
        &self,
        name: &RoomOrAliasId,
        mut via: Vec<OwnedServerName>,
    ) -> Result<(OwnedRoomId, Vec<OwnedServerName>), Error> {
        if let Ok(room) = <&RoomId>::try_from(name) {
            return Ok((room.to_owned(), via));
        }
        let alias =
            <&RoomAliasId>::try_from(name).map_err(|_| Error::invalid_param("neither a room id nor a room alias"))?;
        let (room, servers) = self.resolve_alias(alias).await?;
        via.extend(servers);
        Ok((room, via))
    }

    /// A room's aliases of this node, for its members and where everybody may read the room.
    pub async fn aliases(&self, user: &UserId, room: &RoomId) -> Result<Vec<OwnedRoomAliasId>, Error> {
        let (user, room) = (user.to_owned(), room.to_owned());
        self.ctx
            .store
            .read(move |txn| {
                let current = find_room(txn, &room)?;
                let may = match &current {
                    Some(current) => current.membership(&user)? == MembershipState::Join || is_world_readable(current)?,
                    None => false,
                };
                if !may {
                    return Err(Error::forbidden("only members see a room's aliases"));
                }
                Ok(txn.aliases_of(&room)?)
            })
            .await
    }

    /// Checks the aliases that an `m.room.canonical_alias` event names anew: each must lead to this room.
    ///
    /// Client-server API, `m.room.canonical_alias` and `PUT …/state/m.room.canonical_alias`.
    pub(super) async fn check_canonical_alias(&self, room: &RoomId, content: &str) -> Result<(), Error> {
        let parsed: RoomCanonicalAliasEventContent =
            serde_json::from_str(content).map_err(|error| Error::invalid_param(error.to_string()))?;
        let wanted = parsed.alias.into_iter().chain(parsed.alt_aliases);
        let before = {
            let room = room.to_owned();
            self.ctx
                .store
                .read(move |txn| {
                    let content = get_room(txn, &room)?
                        .content::<RoomCanonicalAliasEventContent>(StateEventType::RoomCanonicalAlias, "")?;
                    Ok::<_, Error>(content.unwrap_or_default())
                })
                .await?
        };
        let known =
            |alias: &OwnedRoomAliasId| before.alias.as_ref() == Some(alias) || before.alt_aliases.contains(alias);
        for alias in wanted.filter(|alias| !known(alias)) {
            let leads_here = matches!(self.resolve_alias(&alias).await, Ok((found, _)) if found == room);
            if !leads_here {
                return Err(Error::refused(
                    StatusCode::BAD_REQUEST,
                    ErrorKind::BadAlias,
                    format!("{alias} does not lead to this room"),
                ));
            }
        }
        Ok(())
    }

    /// Refuses aliases of other servers, which only those servers hand out.
    fn must_be_own_alias(&self, alias: &RoomAliasId) -> Result<(), Error> {
        if self.ctx.is_self(alias.server_name()) {
            return Ok(());
        }
        Err(Error::invalid_param("this alias belongs to another server"))
    }
}

pub(super) fn taken(alias: &RoomAliasId) -> Error {
    Error::refused(
        StatusCode::CONFLICT,
        ErrorKind::Unknown,
        format!("{alias} exists already"),
    )
}

fn unknown(alias: &RoomAliasId) -> Error {
    Error::not_found(format!("{alias} names no room"))
}
