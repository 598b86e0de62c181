//! How much work other servers may make this node do unasked: each kind has an allowance for each server, and what is above
//! it is refused with 429 `M_LIMIT_EXCEEDED` before anything of it is done, so that its sender keeps it and tries again.
//! What this node itself asks for is not counted.

use std::sync::{Arc, Mutex, PoisonError};

use kith_engine::{
    Allowance, Allowances,
    limits::{ALLOWED_EDUS, ALLOWED_EVENTS, ALLOWED_HANDSHAKES, ALLOWED_QUERIES, EVENT_UNIT_BYTES, MAX_PREV_EVENTS},
};
use ruma::{
    ServerName,
    api::error::{ErrorKind, LimitExceededErrorData, RetryAfter},
    exports::http::StatusCode,
};
use serde::{Deserialize, de::IgnoredAny};
use serde_json::value::RawValue;
use tokio::time::{Duration, Instant};

use crate::Error;

/// A kind of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Judging and keeping events of a transaction.
    Events,
    /// Taking in the EDUs of a transaction.
    Edus,
    /// Entering and leaving rooms, invitations.
    Handshakes,
    /// Everything else that is asked.
    Queries,
}

impl Work {
    const ALL: [Self; 4] = [Self::Events, Self::Edus, Self::Handshakes, Self::Queries];

    fn allowance(self) -> Allowance {
        match self {
            Self::Events => ALLOWED_EVENTS,
            Self::Edus => ALLOWED_EDUS,
            Self::Handshakes => ALLOWED_HANDSHAKES,
            Self::Queries => ALLOWED_QUERIES,
        }
    }
}

/// The service. Cheap to clone.
#[derive(Clone)]
pub struct Admission {
    /// In the order of [`Work::ALL`].
    left: Arc<Mutex<[Allowances; Work::ALL.len()]>>,
    /// Allowances refill with time that passes, whatever the clock on the wall is set to.
    started: Instant,
}

impl Admission {
    /// Everybody has the whole allowance.
    pub fn new() -> Self {
        Self {
            left: Arc::new(Mutex::new(Work::ALL.map(|work| Allowances::new(work.allowance())))),
            started: Instant::now(),
        }
    }

    /// Takes so many units of a kind of work from a server's allowance. 429 `M_LIMIT_EXCEEDED`, with when to try again, if
    /// they are not left.
    pub fn take(&self, server: &ServerName, work: Work, units: u32) -> Result<(), Error> {
        let now = self.started.elapsed();
        let mut left = self.left.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = left[work as usize].take(server.as_str(), units, now);
        taken.map_err(|wait| {
            tracing::debug!(%server, ?work, ?wait, "a server asks for more than it is allowed");
            too_much(wait)
        })
    }

    /// [`Admission::take`] for a transaction.
    pub fn take_transaction(&self, server: &ServerName, pdus: &[Box<RawValue>], edus: usize) -> Result<(), Error> {
        self.take(server, Work::Edus, u32::try_from(edus).unwrap_or(u32::MAX))?;
        self.take(server, Work::Events, pdus.iter().map(|pdu| units_of(pdu)).sum())
    }
}

impl Default for Admission {
    fn default() -> Self {
        Self::new()
    }
}

/// What an event counts: its size, and the states that it may take to resolve.
fn units_of(pdu: &RawValue) -> u32 {
    #[derive(Deserialize)]
    struct Event {
        #[serde(default)]
        prev_events: Vec<IgnoredAny>,
    }
    let event = serde_json::from_str::<Event>(pdu.get());
    let states = event.map_or(0, |event| event.prev_events.len().min(MAX_PREV_EVENTS));
    let units = pdu.get().len().div_ceil(EVENT_UNIT_BYTES) + states.saturating_sub(1);
    u32::try_from(units).unwrap_or(u32::MAX)
}

/// 429 `M_LIMIT_EXCEEDED`.
pub(super) fn too_much(wait: Duration) -> Error {
    let mut data = LimitExceededErrorData::new();
    data.retry_after = Some(RetryAfter::Delay(wait));
    Error::refused(
        StatusCode::TOO_MANY_REQUESTS,
        ErrorKind::LimitExceeded(data),
        "too much at once; try again later",
    )
}

#[cfg(test)]
mod tests {
    use http::Method;
    use ruma::server_name;
    use serde_json::{json, value::to_raw_value};

    use super::*;
    use crate::testing::{
        Cluster,
        rooms::{common_room, numbered, say, until_alike, until_delivered, until_text},
    };

    fn is_limited(outcome: &Result<(), Error>) -> bool {
        matches!(outcome, Err(Error::Refused { status, kind, .. })
            if *status == StatusCode::TOO_MANY_REQUESTS && matches!(**kind, ErrorKind::LimitExceeded(_)))
    }

    #[test]
    fn each_server_has_an_allowance_of_each_kind() {
        let admission = Admission::new();
        let (one, other) = (server_name!("one"), server_name!("other"));
        for work in Work::ALL {
            let burst = work.allowance().burst;
            admission.take(one, work, burst).unwrap();
            assert!(is_limited(&admission.take(one, work, burst)), "{work:?}");
            admission.take(other, work, 1).unwrap();
        }
    }

    #[test]
    fn events_that_cost_more_count_for_more() {
        let pdu = |bytes: usize, prev: usize| {
            let event = json!({"body": "x".repeat(bytes), "prev_events": vec!["$prev"; prev]});
            to_raw_value(&event).unwrap()
        };
        for (bytes, prev, units) in [
            (0, 0, 1),
            (0, 1, 1),
            (4_000, 1, 1),
            (4_096, 1, 2),
            (65_000, 1, 16),
            (0, 20, 20),
        ] {
            assert_eq!(units_of(&pdu(bytes, prev)), units, "{bytes} {prev}");
        }
        assert_eq!(units_of(&to_raw_value("no event").unwrap()), 1);
        // However large, one transaction can never be more than is allowed at once.
        let largest: u32 = (0..50).map(|_| units_of(&pdu(2 * 65_536, 1_000))).sum();
        assert!(largest < ALLOWED_EVENTS.burst / 2);
    }

    /// A server that is refused for a while tries again, and nothing that it said is lost.
    #[tokio::test]
    async fn what_is_refused_for_now_arrives_later() {
        let cluster = Cluster::start(2).await;
        let (room, clients) = common_room(&cluster).await;
        let [a, b] = [&cluster[0], &cluster[1]];
        until_delivered(a).await;
        // Half a second of allowance is missing for the next transaction of a.
        b.hs.admission
            .take(&a.name, Work::Events, ALLOWED_EVENTS.burst)
            .unwrap();
        let before = cluster.wires.requests("/federation/v1/send/");
        for text in numbered(0..30) {
            say(&clients[0], &room, &text).await;
        }
        assert_eq!(until_text(b, &room, "n29").await, numbered(0..30));
        until_delivered(a).await;
        until_alike(&[a, b], &room).await;
        assert!(cluster.wires.requests("/federation/v1/send/") > before + 1);
    }

    #[tokio::test]
    async fn requests_above_the_allowance_are_refused_and_say_when_to_come_again() {
        let cluster = Cluster::start(2).await;
        let (room, clients) = common_room(&cluster).await;
        let [a, b] = [&cluster[0], &cluster[1]];
        let user = crate::testing::escape(&clients[0].user_id);
        let room = crate::testing::escape(room.as_str());
        let body = json!({"origin": b.name, "origin_server_ts": 1, "pdus": [], "edus": [
            {"edu_type": "m.typing", "content": {}},
        ]});
        let asked = [
            (
                Work::Handshakes,
                Method::GET,
                format!("/_matrix/federation/v1/make_leave/{room}/{user}"),
                json!(null),
            ),
            (
                Work::Queries,
                Method::GET,
                format!("/_matrix/federation/v1/query/profile?user_id={user}"),
                json!(null),
            ),
            (
                Work::Queries,
                Method::POST,
                "/_matrix/federation/unstable/org.kith/heads".to_owned(),
                json!({"rooms": {}}),
            ),
            (
                Work::Edus,
                Method::PUT,
                "/_matrix/federation/v1/send/1".to_owned(),
                body,
            ),
        ];
        for (_, method, path, body) in &asked {
            let (status, answer) = b.ask(a, method.clone(), path, body.clone()).await;
            assert_ne!(status, StatusCode::TOO_MANY_REQUESTS, "{path}: {answer}");
        }
        for (work, method, path, body) in asked {
            while a.hs.admission.take(&b.name, work, 1).is_ok() {}
            // Meanwhile a unit may have come back.
            let mut refused = None;
            for number in 2..200 {
                let path = path.replace("send/1", &format!("send/{number}"));
                let (status, answer) = b.ask(a, method.clone(), &path, body.clone()).await;
                if status == StatusCode::TOO_MANY_REQUESTS {
                    refused = Some(answer);
                    break;
                }
            }
            let refused = refused.unwrap();
            assert_eq!(refused["errcode"], "M_LIMIT_EXCEEDED", "{path}");
            assert!(refused["retry_after_ms"].as_u64().unwrap() > 0, "{refused}");
        }
        // A transaction that was answered before is answered again, and costs nothing.
        let body = json!({"origin": b.name, "origin_server_ts": 1, "pdus": [], "edus": []});
        let (status, _) = b.ask(a, Method::PUT, "/_matrix/federation/v1/send/1", body).await;
        assert_eq!(status, StatusCode::OK);
    }
}
