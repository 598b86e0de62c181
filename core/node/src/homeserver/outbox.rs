//! Sends what waits for other servers: one task per server that something waits for, one transaction at a time. It
//! never drops what the database holds before the other side has said that it has it, and it never polls.

use std::{
    collections::{BTreeMap, HashMap, hash_map::Entry},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use kith_engine::{
    backoff,
    limits::{BACKOFF_FIRST, BACKOFF_LONGEST},
};
use kith_store::{BatchLimits, OutboxBatch};
use rand::RngCore;
use ruma::{
    MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedServerName, OwnedTransactionId, ServerName,
    api::federation::transactions::{edu::Edu, send_transaction_message},
    serde::Raw,
};
use serde_json::value::RawValue;
use tokio::{
    sync::{
        Notify,
        broadcast::{Receiver, error::RecvError},
        watch,
    },
    task::{JoinHandle, JoinSet},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Error,
    federation::client,
    homeserver::{Context, News},
    network::{NetworkError, PeerEvent},
};

/// What one transaction may hold. Server-server API, "Transactions": 50 PDUs and 100 EDUs.
const LIMITS: BatchLimits = BatchLimits {
    pdus: 50,
    edus: 100,
    bytes: 2 * 1024 * 1024,
};

/// Bytes of a transaction's id before encoding.
const TRANSACTION_ID: usize = 6;

/// Passing news kept in memory for one server; the oldest make room.
const MAX_PASSING: usize = LIMITS.edus;

/// EDUs that come of what people do. The others are settled between nodes, or tell of nothing but who is there.
const SPEECH: [&str; 3] = ["m.typing", "m.receipt", "m.direct_to_device"];

/// Failures that count of a server that answers 503, and of the own disk: the backoff ends at two minutes.
const MAX_FAILURES_OF_THE_BUSY: u32 = 6;

/// The service. Cheap to clone; [`Outbox::shutdown`], or dropping the last handle, ends its tasks.
#[derive(Clone)]
pub struct Outbox {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    tasks: Mutex<JoinSet<()>>,
}

/// What the tasks hold. They do not hold [`Inner`], which owns them.
struct Shared {
    ctx: Context,
    news: News,
    destinations: Mutex<HashMap<OwnedServerName, Arc<Destination>>>,
    /// How many destinations there are.
    waiting: watch::Sender<usize>,
    closing: CancellationToken,
}

/// A server that something waits for, while its task runs.
#[derive(Default)]
struct Destination {
    /// Something was queued since the task last looked.
    woken: AtomicBool,
    /// The same, for a task that waits to delete what was sent.
    queued: Notify,
    /// The server was seen: a wait for the next attempt ends.
    seen: Notify,
    /// News that are worth sending now or never, by slot.
    passing: Mutex<BTreeMap<String, Box<RawValue>>>,
}

/// One transaction, unchanged from its first attempt to its last.
struct Transaction {
    request: send_transaction_message::v1::Request,
    /// The ids of its events.
    events: Vec<OwnedEventId>,
    /// The last database row in it; none for passing news.
    last: Option<i64>,
    /// Whether it holds as many events as it may: more are probably waiting.
    full: bool,
}

/// Whether people say something in a transaction: it has events, or EDUs that come of what they do.
pub(crate) fn says_something(request: &send_transaction_message::v1::Request) -> bool {
    let kind = |edu: &Raw<Edu>| edu.get_field::<String>("edu_type").ok().flatten();
    let speaks = |edu| kind(edu).is_some_and(|kind| SPEECH.contains(&kind.as_str()));
    !request.pdus.is_empty() || request.edus.iter().any(speaks)
}

impl Outbox {
    /// Makes the service; it sends nothing before [`Outbox::start`] or [`Outbox::wake`].
    pub fn new(ctx: Context, news: News) -> Self {
        let shared = Shared {
            ctx,
            news,
            destinations: Mutex::default(),
            waiting: watch::Sender::new(0),
            closing: CancellationToken::new(),
        };
        Self {
            inner: Arc::new(Inner {
                shared: Arc::new(shared),
                tasks: Mutex::default(),
            }),
        }
    }

    /// Takes up what an earlier run left, and listens for peers that come back.
    pub async fn start(&self) -> Result<(), Error> {
        let events = self.inner.shared.ctx.network.events();
        self.spawn(watch_peers(Arc::clone(&self.inner.shared), events));
        let servers = self.inner.shared.ctx.store.read(|txn| txn.outbox_servers()).await?;
        self.wake(servers);
        Ok(())
    }

    /// Ends all tasks. What was not acknowledged by the other side stays in the database.
    pub async fn shutdown(&self) {
        self.inner.shared.closing.cancel();
        let mut tasks = std::mem::take(&mut *lock(&self.inner.tasks));
        while tasks.join_next().await.is_some() {}
    }

    /// Says that the database holds something for these servers: call it after the commit.
    pub fn wake(&self, servers: impl IntoIterator<Item = OwnedServerName>) {
        for server in servers {
            self.with_destination(server, |_| ());
        }
    }

    /// Sends an EDU to those of these servers that are connected, and forgets it for the others: for what is worthless
    /// a moment later, such as typing. Of news in the same slot only the newest are sent.
    pub fn tell(&self, servers: impl IntoIterator<Item = OwnedServerName>, slot: &str, edu: &RawValue) {
        let connected = self.inner.shared.ctx.network.peers();
        for server in servers {
            if !connected.iter().any(|peer| peer.server_name == server) {
                continue;
            }
            self.with_destination(server, |destination| {
                let mut passing = lock(&destination.passing);
                passing.insert(slot.to_owned(), edu.to_owned());
                if passing.len() > MAX_PASSING {
                    passing.pop_first();
                }
            });
        }
    }

    /// Says that a server was heard of: whatever waits for it is tried at once.
    pub fn handle_seen(&self, server: &ServerName) {
        self.inner.shared.handle_seen(server);
    }

    /// For how many servers something waits; 0 once everything is delivered and forgotten.
    pub fn waiting(&self) -> watch::Receiver<usize> {
        self.inner.shared.waiting.subscribe()
    }

    /// Hands something to a server's task, and starts the task if there is none.
    fn with_destination(&self, server: OwnedServerName, give: impl FnOnce(&Destination)) {
        let shared = &self.inner.shared;
        if shared.ctx.is_self(&server) || shared.closing.is_cancelled() {
            return;
        }
        let mut destinations = lock(&shared.destinations);
        match destinations.entry(server) {
            Entry::Occupied(running) => {
                give(running.get());
                running.get().woken.store(true, Ordering::Release);
                running.get().queued.notify_one();
            }
            Entry::Vacant(place) => {
                let server = place.key().clone();
                let destination = Arc::clone(place.insert(Arc::default()));
                give(&destination);
                shared.waiting.send_replace(destinations.len());
                self.spawn(serve(Arc::clone(shared), server, destination));
            }
        }
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let closing = self.inner.shared.closing.clone();
        let mut tasks = lock(&self.inner.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            tokio::select! {
                () = closing.cancelled() => {}
                () = task => {}
            }
        });
    }
}

impl Shared {
    fn handle_seen(&self, server: &ServerName) {
        if let Some(destination) = lock(&self.destinations).get(server) {
            destination.seen.notify_one();
        }
    }

    /// Ends a server's task unless something came in since it last looked.
    fn retire(&self, server: &ServerName, destination: &Destination) -> bool {
        let mut destinations = lock(&self.destinations);
        if destination.woken.swap(false, Ordering::AcqRel) {
            return false;
        }
        destinations.remove(server);
        self.waiting.send_replace(destinations.len());
        true
    }

    /// The next transaction for a server: what the database holds after a row, or else passing news.
    async fn next_transaction(
        &self,
        server: &OwnedServerName,
        destination: &Destination,
        after: i64,
    ) -> Result<Option<Transaction>, Error> {
        destination.woken.store(false, Ordering::Release);
        if let Some(transaction) = self.next_waiting(server, after).await? {
            return Ok(Some(transaction));
        }
        let passing = std::mem::take(&mut *lock(&destination.passing));
        if passing.is_empty() {
            return Ok(None);
        }
        let mut request = self.request(self.ctx.world.random_token().into());
        request.edus = passing.into_values().map(Raw::<Edu>::from_json).collect();
        Ok(Some(Transaction {
            request,
            events: Vec::new(),
            last: None,
            full: false,
        }))
    }

    /// What the database holds for a server after a row.
    async fn next_waiting(&self, server: &OwnedServerName, after: i64) -> Result<Option<Transaction>, Error> {
        let name = server.clone();
        let batch = self.ctx.store.read(move |txn| txn.outbox_batch(&name, after, LIMITS));
        Ok(batch.await?.map(|batch| self.transaction(batch)))
    }

    /// The transaction after a full one, read while that one is under way.
    async fn read_ahead(&self, server: &OwnedServerName, of: &Transaction) -> Option<Transaction> {
        let last = of.last.filter(|_| of.full)?;
        // A failure shows when the transaction is wanted.
        self.next_waiting(server, last).await.ok().flatten()
    }

    /// Names a batch by a hash of its rows and its content: after a restart, or over a restored backup, the same id never
    /// stands for something else. It is short, because it travels with each message, and long enough, because a server
    /// remembers the latest few only.
    fn transaction(&self, batch: OutboxBatch) -> Transaction {
        let mut hash = blake3::Hasher::new();
        hash.update(format!("{}-{}\n", batch.first, batch.last).as_bytes());
        for json in batch.pdus.iter().map(|(_, pdu)| pdu).chain(&batch.edus) {
            hash.update(json.get().as_bytes()).update(b"\n");
        }
        let id = data_encoding::BASE64URL_NOPAD.encode(&hash.finalize().as_bytes()[..TRANSACTION_ID]);
        let mut request = self.request(id.into());
        let full = batch.pdus.len() >= LIMITS.pdus;
        let events;
        (events, request.pdus) = batch.pdus.into_iter().unzip();
        request.edus = batch.edus.into_iter().map(Raw::<Edu>::from_json).collect();
        Transaction {
            request,
            events,
            last: Some(batch.last),
            full,
        }
    }

    fn request(&self, id: OwnedTransactionId) -> send_transaction_message::v1::Request {
        let now: MilliSecondsSinceUnixEpoch = self.ctx.world.now();
        send_transaction_message::v1::Request::new(id, self.ctx.server_name.clone(), now)
    }

    async fn send(&self, server: &OwnedServerName, transaction: &Transaction) -> Result<(), Error> {
        let answer = client::send_transaction(&self.ctx, server, transaction.request.clone()).await?;
        if says_something(&transaction.request) {
            self.ctx.network.note_spoken(server);
        }
        let Some(answer) = answer else {
            let held = transaction.events.iter();
            self.news.note_holder(held.map(|event| (event.clone(), false)), server);
            return Ok(());
        };
        let held = answer.pdus.iter().filter(|(_, outcome)| outcome.is_ok());
        self.news
            .note_holder(held.map(|(event, _)| (event.clone(), false)), server);
        for (event, outcome) in answer.pdus {
            if let Err(reason) = outcome {
                // Its own checks are its own business: sending again would change nothing.
                tracing::info!(%server, %event, reason, "an event was refused by another server");
            }
        }
        Ok(())
    }

    /// Deletes what a server has acknowledged; the next transaction need not wait for that. Gives whether it is deleted.
    fn forget(&self, server: &OwnedServerName, last: i64) -> JoinHandle<bool> {
        let (store, server) = (self.ctx.store.clone(), server.clone());
        tokio::spawn(async move {
            let deleted = store.write(move |txn| txn.outbox_sent(&server, last)).await;
            if let Err(error) = &deleted {
                tracing::warn!(%error, "what was sent could not be deleted");
            }
            deleted.is_ok()
        })
    }

    /// Waits before the next attempt after an error. A server that says for how long it wants to be left alone is there:
    /// that is no failure. One that cannot take anything now, as when its disk is full, is not left alone for long: nothing
    /// but the next attempt shows that it can again.
    async fn wait_after(&self, error: &Error, destination: &Destination, failures: &mut u32) {
        let asked = match error {
            Error::Network(error) => error.retry_after(),
            _ => None,
        };
        if let Some(wait) = asked {
            return tokio::time::sleep(wait.clamp(BACKOFF_FIRST / 10, BACKOFF_LONGEST)).await;
        }
        if matches!(error, Error::Network(NetworkError::Refused { status: 503, .. })) {
            *failures = (*failures).min(MAX_FAILURES_OF_THE_BUSY);
        }
        let failed = *failures + 1;
        self.wait(destination, failures).await;
        // The attempt itself may have connected. That a server is seen which is there and takes nothing forgives nothing.
        if matches!(
            error,
            Error::Network(NetworkError::Refused { .. } | NetworkError::TimedOut(_))
        ) {
            *failures = failed;
        }
    }

    /// Waits before the next attempt, or until the server is seen, which forgives its failures.
    async fn wait(&self, destination: &Destination, failures: &mut u32) {
        *failures += 1;
        let random = self.ctx.world.rng().next_u64();
        tokio::select! {
            () = tokio::time::sleep(backoff(*failures, random)) => {}
            () = destination.seen.notified() => *failures = 0,
        }
    }

    /// Waits before another attempt to delete what was sent, or until something is queued.
    async fn wait_for_disk(&self, destination: &Destination, failures: u32) {
        let random = self.ctx.world.rng().next_u64();
        tokio::select! {
            () = tokio::time::sleep(backoff(failures.min(MAX_FAILURES_OF_THE_BUSY), random)) => {}
            () = destination.queued.notified() => {}
        }
    }
}

/// What a server has acknowledged of the rows that one task sent it.
#[derive(Default)]
struct Acknowledged {
    /// The last of those rows.
    last: Option<i64>,
    /// Their deletion, and that of all before them.
    deleting: Option<JoinHandle<bool>>,
    /// Deletions that failed in a row.
    failures: u32,
}

impl Acknowledged {
    /// The row after which the next transaction begins.
    fn last(&self) -> i64 {
        self.last.unwrap_or(i64::MIN)
    }

    /// Has everything up to a row deleted, at most one deletion ahead of what is done.
    async fn delete(&mut self, shared: &Shared, server: &OwnedServerName, last: i64) {
        self.last = Some(last);
        if let Some(earlier) = self.deleting.replace(shared.forget(server, last)) {
            // What that one left, this one deletes.
            let _ = earlier.await;
        }
    }

    /// Whether all of it is deleted. If the disk did not allow it, another attempt is begun a while later: a task that
    /// ended now would leave rows that nothing but a restart looks at again.
    async fn is_deleted(&mut self, shared: &Shared, server: &OwnedServerName, destination: &Destination) -> bool {
        let Some(deleting) = self.deleting.take() else {
            return true;
        };
        if matches!(deleting.await, Ok(true)) {
            self.failures = 0;
            return true;
        }
        self.failures += 1;
        shared.wait_for_disk(destination, self.failures).await;
        self.deleting = Some(shared.forget(server, self.last()));
        false
    }
}

/// The task of one server: runs until nothing waits for it any more.
async fn serve(shared: Arc<Shared>, server: OwnedServerName, destination: Arc<Destination>) {
    let mut failures = 0;
    let mut acknowledged = Acknowledged::default();
    let mut pending = None;
    let mut ahead = None;
    loop {
        if pending.is_none() {
            pending = ahead.take();
        }
        if pending.is_none() {
            pending = match shared
                .next_transaction(&server, &destination, acknowledged.last())
                .await
            {
                Ok(Some(transaction)) => Some(transaction),
                Ok(None) => {
                    // A new task would start over: what was sent must be gone before.
                    let deleted = acknowledged.is_deleted(&shared, &server, &destination).await;
                    if deleted && shared.retire(&server, &destination) {
                        return;
                    }
                    continue;
                }
                Err(error) => {
                    tracing::warn!(%server, %error, "what waits for a server could not be read");
                    shared.wait(&destination, &mut failures).await;
                    continue;
                }
            };
        }
        let Some(transaction) = &pending else { continue };
        let sending = shared.send(&server, transaction);
        let outcome = if ahead.is_none() && transaction.full {
            let (outcome, next) = tokio::join!(sending, shared.read_ahead(&server, transaction));
            ahead = next;
            outcome
        } else {
            sending.await
        };
        match outcome {
            Ok(()) => {
                failures = 0;
                if let Some(last) = transaction.last {
                    acknowledged.delete(&shared, &server, last).await;
                }
                pending = None;
            }
            Err(error) => {
                tracing::debug!(%server, %error, failures, "a transaction did not arrive");
                let passing = transaction.last.is_none();
                if passing {
                    // Worthless by the time of another attempt.
                    pending = None;
                    continue;
                }
                shared.wait_after(&error, &destination, &mut failures).await;
            }
        }
    }
}

/// Ends waits when peers come up.
async fn watch_peers(shared: Arc<Shared>, mut events: Receiver<PeerEvent>) {
    loop {
        match events.recv().await {
            Ok(PeerEvent::Up(server)) => shared.handle_seen(&server),
            Ok(PeerEvent::LetGo(_) | PeerEvent::Down(_)) => {}
            Err(RecvError::Lagged(_)) => {
                for peer in shared.ctx.network.peers() {
                    shared.handle_seen(&peer.server_name);
                }
            }
            Err(RecvError::Closed) => return,
        }
    }
}

/// A poisoned lock only says that another thread panicked; what these locks guard is whole at every step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use ruma::server_name;
    use serde_json::value::to_raw_value;

    use super::*;
    use crate::testing::Cluster;

    #[test]
    fn people_speak_in_events_and_in_what_they_do_and_nodes_in_the_rest() {
        let check = |pdus: usize, kinds: &[&str], expected: bool| {
            let (id, now) = ("id".into(), MilliSecondsSinceUnixEpoch::now());
            let mut request = send_transaction_message::v1::Request::new(id, server_name!("a").to_owned(), now);
            request.pdus = vec![to_raw_value("event").unwrap(); pdus];
            let edu = |kind| to_raw_value(&serde_json::json!({"edu_type": kind, "content": {}})).unwrap();
            request.edus = kinds.iter().map(|kind| Raw::from_json(edu(kind))).collect();
            assert_eq!(says_something(&request), expected, "{pdus} {kinds:?}");
        };
        check(0, &[], false);
        check(1, &[], true);
        check(1, &["m.presence"], true);
        check(
            0,
            &["m.presence", "m.device_list_update", "m.signing_key_update"],
            false,
        );
        for kind in SPEECH {
            check(0, &["m.presence", kind], true);
        }
    }

    #[tokio::test]
    async fn what_was_sent_is_deleted_once_the_disk_allows_it() {
        let cluster = Cluster::start(1).await;
        let (hs, server) = (&cluster[0].hs, server_name!("other").to_owned());
        let store = &hs.context.store;
        let (edu, to) = (to_raw_value("edu").unwrap(), server.clone());
        store.write(move |txn| txn.enqueue_edu(&to, &edu)).await.unwrap();
        let disk = rusqlite::Connection::open(cluster[0].database()).unwrap();
        disk.execute_batch(
            "CREATE TRIGGER full BEFORE DELETE ON outbox BEGIN SELECT RAISE(ABORT, 'the disk is full'); END",
        )
        .unwrap();
        let (shared, destination) = (&hs.outbox.inner.shared, Destination::default());
        let mut acknowledged = Acknowledged::default();
        acknowledged.delete(shared, &server, i64::MAX).await;
        for _ in 0..3 {
            destination.queued.notify_one();
            assert!(!acknowledged.is_deleted(shared, &server, &destination).await);
        }
        disk.execute_batch("DROP TRIGGER full").unwrap();
        destination.queued.notify_one();
        while !acknowledged.is_deleted(shared, &server, &destination).await {
            destination.queued.notify_one();
        }
        assert_eq!(store.read(|txn| txn.outbox_len()).await.unwrap(), 0);
    }
}
