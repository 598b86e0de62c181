//! Waiting for news, tokens of all ages, and what acknowledges what.

use serde_json::json;

use super::{create, ids, say, sync, sync_path};
use crate::testing::{Cluster, assert_refused, escape};

/// Longer than any test may take: a wait that is not woken fails the test by hanging, not by chance.
const LONG: (&str, &str) = ("timeout", "300000");

fn waiting(since: &serde_json::Value) -> String {
    // The helper's own timeout comes first; the last one given counts for nobody, so it is replaced.
    sync_path(Some(since), &[]).replace("timeout=0", &format!("{}={}", LONG.0, LONG.1))
}

#[tokio::test]
async fn a_waiting_client_is_woken_by_a_message_and_not_by_other_things() {
    let cluster = Cluster::start(1).await;
    let (alice, bob) = (cluster[0].register("alice").await, cluster[0].register("bob").await);
    let room = create(&alice, json!({})).await;
    let elsewhere = create(&bob, json!({})).await;
    let before = sync(&alice, None, &[]).await;
    let wait = waiting(&before);
    let (answer, said) = tokio::join!(alice.get_ok(&wait), async {
        // Nothing of this concerns alice, so it must not end her wait.
        say(&bob, &elsewhere, "not for alice").await;
        say(&alice, &room, "news").await
    });
    assert_eq!(ids(&answer["rooms"]["join"][&room]["timeline"]["events"]), [said]);
}

#[tokio::test]
async fn a_wait_ends_with_its_timeout_and_the_token_goes_on() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let bob = cluster[0].register("bob").await;
    let elsewhere = create(&bob, json!({})).await;
    let before = sync(&alice, None, &[]).await;
    say(&bob, &elsewhere, "not for alice").await;
    let empty = alice
        .get_ok(&sync_path(Some(&before), &[]).replace("timeout=0", "timeout=1"))
        .await;
    assert!(empty.get("rooms").is_none(), "{empty}");
    assert_ne!(empty["next_batch"], before["next_batch"]);
}

#[tokio::test]
async fn a_client_that_hangs_up_is_forgotten() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let room = create(&alice, json!({})).await;
    let before = sync(&alice, None, &[]).await;
    let wait = waiting(&before);
    {
        // Polled until it waits, then dropped: as a connection that breaks.
        let mut waits = std::pin::pin!(alice.get_ok(&wait));
        tokio::select! {
            biased;
            _ = &mut waits => panic!("there were no news"),
            _ = sync(&alice, None, &[]) => {}
        }
    }
    let said = say(&alice, &room, "still here").await;
    let answer = sync(&alice, Some(&before), &[]).await;
    assert_eq!(ids(&answer["rooms"]["join"][&room]["timeline"]["events"]), [said]);
}

#[tokio::test]
async fn tokens_that_were_never_given_are_refused() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let room = create(&alice, json!({})).await;
    for token in [
        "",
        "x",
        "s1",
        "s-1_0",
        "t5",
        "s1_2_3_4",
        "m12~34",
        "s99999999999999999999_0",
    ] {
        let path = format!("/_matrix/client/v3/sync?since={}", escape(token));
        assert_refused(alice.get(&path).await, (400, "M_INVALID_PARAM"));
    }
    for token in ["x", "s1", "t1.5", "tt"] {
        let path = super::at(&room, &format!("messages?dir=b&from={}", escape(token)));
        assert_refused(alice.get(&path).await, (400, "M_INVALID_PARAM"));
    }
    let path = super::at(&room, "messages?dir=x");
    assert_refused(alice.get(&path).await, (400, "M_BAD_JSON"));
}

/// After a backup was restored, clients hold tokens from a future that never came.
#[tokio::test]
async fn a_token_from_the_future_starts_anew() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let room = create(&alice, json!({})).await;
    let answer = alice
        .get_ok("/_matrix/client/v3/sync?since=s1000000_0&timeout=300000")
        .await;
    let events = &answer["rooms"]["join"][&room]["timeline"]["events"];
    assert_eq!(events[0]["type"], "m.room.create");
}

#[tokio::test]
async fn an_old_token_works_for_as_long_as_the_node_lives() {
    let mut cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let room = create(&alice, json!({})).await;
    let old = sync(&alice, None, &[]).await;
    let mut said = Vec::new();
    for number in 0..5 {
        said.push(say(&alice, &room, &format!("{number}")).await);
        sync(&alice, None, &[]).await;
    }
    cluster.nodes[0].restart().await;
    let mut client = cluster[0].client();
    client.token.clone_from(&alice.token);
    let answer = sync(&client, Some(&old), &[]).await;
    assert_eq!(ids(&answer["rooms"]["join"][&room]["timeline"]["events"]), said);
}

/// A device that is gone is not left waiting, whoever ended it.
#[tokio::test]
async fn a_device_that_is_logged_out_is_told_at_once() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    for all in [false, true] {
        let (here, other) = (cluster[0].login("alice").await, cluster[0].login("alice").await);
        let before = sync(&here, None, &[]).await;
        let wait = waiting(&before);
        let (answer, ()) = tokio::join!(here.get(&wait), async {
            // Another device goes first: that must not end this one's wait with an error.
            other.post_ok("/_matrix/client/v3/logout", json!({})).await;
            match all {
                true => here.post_ok("/_matrix/client/v3/logout/all", json!({})).await,
                false => here.post_ok("/_matrix/client/v3/logout", json!({})).await,
            };
        });
        assert_refused(answer, (401, "M_UNKNOWN_TOKEN"));
    }
    assert_refused(alice.get("/_matrix/client/v3/sync").await, (401, "M_UNKNOWN_TOKEN"));
}

/// Who typed when the node ended is forgotten, and clients must not show it for ever.
#[tokio::test]
async fn typing_ends_with_the_node() {
    let mut cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let room = create(&alice, json!({})).await;
    let typing = super::at(&room, &format!("typing/{}", escape(&alice.user_id)));
    alice.put_ok(&typing, json!({"typing": true, "timeout": 100_000})).await;
    let before = sync(&alice, None, &[]).await;
    let told = |answer: &serde_json::Value| answer["rooms"]["join"][&room]["ephemeral"]["events"][0].clone();
    assert_eq!(told(&before)["content"]["user_ids"], json!([alice.user_id]));
    cluster.nodes[0].restart().await;
    let alice = cluster[0].again(&alice);
    let after = alice.get_ok(&waiting(&before)).await;
    assert_eq!(told(&after), json!({"type": "m.typing", "content": {"user_ids": []}}));
    // Once is enough.
    assert!(sync(&alice, Some(&after), &[]).await.get("rooms").is_none());
}
