//! Tells what comes before this server's own joining apart from what is new. It is history even where it must be had now, as
//! the past of a fork that began before that join. Nothing is fetched here.

use kith_engine::{CheckedPdu, Outcome, Pdu, RoomError, RoomReader, membership_of, oldest_first, receive_history};
use kith_store::{ReadTxn, Seq};
use ruma::{OwnedEventId, RoomId, ServerName, UserId, events::room::member::MembershipState};

use super::{
    Incoming,
    history::keep_in_the_past,
    pull::may_connect,
    unconnected::{Unconnected, named_from},
};
use crate::Error;

/// What became of events that came before a join.
#[derive(Debug, Default)]
pub(super) struct Earlier {
    /// Those that were kept.
    pub(super) kept: Vec<OwnedEventId>,
    /// Events that others of them must be authorised by.
    pub(super) lacking: Vec<OwnedEventId>,
}

impl Incoming {
    /// Keeps as history those of the events at hand that come before a join of this server and connect with what is held, and
    /// takes them out. `told`: one of all the events at hand, and the state before it as another server tells it.
    pub(super) async fn keep_earlier(
        &self,
        room: &RoomId,
        open: &mut Unconnected,
        told: Option<(&OwnedEventId, &[OwnedEventId])>,
    ) -> Result<Earlier, Error> {
        let (wanted, own) = (room.to_owned(), self.ctx.server_name.clone());
        let read = self.ctx.store.read(move |txn| before_joins(txn, &wanted, &own));
        let Some((starts, before)) = read.await? else {
            return Ok(Earlier::default());
        };
        let events = oldest_first(named_from(&starts, open.oldest_first()));
        if events.is_empty() {
            return Ok(Earlier::default());
        }
        let (room, told) = (room.to_owned(), told.map(|(id, state)| (id.clone(), state.to_vec())));
        let earlier = self
            .commit(move |txn, rooms| {
                let mut earlier = Earlier::default();
                let places = txn.reserve_history(&room, Some(before), events.len())?;
                for (event, place) in events.iter().zip(places) {
                    let state = told.as_ref().filter(|(id, _)| id == event.event_id());
                    if state.is_none() && !may_connect(txn, event)? {
                        continue;
                    }
                    match judge(txn, event, state.map(|(_, state)| &**state))? {
                        Some(Outcome::Applied(applied)) => keep_in_the_past(txn, rooms, &applied, place)?,
                        Some(Outcome::Missing(missing)) => {
                            earlier.lacking.extend(missing.auth);
                            continue;
                        }
                        Some(Outcome::Known) | None => {}
                    }
                    earlier.kept.push(event.event_id().to_owned());
                }
                Ok(earlier)
            })
            .await?;
        for id in &earlier.kept {
            open.remove(id);
        }
        Ok(earlier)
    }
}

/// None for what cannot be judged, now or ever.
fn judge(txn: &ReadTxn<'_>, event: &CheckedPdu, told: Option<&[OwnedEventId]>) -> Result<Option<Outcome>, Error> {
    match receive_history(txn, event, told) {
        Ok(outcome) => Ok(Some(outcome)),
        Err(error @ RoomError::Read(_)) => Err(error.into()),
        Err(error) => {
            tracing::warn!(event = %event.event_id(), %error, "history that cannot be judged");
            Ok(None)
        }
    }
}

/// The events that joins of this server name and that are not held, and the place of the first of those joins; none if it
/// holds what came before it.
fn before_joins(txn: &ReadTxn<'_>, room: &RoomId, own: &ServerName) -> Result<Option<(Vec<OwnedEventId>, Seq)>, Error> {
    let (mut starts, mut place) = (Vec::new(), None);
    for (missing, namer) in txn.backward_extremities(room)? {
        if txn.event(&namer)?.is_some_and(|namer| is_join_of(&namer.pdu, own))
            && let Some(at) = txn.stream_of(&namer)?
        {
            starts.push(missing);
            place = Some(place.map_or(at, |place: Seq| place.min(at)));
        }
    }
    Ok(place.map(|place| (starts, place)))
}

fn is_join_of(pdu: &Pdu, server: &ServerName) -> bool {
    let user = pdu.state_key().and_then(|user| <&UserId>::try_from(user).ok());
    membership_of(pdu) == Some(MembershipState::Join) && user.is_some_and(|user| user.server_name() == server)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use crate::testing::{
        Cluster, escape,
        rooms::{common_room, join, numbered, say, until_alike, until_text},
    };

    /// Bob says something in ignorance of carol's joining. For that, her node needs what came before, which is no news to her.
    #[tokio::test]
    async fn what_was_said_before_one_came_is_no_news() {
        let cluster = Cluster::start(3).await;
        let [a, b, c] = [&cluster[0], &cluster[1], &cluster[2]];
        let (room, clients) = common_room(&cluster).await;
        let path = |what: &str| format!("/_matrix/client/v3/rooms/{}/{what}", escape(room.as_str()));
        clients[2].post_ok(&path("leave"), json!({})).await;
        let dora = c.register("dora").await;
        for text in numbered(0..30) {
            say(&clients[0], &room, &text).await;
        }
        until_text(b, &room, "n29").await;
        b.go_down();
        say(&clients[1], &room, "aside").await;
        join(&dora, &room, a).await;
        let since = dora.get_ok("/_matrix/client/v3/sync").await["next_batch"].clone();
        say(&clients[0], &room, "welcome").await;
        until_text(c, &room, "welcome").await;
        b.come_up();
        until_text(c, &room, "aside").await;
        until_alike(&[a, b, c], &room).await;
        let path_of_news = format!("/_matrix/client/v3/sync?since={}", since.as_str().unwrap());
        let news = dora.get_ok(&path_of_news).await;
        let news = &news["rooms"]["join"][room.as_str()]["timeline"];
        let bodies = |events: &Value| -> Vec<String> {
            let bodies = events.as_array().unwrap().iter();
            bodies
                .filter_map(|event| event["content"]["body"].as_str().map(str::to_owned))
                .collect()
        };
        assert_eq!(bodies(&news["events"]), ["welcome", "aside"], "{news}");
        let page = dora.get_ok(&path("messages?dir=b&limit=100")).await;
        let mut told = bodies(&page["chunk"]);
        told.reverse();
        let mut expected = numbered(0..30);
        expected.extend(["welcome".to_owned(), "aside".to_owned()]);
        assert_eq!(told, expected);
    }
}
