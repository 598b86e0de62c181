//! One node by itself.

use serde_json::json;

use super::{at, create, joined, say};
use crate::testing::{Cluster, assert_refused};

#[tokio::test]
async fn a_room_of_each_version() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    for version in ["10", "11", "12"] {
        for preset in ["private_chat", "public_chat", "trusted_private_chat"] {
            let room = create(
                &alice,
                json!({"room_version": version, "preset": preset, "name": "Tea"}),
            )
            .await;
            assert!(joined(&alice).await.contains(&room));
            let first = say(&alice, &room, "a", "hello").await;
            assert_eq!(say(&alice, &room, "a", "hello").await, first);
            assert_ne!(say(&alice, &room, "b", "hello").await, first);
        }
    }
    let answer = alice
        .post("/_matrix/client/v3/createRoom", json!({"room_version": "9"}))
        .await;
    assert_refused(answer, (400, "M_UNSUPPORTED_ROOM_VERSION"));
    let bob = cluster[0].register("bob").await;
    let room = create(&alice, json!({})).await;
    let body = json!({"msgtype": "m.text", "body": "hi"});
    assert_refused(
        bob.put(&at(&room, "send/m.room.message/a"), body).await,
        (403, "M_FORBIDDEN"),
    );
}
