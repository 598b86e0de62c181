//! Joining, leaving, inviting, knocking, removing and banning.

use axum::{Router, http::StatusCode};
use ruma::api::{
    client::{
        knock::knock_room,
        membership::{
            ban_user, forget_room,
            invite_user::{self, v3::InvitationRecipient},
            join_room_by_id, join_room_by_id_or_alias, joined_rooms, kick_user, leave_room, unban_user,
        },
    },
    error::ErrorKind,
};

use crate::{
    Error, Homeserver,
    client_api::{Args, endpoint},
};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    let router = endpoint(router, join_room_by_id);
    let router = endpoint(router, join_room_by_id_or_alias);
    let router = endpoint(router, knock_room);
    let router = endpoint(router, leave_room);
    let router = endpoint(router, forget_room);
    let router = endpoint(router, invite_user);
    let router = endpoint(router, kick_user);
    let router = endpoint(router, ban_user);
    let router = endpoint(router, unban_user);
    endpoint(router, joined_rooms)
}

async fn join_room_by_id(
    hs: Homeserver,
    args: Args<join_room_by_id::v3::Request>,
) -> Result<join_room_by_id::v3::Response, Error> {
    let request = args.request;
    let room_id = hs
        .rooms
        .join(&args.caller.user_id, &request.room_id, Vec::new(), request.reason)
        .await?;
    Ok(join_room_by_id::v3::Response::new(room_id))
}

async fn join_room_by_id_or_alias(
    hs: Homeserver,
    args: Args<join_room_by_id_or_alias::v3::Request>,
) -> Result<join_room_by_id_or_alias::v3::Response, Error> {
    let request = args.request;
    let (room_id, via) = hs.rooms.locate(&request.room_id_or_alias, request.via).await?;
    let room_id = hs
        .rooms
        .join(&args.caller.user_id, &room_id, via, request.reason)
        .await?;
    Ok(join_room_by_id_or_alias::v3::Response::new(room_id))
}

async fn knock_room(hs: Homeserver, args: Args<knock_room::v3::Request>) -> Result<knock_room::v3::Response, Error> {
    let request = args.request;
    let (room_id, via) = hs.rooms.locate(&request.room_id_or_alias, request.via).await?;
    hs.rooms
        .knock(&args.caller.user_id, &room_id, via, request.reason)
        .await?;
    Ok(knock_room::v3::Response::new(room_id))
}

async fn leave_room(hs: Homeserver, args: Args<leave_room::v3::Request>) -> Result<leave_room::v3::Response, Error> {
    hs.rooms
        .leave(&args.caller.user_id, &args.request.room_id, args.request.reason)
        .await?;
    Ok(leave_room::v3::Response::new())
}

async fn forget_room(hs: Homeserver, args: Args<forget_room::v3::Request>) -> Result<forget_room::v3::Response, Error> {
    hs.rooms.forget(&args.caller.user_id, &args.request.room_id).await?;
    Ok(forget_room::v3::Response::new())
}

async fn invite_user(hs: Homeserver, args: Args<invite_user::v3::Request>) -> Result<invite_user::v3::Response, Error> {
    let InvitationRecipient::UserId(recipient) = args.request.recipient else {
        return Err(Error::refused(
            StatusCode::FORBIDDEN,
            ErrorKind::ThreepidDenied,
            "this node knows no identity server; invite by user id",
        ));
    };
    hs.rooms
        .invite(
            &args.caller.user_id,
            &args.request.room_id,
            &recipient.user_id,
            recipient.reason,
        )
        .await?;
    Ok(invite_user::v3::Response::new())
}

async fn kick_user(hs: Homeserver, args: Args<kick_user::v3::Request>) -> Result<kick_user::v3::Response, Error> {
    let request = args.request;
    hs.rooms
        .kick(&args.caller.user_id, &request.room_id, &request.user_id, request.reason)
        .await?;
    Ok(kick_user::v3::Response::new())
}

async fn ban_user(hs: Homeserver, args: Args<ban_user::v3::Request>) -> Result<ban_user::v3::Response, Error> {
    let request = args.request;
    hs.rooms
        .ban(&args.caller.user_id, &request.room_id, &request.user_id, request.reason)
        .await?;
    Ok(ban_user::v3::Response::new())
}

async fn unban_user(hs: Homeserver, args: Args<unban_user::v3::Request>) -> Result<unban_user::v3::Response, Error> {
    let request = args.request;
    hs.rooms
        .unban(&args.caller.user_id, &request.room_id, &request.user_id, request.reason)
        .await?;
    Ok(unban_user::v3::Response::new())
}

async fn joined_rooms(
    hs: Homeserver,
    args: Args<joined_rooms::v3::Request>,
) -> Result<joined_rooms::v3::Response, Error> {
    let joined = hs.rooms.joined_rooms(&args.caller.user_id).await?;
    Ok(joined_rooms::v3::Response::new(joined))
}
