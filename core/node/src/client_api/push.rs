//! Push rules, pushers and the list of notifications.

use axum::Router;
use ruma::{
    api::client::push::{
        delete_pushrule, get_notifications, get_pushers, get_pushrule, get_pushrule_actions, get_pushrule_enabled,
        get_pushrules_all, get_pushrules_global_scope,
        set_pusher::{self, v3::PusherAction},
        set_pushrule, set_pushrule_actions, set_pushrule_enabled,
    },
    exports::http::StatusCode,
};

use super::{Args, endpoint, endpoint_at};
use crate::{Error, Homeserver};

pub(super) fn routes(router: Router<Homeserver>) -> Router<Homeserver> {
    let router = endpoint(router, get_pushrules_all);
    // Some clients leave the trailing slash out.
    let router = endpoint_at(router, "/_matrix/client/v3/pushrules", get_pushrules_all);
    let router = endpoint(router, get_pushrules_global_scope);
    let router = endpoint(router, get_pushrule);
    let router = endpoint(router, set_pushrule);
    let router = endpoint(router, delete_pushrule);
    let router = endpoint(router, get_pushrule_actions);
    let router = endpoint(router, set_pushrule_actions);
    let router = endpoint(router, get_pushrule_enabled);
    let router = endpoint(router, set_pushrule_enabled);
    let router = endpoint(router, get_pushers);
    let router = endpoint(router, set_pusher);
    endpoint(router, get_notifications)
}

async fn get_pushrules_all(
    hs: Homeserver,
    args: Args<get_pushrules_all::v3::Request>,
) -> Result<get_pushrules_all::v3::Response, Error> {
    Ok(get_pushrules_all::v3::Response::new(hs.push.rules(&args.caller).await?))
}

async fn get_pushrules_global_scope(
    hs: Homeserver,
    args: Args<get_pushrules_global_scope::v3::Request>,
) -> Result<get_pushrules_global_scope::v3::Response, Error> {
    let rules = hs.push.rules(&args.caller).await?;
    Ok(get_pushrules_global_scope::v3::Response::new(rules))
}

async fn get_pushrule(
    hs: Homeserver,
    args: Args<get_pushrule::v3::Request>,
) -> Result<get_pushrule::v3::Response, Error> {
    let request = args.request;
    let rule = hs.push.rule(&args.caller, request.kind, &request.rule_id).await?;
    Ok(get_pushrule::v3::Response::new(rule))
}

async fn set_pushrule(
    hs: Homeserver,
    args: Args<set_pushrule::v3::Request>,
) -> Result<set_pushrule::v3::Response, Error> {
    let request = args.request;
    hs.push
        .set_rule(&args.caller, request.rule, request.before, request.after)
        .await?;
    Ok(set_pushrule::v3::Response::new())
}

async fn delete_pushrule(
    hs: Homeserver,
    args: Args<delete_pushrule::v3::Request>,
) -> Result<delete_pushrule::v3::Response, Error> {
    let request = args.request;
    hs.push.delete_rule(&args.caller, request.kind, request.rule_id).await?;
    Ok(delete_pushrule::v3::Response::new())
}

async fn get_pushrule_actions(
    hs: Homeserver,
    args: Args<get_pushrule_actions::v3::Request>,
) -> Result<get_pushrule_actions::v3::Response, Error> {
    let request = args.request;
    let rule = hs.push.rule(&args.caller, request.kind, &request.rule_id).await?;
    Ok(get_pushrule_actions::v3::Response::new(rule.actions))
}

async fn set_pushrule_actions(
    hs: Homeserver,
    args: Args<set_pushrule_actions::v3::Request>,
) -> Result<set_pushrule_actions::v3::Response, Error> {
    let request = args.request;
    hs.push
        .set_rule_actions(&args.caller, request.kind, request.rule_id, request.actions)
        .await?;
    Ok(set_pushrule_actions::v3::Response::new())
}

async fn get_pushrule_enabled(
    hs: Homeserver,
    args: Args<get_pushrule_enabled::v3::Request>,
) -> Result<get_pushrule_enabled::v3::Response, Error> {
    let request = args.request;
    let rule = hs.push.rule(&args.caller, request.kind, &request.rule_id).await?;
    Ok(get_pushrule_enabled::v3::Response::new(rule.enabled))
}

async fn set_pushrule_enabled(
    hs: Homeserver,
    args: Args<set_pushrule_enabled::v3::Request>,
) -> Result<set_pushrule_enabled::v3::Response, Error> {
    let request = args.request;
    hs.push
        .enable_rule(&args.caller, request.kind, request.rule_id, request.enabled)
        .await?;
    Ok(set_pushrule_enabled::v3::Response::new())
}

async fn get_pushers(hs: Homeserver, args: Args<get_pushers::v3::Request>) -> Result<get_pushers::v3::Response, Error> {
    Ok(get_pushers::v3::Response::new(hs.push.pushers(&args.caller).await?))
}

async fn set_pusher(hs: Homeserver, args: Args<set_pusher::v3::Request>) -> Result<set_pusher::v3::Response, Error> {
    match args.request.action {
        PusherAction::Post(data) => hs.push.set_pusher(&args.caller, data.pusher, data.append).await?,
        PusherAction::Delete(ids) => hs.push.delete_pusher(&args.caller, ids).await?,
        _ => {
            return Err(Error::refused(
                StatusCode::BAD_REQUEST,
                ruma::api::error::ErrorKind::Unrecognized,
                "unknown action",
            ));
        }
    }
    Ok(set_pusher::v3::Response::new())
}

async fn get_notifications(
    hs: Homeserver,
    args: Args<get_notifications::v3::Request>,
) -> Result<get_notifications::v3::Response, Error> {
    let request = args.request;
    let limit = request.limit.and_then(|limit| usize::try_from(limit).ok());
    let highlights_only = request.only.as_deref() == Some("highlight");
    let page = hs
        .push
        .notifications(&args.caller, request.from, limit, highlights_only)
        .await?;
    let mut response = get_notifications::v3::Response::new(page.notifications);
    response.next_token = page.next;
    Ok(response)
}
