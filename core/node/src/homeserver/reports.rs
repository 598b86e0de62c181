//! What users report: rooms, events and people. It is kept for the node's owner, who sees it in the node's status; nobody
//! else is told.

use kith_engine::RoomReader;
use kith_store::{ReadTxn, Report};
use ruma::{OwnedEventId, OwnedRoomId, OwnedUserId, events::room::member::MembershipState};

use super::{Context, Session};
use crate::Error;

/// The longest reason, in bytes.
const LONGEST_REASON: usize = 4_096;

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct Reports {
    ctx: Context,
}

impl Reports {
    /// Makes the service.
    pub fn new(ctx: Context) -> Self {
        Self { ctx }
    }

    /// Reports an event. 404 `M_NOT_FOUND` if it is not there, or the user is not in its room.
    ///
    /// Client-server API, `POST /rooms/{roomId}/report/{eventId}`.
    pub async fn event(
        &self,
        session: &Session,
        room: OwnedRoomId,
        event: OwnedEventId,
        reason: String,
    ) -> Result<(), Error> {
        let mut report = self.report(session, reason)?;
        report.room_id = Some(room.clone());
        report.event_id = Some(event.clone());
        let is_known = move |txn: &ReadTxn<'_>| {
            let joined = txn.membership(&room, &report.reporter)? == MembershipState::Join;
            let held = txn.event(&event)?.is_some_and(|held| held.pdu.room_id() == room);
            Ok((joined && held).then_some(report))
        };
        self.keep(is_known).await
    }

    /// Reports a room, which the user need not be in. 404 `M_NOT_FOUND` if this node knows nothing of it.
    ///
    /// Client-server API, `POST /rooms/{roomId}/report`.
    pub async fn room(&self, session: &Session, room: OwnedRoomId, reason: String) -> Result<(), Error> {
        let mut report = self.report(session, reason)?;
        report.room_id = Some(room.clone());
        let is_known = move |txn: &ReadTxn<'_>| {
            let known =
                txn.room_version(&room)?.is_some() || txn.outside_membership(&report.reporter, &room)?.is_some();
            Ok(known.then_some(report))
        };
        self.keep(is_known).await
    }

    /// Reports a user, of whatever server. It is no way to find out who exists.
    ///
    /// Client-server API, `POST /users/{userId}/report`.
    pub async fn user(&self, session: &Session, user: OwnedUserId, reason: String) -> Result<(), Error> {
        let mut report = self.report(session, reason)?;
        report.user_id = Some(user);
        self.keep(|_| Ok(Some(report))).await
    }

    fn report(&self, session: &Session, reason: String) -> Result<Report, Error> {
        if reason.len() > LONGEST_REASON {
            return Err(Error::invalid_param(format!(
                "a reason has at most {LONGEST_REASON} bytes"
            )));
        }
        Ok(Report {
            ts: self.ctx.world.now(),
            reporter: session.user_id.clone(),
            room_id: None,
            event_id: None,
            user_id: None,
            reason,
        })
    }

    async fn keep(
        &self,
        known: impl FnOnce(&ReadTxn<'_>) -> Result<Option<Report>, Error> + Send + 'static,
    ) -> Result<(), Error> {
        let write = self.ctx.store.write(move |txn| {
            let report = known(txn)?.ok_or_else(|| Error::not_found("there is nothing like that here"))?;
            txn.add_report(&report)?;
            Ok::<_, Error>(report)
        });
        let report = write.await?;
        tracing::warn!(
            reporter = %report.reporter,
            room = report.room_id.as_ref().map(|room| room.as_str()),
            event = report.event_id.as_ref().map(|event| event.as_str()),
            user = report.user_id.as_ref().map(|user| user.as_str()),
            "a user has reported something; `kith status` shows it"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use crate::testing::{Cluster, assert_refused, escape};

    #[tokio::test]
    async fn reports_are_kept_for_the_owner() {
        let cluster = Cluster::start(1).await;
        let (alice, bob) = (cluster[0].register("alice").await, cluster[0].register("bob").await);
        let room = alice.post_ok("/_matrix/client/v3/createRoom", json!({})).await;
        let room = room["room_id"].as_str().unwrap();
        let path = format!("/_matrix/client/v3/rooms/{}", escape(room));
        let sent = alice
            .put_ok(
                &format!("{path}/send/m.room.message/1"),
                json!({"msgtype": "m.text", "body": "hi"}),
            )
            .await;
        let event = sent["event_id"].as_str().unwrap();
        let of_event = format!("{path}/report/{}", escape(event));
        let of_room = format!("{path}/report");
        let of_user = format!("/_matrix/client/v3/users/{}/report", escape(&alice.user_id));

        alice.post_ok(&of_event, json!({"reason": "spam", "score": -100})).await;
        alice.post_ok(&of_event, json!({})).await;
        bob.post_ok(&of_room, json!({"reason": "a bad room"})).await;
        bob.post_ok(&of_user, json!({"reason": "a bad person"})).await;

        let long = json!({"reason": "x".repeat(5_000)});
        let unknown_room = "/_matrix/client/v3/rooms/!none:here/report";
        let unknown_event = format!("{path}/report/$none");
        let refused = [
            (
                &bob,
                of_event.as_str(),
                json!({"reason": "not in the room"}),
                (404, "M_NOT_FOUND"),
            ),
            (&alice, &unknown_event, json!({}), (404, "M_NOT_FOUND")),
            (
                &bob,
                unknown_room,
                json!({"reason": "no such room"}),
                (404, "M_NOT_FOUND"),
            ),
            (&bob, &of_user, long, (400, "M_INVALID_PARAM")),
            (
                &cluster[0].client(),
                &of_user,
                json!({"reason": "who?"}),
                (401, "M_MISSING_TOKEN"),
            ),
        ];
        for (client, path, body, expected) in refused {
            assert_refused(client.post(path, body).await, expected);
        }

        let reports = cluster[0].hs.context.store.read(|txn| txn.reports(10)).await.unwrap();
        let told: Vec<_> = reports
            .iter()
            .map(|report| {
                let room = report.room_id.as_ref().map(|room| room.as_str());
                let event = report.event_id.as_ref().map(|event| event.as_str());
                let user = report.user_id.as_ref().map(|user| user.as_str());
                (report.reporter.as_str(), room, event, user, report.reason.as_str())
            })
            .collect();
        let (by_alice, by_bob) = (alice.user_id.as_str(), bob.user_id.as_str());
        let expected = [
            (by_bob, None, None, Some(by_alice), "a bad person"),
            (by_bob, Some(room), None, None, "a bad room"),
            (by_alice, Some(room), Some(event), None, ""),
            (by_alice, Some(room), Some(event), None, "spam"),
        ];
        assert_eq!(told, expected);
    }
}
