//! Joining and knocking: through the room's own state where this node is in the room, else through a server that is.

use super::{Rooms, aliases::MAX_SERVERS, enter::Way, member::member_draft};
use crate::Error;
use kith_engine::{JoinGrant, join_grant};
use ruma::{
    CanonicalJsonValue, OwnedRoomId, OwnedServerName, RoomId, UserId, api::error::ErrorKind,
    events::room::member::MembershipState,
};

impl Rooms {
    /// Joins a room, through `via` and whatever other servers are known to be in it if this node is not. Joining again
    /// changes nothing.
    pub async fn join(
        &self,
        user: &UserId,
        room: &RoomId,
        via: Vec<OwnedServerName>,
        reason: Option<String>,
    ) -> Result<OwnedRoomId, Error> {
        let (rooms, user, room) = (self.clone(), user.to_owned(), room.to_owned());
        // A client that hangs up midway must not leave a join half done: the room would think that we are in it.
        let joining = tokio::spawn(async move {
            let _turn = rooms.entering.take(&room).await;
            let joined = rooms.join_in_turn(&user, &room, via, reason).await;
            rooms.finish_later(&joined);
            joined.map(|()| room.clone())
        });
        finished(joining.await)
    }

    /// Has a way into a room looked at that may have been cut short.
    fn finish_later(&self, entered: &Result<(), Error>) {
        if entered.is_err() {
            self.owing.notify_one();
        }
    }

    /// [`Rooms::join`], when it is this one's turn to enter the room.
    pub(super) async fn join_in_turn(
        &self,
        user: &UserId,
        room: &RoomId,
        via: Vec<OwnedServerName>,
        reason: Option<String>,
    ) -> Result<(), Error> {
        let standing = self.standing(user, room).await?;
        if standing.resident {
            if standing.membership == Some(MembershipState::Join) {
                return Ok(());
            }
            match self.join_here(user, room, reason.clone()).await {
                // Another server may be able to tell, or to let the user in, where this one is not.
                Err(error) if is_unable(&error) => {
                    let others = self.ways_in(user, room, via).await?;
                    return match self.enter_through(user, room, &others, Way::Join, reason).await {
                        Err(Error::Network(_)) => Err(error),
                        other => other,
                    };
                }
                other => return other,
            }
        }
        let servers = self.ways_in(user, room, via).await?;
        self.enter_through(user, room, &servers, Way::Join, reason).await
    }

    /// Joins a room that this node is in.
    async fn join_here(&self, user: &UserId, room: &RoomId, reason: Option<String>) -> Result<(), Error> {
        let profile = self.member_profile(user).await?;
        let own = self.ctx.server_name.clone();
        let (user, room) = (user.to_owned(), room.to_owned());
        self.commit(move |commit| {
            let mut draft = member_draft(&user, &user, &MembershipState::Join, reason, profile);
            if let JoinGrant::Through(inviter) = join_grant(&**commit.txn, &room, &user, &own)? {
                let inviter = CanonicalJsonValue::String(inviter.into());
                draft
                    .content
                    .insert("join_authorised_via_users_server".to_owned(), inviter);
            }
            commit.make(&room, &draft)?;
            Ok(())
        })
        .await
    }

    /// Asks to be let into a room.
    pub async fn knock(
        &self,
        user: &UserId,
        room: &RoomId,
        via: Vec<OwnedServerName>,
        reason: Option<String>,
    ) -> Result<(), Error> {
        let (rooms, user, room) = (self.clone(), user.to_owned(), room.to_owned());
        let knocking = tokio::spawn(async move {
            let _turn = rooms.entering.take(&room).await;
            let knocked = rooms.knock_in_turn(&user, &room, via, reason).await;
            rooms.finish_later(&knocked);
            knocked
        });
        finished(knocking.await)
    }

    async fn knock_in_turn(
        &self,
        user: &UserId,
        room: &RoomId,
        via: Vec<OwnedServerName>,
        reason: Option<String>,
    ) -> Result<(), Error> {
        let standing = self.standing(user, room).await?;
        if standing.membership == Some(MembershipState::Knock) {
            return Ok(());
        }
        if !standing.resident {
            let servers = self.ways_in(user, room, via).await?;
            return self.enter_through(user, room, &servers, Way::Knock, reason).await;
        }
        let profile = self.member_profile(user).await?;
        let draft = member_draft(user, user, &MembershipState::Knock, reason, profile);
        let room = room.to_owned();
        self.commit(move |commit| commit.make(&room, &draft).map(drop)).await
    }

    /// Waits until nobody enters this room through another server any more. Events of a room that is not known may be
    /// of one that is being entered: wait before refusing them.
    pub async fn settle(&self, room: &RoomId) {
        drop(self.entering.take(room).await);
    }

    /// Servers to enter a room through, the likeliest first: those that the client names, the one that passed on an invite or a
    /// knock, those that were in the room when this node was, and the one that made it.
    pub(super) async fn ways_in(
        &self,
        user: &UserId,
        room: &RoomId,
        via: Vec<OwnedServerName>,
    ) -> Result<Vec<OwnedServerName>, Error> {
        let own = self.ctx.server_name.clone();
        let (user, room) = (user.to_owned(), room.to_owned());
        self.ctx
            .store
            .read(move |txn| {
                let mut servers: Vec<OwnedServerName> = Vec::new();
                let told = txn.outside_membership(&user, &room)?.map(|outside| outside.via);
                let known = via.into_iter().chain(told);
                let known = known.chain(txn.joined_servers(&room)?);
                let known = known.chain(room.server_name().map(ToOwned::to_owned));
                for server in known {
                    if server != own && !servers.contains(&server) && servers.len() < MAX_SERVERS {
                        servers.push(server);
                    }
                }
                Ok(servers)
            })
            .await
    }
}

/// What a task that must not be cut short came to.
fn finished<T>(outcome: Result<Result<T, Error>, tokio::task::JoinError>) -> Result<T, Error> {
    outcome.map_err(|error| Error::Internal("a task of the rooms service ended early", Some(Box::new(error))))?
}

/// Whether a refusal says no more than that this server cannot help.
fn is_unable(error: &Error) -> bool {
    matches!(error, Error::Refused { kind, .. }
        if matches!(**kind, ErrorKind::UnableToAuthorizeJoin | ErrorKind::UnableToGrantJoin))
}
