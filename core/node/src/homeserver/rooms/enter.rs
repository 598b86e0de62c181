//! Entering, leaving and knocking at rooms through other servers: one asks for a template, completes and signs it, and
//! hands it back. A server that does not help is passed over for the next. Nothing that another server tells is believed
//! before the engine has judged it.

use std::time::Duration;

use kith_engine::{
    CheckedPdu, Expected, ImportError, RoomReader, SUPPORTED_VERSIONS, UncheckedPdu, build_on_template, import_room,
    json::parse_object, membership_of, prune_stripped_state,
};
use kith_store::{NewOutsideMembership, OwedLeave, StoreError, WriteTxn};
use ruma::{
    CanonicalJsonObject, OwnedEventId, OwnedServerName, RoomId, RoomVersionId, ServerName, UserId,
    api::{
        error::ErrorKind,
        federation::membership::{
            create_join_event::v2::{Request as SendJoin, RoomState},
            create_knock_event, create_leave_event, prepare_join_event, prepare_knock_event, prepare_leave_event,
        },
    },
    events::room::member::MembershipState,
    exports::http::StatusCode,
};
use serde_json::value::RawValue;

use super::{Rooms, commit::signer, outside::stripped};
use crate::{
    Error,
    federation::client,
    network::{Limits, NetworkError},
};

/// What a whole room may cost that comes as one answer.
const JOIN_LIMITS: Limits = Limits {
    deadline: Duration::from_secs(120),
    max_answer: 64 * 1024 * 1024,
    bulk: true,
};

/// How a room is entered.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    /// By joining.
    Join,
    /// By asking to be let in.
    Knock,
}

impl Rooms {
    /// Joins a room, or knocks at it, through the first of these servers that lets the user in or passes the knock on.
    pub(super) async fn enter_through(
        &self,
        user: &UserId,
        room: &RoomId,
        servers: &[OwnedServerName],
        way: Way,
        reason: Option<String>,
    ) -> Result<(), Error> {
        let profile = self.own_fields(user, reason.clone()).await?;
        let membership = match way {
            Way::Join => MembershipState::Join,
            Way::Knock => MembershipState::Knock,
        };
        let mut failures = Failures::default();
        for server in servers {
            let begun = async {
                let apart = match way {
                    Way::Join => self.heads_apart(room, server).await?,
                    Way::Knock => Vec::new(),
                };
                let event = self.complete(user, room, server, membership.clone(), &profile);
                let event = event.await?;
                self.begin_entry(user, server, &event, reason.clone()).await?;
                match way {
                    Way::Join => self.join_through_one(server, event, apart).await,
                    Way::Knock => self.knock_through_one(user, server, event).await,
                }
            };
            match begun.await {
                Ok(()) => return Ok(()),
                Err(error) => {
                    self.note_unbelieved(user, room, server, &error).await?;
                    failures.note(server, error)?;
                }
            }
        }
        Err(failures.sum_up())
    }

    async fn join_through_one(
        &self,
        server: &ServerName,
        join: CheckedPdu,
        apart: Vec<OwnedEventId>,
    ) -> Result<(), Error> {
        let room = join.room_id().to_owned();
        let request = SendJoin::new(room, join.event_id().to_owned(), join.pdu().to_raw());
        let answer = client::request_within(&self.ctx, server, request, JOIN_LIMITS).await?;
        self.take_in(server, join, answer.room_state, apart).await
    }

    /// Verifies what another server told of a room that it let us into, and keeps it in one commit. Malformed events and
    /// those whose signatures do not hold are left out; if the room needs one of them, it is missed then. 403 `M_FORBIDDEN` if
    /// it let us in only because it lacks what is held here `apart`.
    async fn take_in(
        &self,
        server: &ServerName,
        join: CheckedPdu,
        told: RoomState,
        apart: Vec<OwnedEventId>,
    ) -> Result<(), Error> {
        let join = match told.event {
            Some(signed) => self.signed_join(server, &join, &signed).await?,
            None => join,
        };
        let (room, version) = (join.room_id(), join.version());
        let state = self.server_keys.check(told.state, room, version, server).await?;
        let chain = self.server_keys.check(told.auth_chain, room, version, server).await?;
        let server = server.to_owned();
        let inside = self.commit(move |commit| {
            let (user, room) = (join.pdu().sender(), join.room_id());
            if commit.txn.room_version(room)?.is_some() {
                commit.txn.leave_gap()?;
            }
            let import = import_room(&**commit.txn, &state, &chain, &join, &apart);
            for applied in import.map_err(|error| not_imported(&server, error))? {
                commit.keep(&applied)?;
            }
            commit.txn.end_entry(user, room)?;
            commit.entered(room)?;
            Ok(commit.txn.membership(room, user)? == MembershipState::Join)
        });
        match inside.await? {
            true => Ok(()),
            false => Err(Error::forbidden("you were removed from this room")),
        }
    }

    /// Our join with the other server's signature, where it has added one.
    async fn signed_join(
        &self,
        server: &ServerName,
        join: &CheckedPdu,
        signed: &RawValue,
    ) -> Result<CheckedPdu, Error> {
        let signed = UncheckedPdu::parse(signed.get(), join.version());
        let signed = signed.map_err(|error| broken(server, error.to_string()))?;
        if signed.event_id() != join.event_id() {
            return Err(broken(server, "it signed another event than the join".to_owned()).into());
        }
        let mut verified = self.server_keys.verify(vec![signed], server).await?;
        match verified.pop() {
            Some((_, Ok(signed))) => Ok(signed),
            Some((_, Err(error))) => Err(broken(server, error.to_string()).into()),
            None => Ok(join.clone()),
        }
    }

    async fn knock_through_one(&self, user: &UserId, server: &ServerName, knock: CheckedPdu) -> Result<(), Error> {
        let (room, event_id, json) = (knock.room_id(), knock.event_id().to_owned(), knock.pdu().to_raw());
        let request = create_knock_event::v1::Request::new(room.to_owned(), event_id, json);
        let answer = client::request(&self.ctx, server, request).await?;
        let told = stripped(&answer.knock_room_state)?;
        let state =
            prune_stripped_state(&told, room, knock.version()).map_err(|error| broken(server, error.to_string()))?;
        let (user, via) = (user.to_owned(), server.to_owned());
        self.ctx
            .store
            .write(move |txn| {
                txn.end_entry(&user, knock.room_id())?;
                set_outside(txn, &user, &via, &knock, &state)
            })
            .await
    }

    /// Refuses an invite or takes a knock back. For our user it is over at once; the room is told through the first of these
    /// servers that passes it on, later if none can be reached now.
    pub(super) async fn leave_through(
        &self,
        user: &UserId,
        room: &RoomId,
        servers: Vec<OwnedServerName>,
        reason: Option<String>,
    ) -> Result<(), Error> {
        // The profile stays out of it: who leaves need not show a face.
        let fields: CanonicalJsonObject = super::member::reason_field(reason.clone()).collect();
        let leave = self.leave_alone(user, room, fields).await?;
        let owed = OwedLeave {
            user_id: user.to_owned(),
            room_id: room.to_owned(),
            servers,
            reason,
        };
        self.keep_lone_leave(&leave, owed.clone()).await?;
        if !self.settle_if_paid(&owed).await? {
            self.owing.notify_one();
        }
        Ok(())
    }

    pub(super) async fn leave_through_one(
        &self,
        user: &UserId,
        room: &RoomId,
        server: &ServerName,
        fields: &CanonicalJsonObject,
    ) -> Result<CheckedPdu, Error> {
        let leave = self
            .complete(user, room, server, MembershipState::Leave, fields)
            .await?;
        let (event_id, json) = (leave.event_id().to_owned(), leave.pdu().to_raw());
        let request = create_leave_event::v2::Request::new(room.to_owned(), event_id, json);
        client::request(&self.ctx, server, request).await?;
        Ok(leave)
    }

    /// Asks a server for a template, completes it and signs it.
    async fn complete(
        &self,
        user: &UserId,
        room: &RoomId,
        server: &ServerName,
        membership: MembershipState,
        fields: &CanonicalJsonObject,
    ) -> Result<CheckedPdu, Error> {
        let (version, template) = self.ask_template(user, room, server, &membership).await?;
        let version = version.ok_or_else(|| broken(server, "it names no room version".to_owned()))?;
        if !SUPPORTED_VERSIONS.contains(&version) {
            return Err(incompatible(version));
        }
        let template = parse_object(template.get()).map_err(|error| broken(server, error.to_string()))?;
        let expected = Expected { room, user, membership };
        let now = self.ctx.world.now();
        build_on_template(&template, &version, &expected, fields.clone(), signer(&self.ctx), now)
            .map_err(|error| broken(server, error.to_string()).into())
    }

    async fn ask_template(
        &self,
        user: &UserId,
        room: &RoomId,
        server: &ServerName,
        membership: &MembershipState,
    ) -> Result<(Option<RoomVersionId>, Box<RawValue>), Error> {
        let (room, user) = (room.to_owned(), user.to_owned());
        match membership {
            MembershipState::Join => {
                let mut request = prepare_join_event::v1::Request::new(room, user);
                request.ver = SUPPORTED_VERSIONS.to_vec();
                let answer = client::request(&self.ctx, server, request).await?;
                Ok((answer.room_version, answer.event))
            }
            MembershipState::Knock => {
                let mut request = prepare_knock_event::v1::Request::new(room, user);
                request.ver = SUPPORTED_VERSIONS.to_vec();
                let answer = client::request(&self.ctx, server, request).await?;
                Ok((Some(answer.room_version), answer.event))
            }
            _ => {
                let request = prepare_leave_event::v1::Request::new(room, user);
                let answer = client::request(&self.ctx, server, request).await?;
                Ok((answer.room_version, answer.event))
            }
        }
    }

    /// Makes a leave that no other server has seen, for our own user to see.
    async fn leave_alone(
        &self,
        user: &UserId,
        room: &RoomId,
        fields: CanonicalJsonObject,
    ) -> Result<CheckedPdu, Error> {
        let (ctx, user, room) = (self.ctx.clone(), user.to_owned(), room.to_owned());
        let held = self.ctx.store.read({
            let (user, room) = (user.clone(), room.clone());
            move |txn| super::outside::last_word(txn, &user, &room)
        });
        let (version, before) = held.await?;
        let membership = MembershipState::Leave;
        let template = super::outside::lone_template(&user, &room, &membership, before);
        let expected = Expected {
            room: &room,
            user: &user,
            membership,
        };
        build_on_template(&template, &version, &expected, fields, signer(&ctx), ctx.world.now())
            .map_err(|error| Error::Internal("a leave could not be made", Some(Box::new(error))))
    }

    /// What this server adds to a membership event: the user's profile and the reason.
    async fn own_fields(&self, user: &UserId, reason: Option<String>) -> Result<CanonicalJsonObject, Error> {
        let mut fields = self.member_profile(user).await?;
        fields.extend(super::member::reason_field(reason));
        Ok(fields)
    }

    /// Keeps a leave that no other server has seen, with what is owed to those that must.
    async fn keep_lone_leave(&self, leave: &CheckedPdu, owed: OwedLeave) -> Result<(), Error> {
        let via = owed.servers.first().unwrap_or(&self.ctx.server_name).clone();
        let leave = leave.clone();
        self.ctx
            .store
            .write(move |txn| {
                txn.end_entry(&owed.user_id, &owed.room_id)?;
                txn.owe_leave(&owed)?;
                set_outside(txn, &owed.user_id, &via, &leave, &[])
            })
            .await
    }
}

fn set_outside(
    txn: &WriteTxn<'_>,
    user: &UserId,
    via: &ServerName,
    event: &CheckedPdu,
    state: &[Box<RawValue>],
) -> Result<(), Error> {
    let membership = membership_of(event.pdu()).unwrap_or(MembershipState::Leave);
    if membership != MembershipState::Leave {
        txn.settle_leave(user, event.room_id())?;
    }
    txn.set_outside_membership(&NewOutsideMembership {
        user_id: user,
        room_id: event.room_id(),
        membership: &membership,
        via,
        version: event.version(),
        event_id: event.event_id(),
        event: &event.pdu().to_raw(),
        state,
    })?;
    Ok(())
}

/// What several servers answered, of which one answer must be given.
#[derive(Default)]
struct Failures(Option<Error>);

impl Failures {
    /// Keeps the most telling failure. Those that no other server can mend are given back at once.
    fn note(&mut self, server: &ServerName, error: Error) -> Result<(), Error> {
        tracing::info!(%error, %server, "a server does not help into a room");
        let error = error.passed_on();
        let final_word = match &error {
            Error::Refused { kind, .. } => matches!(**kind, ErrorKind::IncompatibleRoomVersion(_)),
            Error::Store(_) | Error::Internal(..) => true,
            _ => false,
        };
        if final_word {
            return Err(error);
        }
        if self.0.as_ref().is_none_or(|kept| telling(&error) > telling(kept)) {
            self.0 = Some(error);
        }
        Ok(())
    }

    fn sum_up(self) -> Error {
        self.0
            .unwrap_or_else(|| Error::not_found("no server is known to be in this room"))
    }
}

/// How much a failure tells of the room, rather than of a server's situation.
fn telling(error: &Error) -> u8 {
    match error {
        Error::Refused { status, .. } if *status == StatusCode::FORBIDDEN => 3,
        Error::Refused { status, .. } if *status != StatusCode::NOT_FOUND => 2,
        Error::Refused { .. } => 1,
        _ => 0,
    }
}

fn broken(server: &ServerName, reason: String) -> NetworkError {
    NetworkError::Broken {
        server: server.to_owned(),
        reason,
    }
}

fn not_imported(server: &ServerName, error: ImportError<StoreError>) -> Error {
    match error {
        ImportError::Room(error) => error.into(),
        ImportError::Refused(reason) => Error::forbidden(reason),
        error => broken(server, error.to_string()).into(),
    }
}

/// 400 `M_INCOMPATIBLE_ROOM_VERSION`.
pub(super) fn incompatible(version: RoomVersionId) -> Error {
    let message = format!("room version {version} is not supported on both sides");
    Error::refused(
        StatusCode::BAD_REQUEST,
        ErrorKind::IncompatibleRoomVersion(ruma::api::error::IncompatibleRoomVersionErrorData::new(version)),
        message,
    )
}
