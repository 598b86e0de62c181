//! Push: the rules by which users want to be notified, what notifies them, and where their devices want to be woken.
//! Nothing is sent to a push gateway here.

mod evaluate;
mod pushers;
pub(super) mod rules;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use kith_engine::{ClientFormat, RoomReader as _, Unsigned, client_event, rules};
use kith_store::{ReadTxn, Seq};
use ruma::{
    MilliSecondsSinceUnixEpoch, api::client::push::get_notifications::v3::Notification, events::AnySyncTimelineEvent,
    serde::Raw,
};

use super::{Context, Session};
use crate::Error;

/// Notifications on one page at the most.
const PAGE: usize = 100;

/// The push service.
#[derive(Clone)]
pub struct Push {
    ctx: Context,
    parsed: Arc<rules::ParsedRules>,
}

/// One page of [`Push::notifications`].
pub struct NotificationPage {
    /// Newest first.
    pub notifications: Vec<Notification>,
    /// Where the next page begins; none: there is no more.
    pub next: Option<String>,
}

impl Push {
    /// Makes the service.
    pub fn new(ctx: Context) -> Self {
        Self {
            ctx,
            parsed: Arc::default(),
        }
    }

    /// What the user was or is to be notified of, newest first, from a page's end.
    pub async fn notifications(
        &self,
        session: &Session,
        from: Option<String>,
        limit: Option<usize>,
        highlights_only: bool,
    ) -> Result<NotificationPage, Error> {
        let before = match from {
            Some(from) => Seq(from
                .parse()
                .map_err(|_| Error::invalid_param("`from` is no token of this endpoint"))?),
            None => Seq(i64::MAX),
        };
        let limit = limit.unwrap_or(PAGE).clamp(1, PAGE);
        let (user_id, now) = (session.user_id.clone(), self.ctx.world.now());
        self.ctx
            .store
            .read(move |txn| {
                let found = txn.notifications(&user_id, before, highlights_only, limit)?;
                let next = (found.len() == limit).then(|| found.last().map(|last| last.stream.0.to_string()));
                let mut notifications = Vec::with_capacity(found.len());
                for stored in &found {
                    notifications.extend(render(txn, stored, now)?);
                }
                Ok(NotificationPage {
                    notifications,
                    next: next.flatten(),
                })
            })
            .await
    }
}

/// None when the event is no longer there to be shown.
fn render(
    txn: &ReadTxn<'_>,
    stored: &kith_store::Notification,
    now: MilliSecondsSinceUnixEpoch,
) -> Result<Option<Notification>, Error> {
    let event = txn.timeline_event(&stored.event_id)?;
    let rules = txn
        .room_version(&stored.room_id)?
        .and_then(|version| rules(&version).ok());
    let Some((event, rules)) = event.zip(rules) else {
        return Ok(None);
    };
    let unsigned = Unsigned::aged(&event.pdu, now);
    let json = client_event(&event.pdu, &unsigned, ClientFormat::Sync, &rules.redaction);
    let actions = serde_json::from_str(&stored.actions)
        .map_err(|error| Error::Internal("stored push actions do not parse", Some(Box::new(error))))?;
    Ok(Some(Notification::new(
        actions,
        Raw::<AnySyncTimelineEvent>::from_json(json),
        stored.read,
        stored.room_id.clone(),
        event.pdu.origin_server_ts(),
    )))
}
