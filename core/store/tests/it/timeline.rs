//! Relations, threads and words of events, as they come and as redactions take them away.

use std::sync::atomic::{AtomicU64, Ordering};

use kith_engine::{Applied, CurrentState, EventStatus, NewState, Pdu, Redaction, RoomReader, StateMap};
use kith_store::{
    Direction, ReadTxn, RelationQuery, SearchField, SearchOrder, Seq, Store, StoreConfig, StoreError, TimelineEvent,
};
use ruma::{CanonicalJsonObject, EventId, OwnedEventId, RoomId, RoomVersionId, UserId, room_id, user_id};
use serde_json::{Value, json};
use tempfile::TempDir;

struct World {
    store: Store,
    count: AtomicU64,
    _data: TempDir,
}

fn room() -> &'static RoomId {
    room_id!("!room:a.example")
}

fn alice() -> &'static UserId {
    user_id!("@alice:a.example")
}

fn bob() -> &'static UserId {
    user_id!("@bob:b.example")
}

impl World {
    fn new() -> Self {
        let data = tempfile::tempdir().unwrap();
        Self {
            store: Store::open(&StoreConfig::new(data.path().join("kith.db"))).unwrap(),
            count: AtomicU64::new(1),
            _data: data,
        }
    }

    async fn keep(&self, room: &RoomId, sender: &UserId, ts: u64, kind: &str, content: Value) -> OwnedEventId {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        let target = content
            .get("redacts")
            .and_then(Value::as_str)
            .map(|id| EventId::parse(id).unwrap());
        let event = json!({
            "type": kind, "room_id": room, "sender": sender, "content": content, "prev_events": [], "auth_events": [],
            "depth": count, "origin_server_ts": ts, "hashes": {"sha256": ""},
        });
        let object: CanonicalJsonObject = serde_json::from_value(event).unwrap();
        let pdu = Pdu::from_json(&object, &RoomVersionId::V12).unwrap();
        let id = pdu.event_id().to_owned();
        let by = id.clone();
        let room = room.to_owned();
        let save = move |txn: &kith_store::WriteTxn<'_>| {
            let state = match txn.current_state(&room)? {
                Some(current) => NewState::Same(current),
                None => NewState::Full(StateMap::new()),
            };
            txn.save_event(&Applied {
                pdu,
                version: RoomVersionId::V12,
                status: EventStatus::Accepted,
                reason: None,
                outlier: false,
                history: false,
                withheld: false,
                state_before: Some(state),
                told: false,
                sets: None,
                current_state: CurrentState::AfterEvent,
                forward_extremities: None,
                redactions: target
                    .into_iter()
                    .map(|target| Redaction { target, by: by.clone() })
                    .collect(),
                refuted: None,
            })
        };
        self.store.write(save).await.unwrap();
        id
    }

    async fn say(&self, sender: &UserId, body: &str) -> OwnedEventId {
        self.keep(room(), sender, 1, "m.room.message", json!({ "body": body }))
            .await
    }

    async fn relate(&self, sender: &UserId, rel_type: &str, target: &EventId) -> OwnedEventId {
        self.keep(room(), sender, 1, "m.room.message", related(rel_type, target))
            .await
    }

    async fn redact(&self, target: &EventId) -> OwnedEventId {
        let content = json!({ "redacts": target });
        self.keep(room(), alice(), 1, "m.room.redaction", content).await
    }

    async fn read<T: Send + 'static>(
        &self,
        job: impl FnOnce(&ReadTxn<'_>) -> Result<T, StoreError> + Send + 'static,
    ) -> T {
        self.store.read(job).await.unwrap()
    }

    async fn relations(
        &self,
        target: &EventId,
        ask: impl FnOnce(&mut RelationQuery<'_>) + Send + 'static,
    ) -> Vec<OwnedEventId> {
        let target = target.to_owned();
        let found = self.read(move |txn| {
            let mut query = RelationQuery {
                room: room(),
                target: &target,
                rel_type: None,
                kind: None,
                recurse: false,
                from: Seq(i64::MAX),
                direction: Direction::Backward,
                limit: 100,
            };
            ask(&mut query);
            txn.relations(&query)
        });
        ids(&found.await)
    }

    async fn search(&self, text: &'static str) -> Vec<OwnedEventId> {
        let fields = [SearchField::Body, SearchField::Name, SearchField::Topic];
        let hits = self.read(move |txn| txn.search(text, &fields, &[room().to_owned()], SearchOrder::Recent, 0, 100));
        hits.await
            .iter()
            .map(|hit| hit.event.pdu.event_id().to_owned())
            .collect()
    }
}

fn related(rel_type: &str, target: &EventId) -> Value {
    json!({ "body": "related", "m.relates_to": { "rel_type": rel_type, "event_id": target } })
}

fn ids(events: &[TimelineEvent]) -> Vec<OwnedEventId> {
    events.iter().map(|event| event.pdu.event_id().to_owned()).collect()
}

#[tokio::test]
async fn relations_are_found_by_type_page_and_depth() {
    let world = World::new();
    let root = world.say(alice(), "root").await;
    let reply = world.relate(bob(), "m.thread", &root).await;
    let reaction = world
        .keep(room(), bob(), 1, "m.reaction", related("m.annotation", &root))
        .await;
    let second = world.relate(alice(), "m.thread", &root).await;
    let edit = world.relate(bob(), "m.replace", &reply).await;
    let reference = world.relate(bob(), "m.reference", &edit).await;
    let deepest = world.relate(bob(), "m.reference", &reference).await;
    // From another room nothing can be said about this one.
    world
        .keep(
            room_id!("!other:a.example"),
            bob(),
            1,
            "m.room.message",
            related("m.thread", &root),
        )
        .await;

    assert_eq!(
        world.relations(&root, |_| ()).await,
        [second.clone(), reaction.clone(), reply.clone()]
    );
    assert_eq!(
        world.relations(&root, |query| query.rel_type = Some("m.thread")).await,
        [second.clone(), reply.clone()]
    );
    assert_eq!(
        world.relations(&root, |query| query.kind = Some("m.reaction")).await,
        std::slice::from_ref(&reaction)
    );
    assert_eq!(world.relations(&root, |query| query.limit = 1).await, std::slice::from_ref(&second));
    let forward = |query: &mut RelationQuery<'_>| {
        query.direction = Direction::Forward;
        query.from = Seq(i64::MIN);
    };
    assert_eq!(
        world.relations(&root, forward).await,
        [reply.clone(), reaction.clone(), second.clone()]
    );
    let deep = world.relations(&root, |query| query.recurse = true).await;
    assert_eq!(deep, [reference.clone(), edit.clone(), second, reaction, reply]);
    assert!(!deep.contains(&deepest), "the fourth level is not followed");
    // The type is asked of what is told, not of the way there.
    let deep = world.relations(&root, |query| {
        query.recurse = true;
        query.rel_type = Some("m.replace");
    });
    assert_eq!(deep.await, [edit]);
}

#[tokio::test]
async fn the_newest_edit_of_the_author_comes_first() {
    let world = World::new();
    let original = world.say(alice(), "original").await;
    let edit = async |sender: &UserId, ts| {
        world
            .keep(room(), sender, ts, "m.room.message", related("m.replace", &original))
            .await
    };
    let late = edit(alice(), 500).await;
    let early = edit(alice(), 400).await;
    edit(bob(), 900).await;
    world
        .keep(room(), alice(), 901, "m.sticker", related("m.replace", &original))
        .await;
    let twins = [
        edit(alice(), 600).await,
        world
            .keep(room(), alice(), 600, "m.room.message", {
                let mut content = related("m.replace", &original);
                content["body"] = json!("twin");
                content
            })
            .await,
    ];
    let larger = twins.iter().max().unwrap().clone();
    let smaller = twins.iter().min().unwrap().clone();
    let edits = async || {
        let original = original.clone();
        let found = world.read(move |txn| {
            let pdu = txn.event(&original)?.unwrap().pdu;
            txn.edits(&pdu, 10)
        });
        ids(&found.await)
    };
    assert_eq!(
        edits().await,
        [larger.clone(), smaller.clone(), late.clone(), early.clone()]
    );
    world.redact(&larger).await;
    assert_eq!(edits().await, [smaller, late, early]);
}

#[tokio::test]
async fn threads_count_and_sort_and_shrink() {
    let world = World::new();
    let one = world.say(alice(), "one").await;
    let two = world.say(alice(), "two").await;
    let first = world.relate(bob(), "m.thread", &one).await;
    let second = world.relate(bob(), "m.thread", &two).await;
    let third = world.relate(alice(), "m.thread", &one).await;
    let summary = async |ignored: Vec<&'static UserId>| {
        let one = one.clone();
        let thread = world
            .read(move |txn| txn.thread(room(), &one, alice(), &ignored))
            .await?;
        Some((
            thread.latest.pdu.event_id().to_owned(),
            thread.count,
            thread.participated,
        ))
    };
    let roots = async || {
        let threads = world.read(|txn| txn.threads(room(), Seq(i64::MAX), 10)).await;
        threads.into_iter().map(|thread| thread.root).collect::<Vec<_>>()
    };
    assert_eq!(roots().await, [one.clone(), two.clone()]);
    assert_eq!(summary(vec![]).await, Some((third.clone(), 2, true)));
    assert_eq!(summary(vec![bob()]).await, Some((third.clone(), 1, true)));
    assert_eq!(summary(vec![alice()]).await, Some((first.clone(), 1, false)));
    assert_eq!(summary(vec![alice(), bob()]).await, None);

    world.redact(&third).await;
    assert_eq!(summary(vec![]).await, Some((first.clone(), 1, false)));
    assert_eq!(roots().await, [two.clone(), one.clone()]);
    world.redact(&second).await;
    assert_eq!(roots().await, std::slice::from_ref(&one));
    let before = world.read(move |txn| {
        let place = txn.stream_of(&first)?.unwrap();
        txn.threads(room(), place, 10)
    });
    assert!(before.await.is_empty());
}

#[tokio::test]
async fn words_are_found_until_they_are_redacted() {
    let world = World::new();
    let hello = world.say(alice(), "Hello, Wörld of cats").await;
    let cats = world.say(bob(), "cats cats cats").await;
    let name = world
        .keep(room(), alice(), 9, "m.room.name", json!({ "name": "Cats" }))
        .await;
    world
        .keep(room(), alice(), 9, "m.room.encrypted", json!({ "body": "cats" }))
        .await;
    world
        .keep(
            room_id!("!other:a.example"),
            bob(),
            1,
            "m.room.message",
            json!({ "body": "cats" }),
        )
        .await;

    assert_eq!(world.search("world hello").await, std::slice::from_ref(&hello));
    assert_eq!(world.search("CATS").await, [name.clone(), cats.clone(), hello.clone()]);
    assert!(world.search("dogs").await.is_empty());
    assert!(world.search("!?").await.is_empty());
    let ranked = world.read(|txn| {
        txn.search(
            "cats",
            &[SearchField::Body],
            &[room().to_owned()],
            SearchOrder::Rank,
            0,
            10,
        )
    });
    let ranked: Vec<_> = ranked
        .await
        .iter()
        .map(|hit| hit.event.pdu.event_id().to_owned())
        .collect();
    assert_eq!(ranked, [cats.clone(), hello.clone()]);
    let skipped = world.read(|txn| {
        txn.search(
            "cats",
            &[SearchField::Body],
            &[room().to_owned()],
            SearchOrder::Rank,
            1,
            10,
        )
    });
    assert_eq!(skipped.await.len(), 1);

    world.redact(&cats).await;
    assert_eq!(world.search("cats").await, [name, hello]);
}
