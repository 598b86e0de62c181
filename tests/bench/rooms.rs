//! Large rooms: joining one, and resolving its state after a fork. The members are other servers' users, whose events
//! are made here and put into a resting node's database; everything measured after that is the nodes' own work.

use std::{collections::BTreeSet, path::Path, sync::Arc, time::Instant};

use kith_engine::{
    DEFAULT_VERSION, Draft, Outcome, RoomReader, Signer, StateId, StateKey, StateMap, StoredPdu, build_event, receive,
    receive_history, resolve,
};
use kith_identity::{IdentityKey, KeyDocument, NodeKey};
use kith_store::{ReadTxn, Store, StoreConfig, StoreError};
use kith_tests::Node;
use ruma::{
    EventId, MilliSecondsSinceUnixEpoch, OwnedEventId, OwnedRoomId, OwnedServerName, OwnedUserId, RoomId,
    RoomVersionId, UserId, events::TimelineEventType,
};
use serde_json::json;

use crate::{
    Table, percentile,
    process::{peak_mb, reset_peak, resident_mb},
    sorted,
};

const MEMBERS: usize = 10_000;
/// Servers that the members are spread over.
const SERVERS: usize = 20;
const CONFLICTS: usize = 1_000;
const RESOLUTIONS: usize = 5;
/// Events of one commit while the room is made.
const CHUNK: usize = 500;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Measures and tabulates.
pub(crate) async fn measure() -> Table {
    let mut table = Table::new("A room of 10,000 members on 20 servers", &["measured", "value"]);
    let mut nodes = Node::start_connected(2).await;
    let alice = nodes[0].client("alice").await;
    let mut bob = nodes[1].client("bob").await;
    let room = alice.create_room(json!({"preset": "public_chat"})).await;
    let room = RoomId::parse(room).expect("a room id");
    assert!(nodes[0].stop().await.success());
    let crowd = Crowd::new();
    let store = open(nodes[0].data());
    crowd.enter(&store, &room).await;
    store.close().await;
    nodes[0].restart().await;

    let [resident, other] = &nodes[..] else { unreachable!() };
    // They are connected: what is measured is no dial that began while the resident was away.
    bob.get(&format!("/profile/{}", alice.user_id)).await.ok();
    reset_peak(other.pid());
    reset_peak(resident.pid());
    let before = resident_mb(other.pid());
    let start = Instant::now();
    let path = format!("/join/{room}?server_name={}", resident.ready.server_name);
    bob.post(&path, json!({})).await.ok();
    let seconds = start.elapsed().as_secs_f64();
    table.row(["join through the other node", &format!("{seconds:.1} s")]);
    table.row([
        "memory of the joining node, before and at its highest",
        &format!("{before:.1} MB, {:.1} MB", peak_mb(other.pid())),
    ]);
    table.row([
        "memory of the other node at its highest",
        &format!("{:.1} MB", peak_mb(resident.pid())),
    ]);
    let start = Instant::now();
    bob.sync(0).await;
    table.row([
        "the joined client's first sync",
        &format!("{:.2} s", start.elapsed().as_secs_f64()),
    ]);

    assert!(nodes[0].stop().await.success());
    let store = open(nodes[0].data());
    let times = crowd.fork_and_resolve(&store, &room).await;
    table.row([
        &format!("resolution of two states with {CONFLICTS} conflicts, median"),
        &format!("{:.0} ms", percentile(&times, 50.0)),
    ]);
    store.close().await;
    table
}

fn open(data: &Path) -> Store {
    Store::open(&StoreConfig::new(data.join("kith.db"))).expect("a resting node's database opens")
}

/// Servers that do not run, and their users.
struct Crowd(Arc<Vec<Member>>);

struct Member {
    user: OwnedUserId,
    server: Arc<Server>,
}

struct Server {
    name: OwnedServerName,
    key: NodeKey,
    document: KeyDocument,
}

impl Crowd {
    fn new() -> Self {
        let day = 24 * 60 * 60 * 1000;
        let later = MilliSecondsSinceUnixEpoch((u64::from(now().0) + day).try_into().expect("a time"));
        let servers: Vec<Arc<Server>> = (0..SERVERS)
            .map(|_| {
                let (identity, key) = (
                    IdentityKey::generate(&mut rand::rngs::OsRng),
                    NodeKey::generate(&mut rand::rngs::OsRng),
                );
                let document = KeyDocument::new(&identity, &key.public(), now(), later).expect("a key document");
                let name = document.server_name();
                Arc::new(Server { name, key, document })
            })
            .collect();
        let member = |number: usize| {
            let server = servers[number % SERVERS].clone();
            let user = UserId::parse(format!("@user{number}:{}", server.name)).expect("a user id");
            Member { user, server }
        };
        Self(Arc::new((0..MEMBERS).map(member).collect()))
    }

    /// Has everybody join a public room.
    async fn enter(&self, store: &Store, room: &OwnedRoomId) {
        let documents: Vec<KeyDocument> = self.0[..SERVERS].iter().map(|m| m.server.document.clone()).collect();
        let kept = store.write(move |txn| {
            for document in &documents {
                txn.keep_key_document(document)?;
            }
            Ok::<_, Failure>(())
        });
        kept.await.expect("documents are kept");
        for chunk in 0..MEMBERS / CHUNK {
            let (crowd, room) = (self.0.clone(), room.clone());
            let joined = store.write(move |txn| {
                for member in &crowd[chunk * CHUNK..(chunk + 1) * CHUNK] {
                    let event = build_event(&**txn, &room, &member.says("joined"), member.signer(), now())?;
                    let Outcome::Applied(applied) = receive(&**txn, &event)? else {
                        return Err("a join was not taken".into());
                    };
                    txn.save_event(&applied)?;
                }
                Ok::<_, Failure>(())
            });
            joined.await.expect("everybody joins");
        }
    }

    /// Has members change their names on two sides of a fork, and resolves the states at its ends.
    async fn fork_and_resolve(&self, store: &Store, room: &OwnedRoomId) -> Vec<f64> {
        let mut ends = Vec::new();
        for side in ["left", "right"] {
            let (crowd, room) = (self.0.clone(), room.clone());
            let end = store.write(move |txn| {
                let mut branch = Branch {
                    txn,
                    head: txn.forward_extremities(&room)?,
                    state: txn.current_state(&room)?.ok_or("no state")?,
                };
                for member in &crowd[..CONFLICTS] {
                    let event = build_event(&branch, &room, &member.says(side), member.signer(), now())?;
                    let Outcome::Applied(applied) = receive_history::<ReadTxn<'_>>(txn, &event, None)? else {
                        return Err("an event was not taken".into());
                    };
                    txn.save_event(&applied)?;
                    branch.head = vec![event.event_id().to_owned()];
                    branch.state = txn.state_after(event.event_id())?.ok_or("no state")?;
                }
                Ok::<_, Failure>(branch.state)
            });
            ends.push(end.await.expect("a branch grows"));
        }
        let mut times = Vec::new();
        for _ in 0..RESOLUTIONS {
            let ends = ends.clone();
            let resolved = store.read(move |txn| {
                let start = Instant::now();
                resolve(txn, &DEFAULT_VERSION, &ends)?;
                Ok::<_, Failure>(start.elapsed().as_secs_f64() * 1000.0)
            });
            times.push(resolved.await.expect("the states resolve"));
        }
        sorted(times)
    }
}

impl Member {
    fn signer(&self) -> Signer<'_, NodeKey> {
        Signer {
            server: &self.server.name,
            key: &self.server.key,
        }
    }

    fn says(&self, name: &str) -> Draft {
        let content = json!({"membership": "join", "displayname": format!("{} {name}", self.user.localpart())});
        Draft::state(
            self.user.clone(),
            TimelineEventType::RoomMember,
            self.user.as_str(),
            content,
        )
        .expect("a draft")
    }
}

fn now() -> MilliSecondsSinceUnixEpoch {
    MilliSecondsSinceUnixEpoch::now()
}

/// The room as a server sees it that has one side of the fork only.
struct Branch<'a, 't> {
    txn: &'a ReadTxn<'t>,
    head: Vec<OwnedEventId>,
    state: StateId,
}

impl RoomReader for Branch<'_, '_> {
    type Error = StoreError;

    fn room_version(&self, room: &RoomId) -> Result<Option<RoomVersionId>, StoreError> {
        self.txn.room_version(room)
    }

    fn event(&self, id: &EventId) -> Result<Option<StoredPdu>, StoreError> {
        self.txn.event(id)
    }

    fn has_event(&self, id: &EventId) -> Result<bool, StoreError> {
        self.txn.has_event(id)
    }

    fn forward_extremities(&self, _: &RoomId) -> Result<Vec<OwnedEventId>, StoreError> {
        Ok(self.head.clone())
    }

    fn has_successor(&self, _: &EventId) -> Result<bool, StoreError> {
        Ok(false)
    }

    fn redactions_of(&self, id: &EventId) -> Result<Vec<OwnedEventId>, StoreError> {
        self.txn.redactions_of(id)
    }

    fn current_state(&self, _: &RoomId) -> Result<Option<StateId>, StoreError> {
        Ok(Some(self.state))
    }

    fn state_before(&self, id: &EventId) -> Result<Option<StateId>, StoreError> {
        self.txn.state_before(id)
    }

    fn state_after(&self, id: &EventId) -> Result<Option<StateId>, StoreError> {
        self.txn.state_after(id)
    }

    fn state_entry(&self, state: StateId, key: &StateKey) -> Result<Option<OwnedEventId>, StoreError> {
        self.txn.state_entry(state, key)
    }

    fn full_state(&self, state: StateId) -> Result<Arc<StateMap>, StoreError> {
        self.txn.full_state(state)
    }

    fn auth_chain(&self, of: &[OwnedEventId]) -> Result<BTreeSet<OwnedEventId>, StoreError> {
        self.txn.auth_chain(of)
    }
}
