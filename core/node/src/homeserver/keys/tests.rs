//! Keys through the client API of one node, and between nodes that share no room.

use std::collections::BTreeSet;

use futures::future::join_all;
use serde_json::{Value, json};

use super::test_keys::{TestIdentity, TestKey, again_at, one_time_keys};
use crate::testing::{Client, Cluster, assert_refused};

const UPLOAD: &str = "/_matrix/client/v3/keys/upload";
const QUERY: &str = "/_matrix/client/v3/keys/query";
const CLAIM: &str = "/_matrix/client/v3/keys/claim";
const DEVICE_SIGNING: &str = "/_matrix/client/v3/keys/device_signing/upload";
const SIGNATURES: &str = "/_matrix/client/v3/keys/signatures/upload";
const CHANGES: &str = "/_matrix/client/v3/keys/changes?from=s0_0&to=s0_0";

fn names(from: u32, to: u32) -> impl Iterator<Item = String> {
    (from..to).map(|n| format!("K{n:03}"))
}

async fn publish(client: &Client) -> TestKey {
    let key = TestKey::new();
    client
        .post_ok(UPLOAD, json!({"device_keys": key.as_device(client)}))
        .await;
    key
}

async fn query(client: &Client, user: &str) -> Value {
    client.post_ok(QUERY, json!({"device_keys": {user: []}})).await
}

/// Claims a key of another client's device; its id, if there was any.
async fn claim(client: &Client, of: &Client) -> Option<String> {
    let (user, device) = (&of.user_id, &of.device_id);
    let body = json!({"one_time_keys": {user: {device: "signed_curve25519"}}});
    let answer = client.post_ok(CLAIM, body).await;
    assert_eq!(answer.get("failures"), None);
    let keys = answer["one_time_keys"][user][device].as_object()?;
    assert_eq!(keys.len(), 1);
    keys.keys().next().cloned()
}

#[tokio::test]
async fn uploads_are_idempotent_and_whole() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let key = TestKey::new();
    let upload = json!({
        "device_keys": key.as_device(&alice),
        "one_time_keys": one_time_keys(names(0, 5)),
        "fallback_keys": one_time_keys(names(9, 10)),
    });
    for _ in 0..2 {
        let answer = alice.post_ok(UPLOAD, upload.clone()).await;
        assert_eq!(answer, json!({"one_time_key_counts": {"signed_curve25519": 5}}));
    }
    let other = alice.clone();
    let mut foreign = key.as_device(&other);
    foreign["device_id"] = json!("OTHER");
    for (body, refusal) in [
        (json!({"device_keys": foreign}), (400, "M_INVALID_PARAM")),
        (
            json!({"device_keys": {"user_id": alice.user_id, "device_id": alice.device_id}}),
            (400, "M_BAD_JSON"),
        ),
        (json!({"device_keys": 7}), (400, "M_BAD_JSON")),
        (
            json!({"one_time_keys": {"signed_curve25519:N": 7}}),
            (400, "M_BAD_JSON"),
        ),
        (
            json!({"one_time_keys": {"signed_curve25519:N": {"key": "x".repeat(5000)}}}),
            (413, "M_TOO_LARGE"),
        ),
        // The new key beside the conflicting one is not kept either.
        (
            json!({"one_time_keys": {"signed_curve25519:A": {"key": "n"}, "signed_curve25519:K000": {"key": "other"}}}),
            (400, "M_INVALID_PARAM"),
        ),
    ] {
        assert_refused(alice.post(UPLOAD, body).await, refusal);
    }
    let answer = alice.post_ok(UPLOAD, json!({})).await;
    assert_eq!(answer, json!({"one_time_key_counts": {"signed_curve25519": 5}}));
    let shown = query(&alice, &alice.user_id).await;
    assert_eq!(
        shown["device_keys"][&alice.user_id][&alice.device_id],
        key.as_device(&alice)
    );
}

#[tokio::test]
async fn one_time_keys_are_claimed_once_then_the_fallback_key() {
    let mut cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let bob = cluster[0].register("bob").await;
    assert_eq!(claim(&bob, &alice).await, None);
    let upload = json!({
        "one_time_keys": one_time_keys(names(0, 2)),
        "fallback_keys": one_time_keys(names(9, 10)),
    });
    alice.post_ok(UPLOAD, upload.clone()).await;
    assert_eq!(claim(&bob, &alice).await.unwrap(), "signed_curve25519:K000");
    // A client that missed the answer uploads again: what was handed out does not come back, not even after a crash.
    let answer = alice.post_ok(UPLOAD, upload.clone()).await;
    assert_eq!(answer["one_time_key_counts"]["signed_curve25519"], 1);
    cluster.nodes[0].restart().await;
    let (alice, bob) = (again_at(&cluster[0], &alice), again_at(&cluster[0], &bob));
    assert_eq!(claim(&bob, &alice).await.unwrap(), "signed_curve25519:K001");
    for _ in 0..2 {
        assert_eq!(claim(&bob, &alice).await.unwrap(), "signed_curve25519:K009");
    }
    let unused = async || {
        let (user, device) = (alice.user_id.clone(), alice.device_id.clone());
        let store = &cluster[0].hs.context.store;
        store
            .read(move |txn| txn.unused_fallback_key_types(user.as_str().try_into().unwrap(), device.as_str().into()))
            .await
            .unwrap()
            .len()
    };
    assert_eq!(unused().await, 0);
    // The same fallback key again stays used; a new one is not.
    alice
        .post_ok(UPLOAD, json!({"fallback_keys": one_time_keys(names(9, 10))}))
        .await;
    assert_eq!(unused().await, 0);
    alice
        .post_ok(UPLOAD, json!({"fallback_keys": one_time_keys(names(8, 9))}))
        .await;
    assert_eq!(unused().await, 1);
    assert_eq!(claim(&bob, &alice).await.unwrap(), "signed_curve25519:K008");
}

#[tokio::test]
async fn a_hundred_claims_at_once_get_a_hundred_keys() {
    let cluster = Cluster::start(2).await;
    let alice = cluster[0].register("alice").await;
    let near = cluster[0].register("bob").await;
    let far = cluster[1].register("carol").await;
    alice
        .post_ok(UPLOAD, json!({"one_time_keys": one_time_keys(names(0, 90))}))
        .await;
    let claims = (0..100).map(|n| claim(if n % 2 == 0 { &near } else { &far }, &alice));
    let claimed: Vec<String> = join_all(claims).await.into_iter().flatten().collect();
    assert_eq!(claimed.len(), 90);
    assert_eq!(claimed.iter().collect::<BTreeSet<_>>().len(), 90);
}

#[tokio::test]
async fn other_servers_are_asked_and_missed() {
    let cluster = Cluster::start(3).await;
    let alice = cluster[0].register("alice").await;
    let bob = cluster[1].register("bob").await;
    let carol = cluster[2].register("carol").await;
    let key = publish(&bob).await;
    bob.post_ok(UPLOAD, json!({"one_time_keys": one_time_keys(names(0, 1))}))
        .await;
    let identity = TestIdentity::new();
    bob.post_ok(DEVICE_SIGNING, identity.upload(&bob.user_id)).await;
    cluster[2].go_down();

    let ghost = format!("@ghost:{}", cluster[1].name);
    let users = json!({&bob.user_id: [], &carol.user_id: [], &ghost: [], &alice.user_id: []});
    let answer = alice
        .post_ok(QUERY, json!({"device_keys": users, "timeout": 5000}))
        .await;
    let expected = key.as_device(&bob);
    assert_eq!(
        answer["device_keys"],
        json!({&bob.user_id: {&bob.device_id: expected}, &alice.user_id: {}})
    );
    assert_eq!(answer["master_keys"][&bob.user_id]["usage"], json!(["master"]));
    assert_eq!(
        answer["self_signing_keys"][&bob.user_id]["usage"],
        json!(["self_signing"])
    );
    assert_eq!(answer.get("user_signing_keys"), None);
    let failures: Vec<&String> = answer["failures"].as_object().unwrap().keys().collect();
    assert_eq!(failures, [cluster[2].name.as_str()]);

    let claims = json!({"one_time_keys": {
        &bob.user_id: {&bob.device_id: "signed_curve25519", "NONE": "signed_curve25519"},
        &carol.user_id: {&carol.device_id: "signed_curve25519"},
    }});
    let answer = alice.post_ok(CLAIM, claims).await;
    let claimed = answer["one_time_keys"].as_object().unwrap();
    assert_eq!(claimed.keys().collect::<Vec<_>>(), [&bob.user_id]);
    assert_eq!(claimed[&bob.user_id].as_object().unwrap().len(), 1);
    let failures: Vec<&String> = answer["failures"].as_object().unwrap().keys().collect();
    assert_eq!(failures, [cluster[2].name.as_str()]);
}

#[tokio::test]
async fn cross_signing_keys_are_replaced_only_with_proof() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let user = &alice.user_id;
    let (first, second) = (TestIdentity::new(), TestIdentity::new());
    let without_master = json!({"self_signing_key": first.upload(user)["self_signing_key"]});
    assert_refused(
        alice.post(DEVICE_SIGNING, without_master.clone()).await,
        (400, "M_MISSING_PARAM"),
    );
    let mut forged = first.upload(user);
    forged["self_signing_key"] = second.upload(user)["self_signing_key"].clone();
    assert_refused(alice.post(DEVICE_SIGNING, forged).await, (400, "M_INVALID_SIGNATURE"));
    let foreign = first.upload("@bob:elsewhere");
    assert_refused(alice.post(DEVICE_SIGNING, foreign).await, (400, "M_INVALID_PARAM"));

    for _ in 0..2 {
        alice.post_ok(DEVICE_SIGNING, first.upload(user)).await;
        alice.post_ok(DEVICE_SIGNING, without_master.clone()).await;
    }
    let (status, challenge) = alice.post(DEVICE_SIGNING, second.upload(user)).await;
    assert_eq!(status.as_u16(), 401);
    assert_eq!(challenge["flows"], json!([{"stages": ["m.login.password"]}]));
    let shown = query(&alice, user).await;
    let public = |shown: &Value| {
        shown["master_keys"][user]["keys"]
            .as_object()
            .unwrap()
            .values()
            .next()
            .cloned()
    };
    assert_eq!(public(&shown), Some(json!(first.master.public)));

    let mut proven = second.upload(user);
    proven["auth"] = json!({
        "type": "m.login.password", "session": challenge["session"], "password": "secret",
        "identifier": {"type": "m.id.user", "user": user},
    });
    alice.post_ok(DEVICE_SIGNING, proven).await;
    let shown = query(&alice, user).await;
    assert_eq!(public(&shown), Some(json!(second.master.public)));
    assert!(shown["user_signing_keys"][user].is_object());
    let bob = cluster[0].register("bob").await;
    let shown = query(&bob, user).await;
    assert_eq!(public(&shown), Some(json!(second.master.public)));
    assert_eq!(shown.get("user_signing_keys"), None);
}

#[tokio::test]
async fn cross_signing_keys_and_device_ids_share_a_name_space() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let identity = TestIdentity::new();
    let login = json!({
        "type": "m.login.password", "identifier": {"type": "m.id.user", "user": "alice"},
        "password": "secret", "device_id": identity.master.public,
    });
    let answer = alice.post_ok("/_matrix/client/v3/login", login).await;
    assert_refused(
        alice.post(DEVICE_SIGNING, identity.upload(&alice.user_id)).await,
        (403, "M_FORBIDDEN"),
    );
    // The other way round: the device publishes its keys after the cross-signing key.
    let other = TestIdentity::new();
    alice.post_ok(DEVICE_SIGNING, other.upload(&alice.user_id)).await;
    let mut clashing = alice.clone();
    clashing.device_id = other.self_signing.public.clone();
    let login = json!({
        "type": "m.login.password", "identifier": {"type": "m.id.user", "user": "alice"},
        "password": "secret", "device_id": clashing.device_id,
    });
    let second = alice.post_ok("/_matrix/client/v3/login", login).await;
    clashing.token = second["access_token"].as_str().map(ToOwned::to_owned);
    assert_ne!(answer["access_token"], second["access_token"]);
    let body = json!({"device_keys": TestKey::new().as_device(&clashing)});
    assert_refused(clashing.post(UPLOAD, body).await, (403, "M_FORBIDDEN"));
}

#[tokio::test]
async fn signatures_are_verified_and_shown_to_whom_they_concern() {
    let cluster = Cluster::start(2).await;
    let alice = cluster[0].register("alice").await;
    let phone = publish(&alice).await;
    let bob = cluster[1].register("bob").await;
    let eve = cluster[0].register("eve").await;
    let (ours, theirs) = (TestIdentity::new(), TestIdentity::new());
    alice.post_ok(DEVICE_SIGNING, ours.upload(&alice.user_id)).await;
    bob.post_ok(DEVICE_SIGNING, theirs.upload(&bob.user_id)).await;

    let (a, b) = (&alice.user_id, &bob.user_id);
    let device = || phone.as_device(&alice);
    let master = || ours.master.as_cross_signing(a, "master");
    let bobs = || theirs.master.as_cross_signing(b, "master");
    let mut altered = device();
    altered["algorithms"] = json!(["none"]);
    let check = async |signed: Value, expected: Option<&str>| {
        let answer = alice.post_ok(SIGNATURES, signed.clone()).await;
        let failures = answer["failures"].as_object().and_then(|users| users.values().next());
        let failure = failures.and_then(|keys| keys.as_object()?.values().next());
        let code = failure.and_then(|failure| failure["errcode"].as_str());
        assert_eq!(code, expected, "{signed}");
    };
    let invalid = Some("M_INVALID_SIGNATURE");
    let stranger = TestKey::new();
    for (signed, expected) in [
        // Not signed by the self-signing key, or not the published key, or an unknown one.
        (json!({a: {&alice.device_id: device()}}), invalid),
        (
            json!({a: {&alice.device_id: stranger.sign(device(), a, &ours.self_signing.public)}}),
            invalid,
        ),
        (
            json!({a: {&alice.device_id: ours.self_signing.cross_sign(altered, a)}}),
            invalid,
        ),
        (
            json!({a: {"UNKNOWN": ours.self_signing.cross_sign(device(), a)}}),
            Some("M_NOT_FOUND"),
        ),
        (
            json!({a: {&ours.master.public: stranger.sign(master(), a, &alice.device_id)}}),
            invalid,
        ),
        (json!({a: {&ours.master.public: master()}}), invalid),
        (json!({b: {&theirs.master.public: bobs()}}), invalid),
        (
            json!({b: {&theirs.master.public: ours.self_signing.cross_sign(bobs(), a)}}),
            invalid,
        ),
        (
            json!({b: {"unknown": ours.user_signing.cross_sign(bobs(), a)}}),
            Some("M_NOT_FOUND"),
        ),
        (json!({b: {&theirs.master.public: 7}}), invalid),
        (
            json!({a: {&alice.device_id: ours.self_signing.cross_sign(device(), a)}}),
            None,
        ),
        (
            json!({a: {&ours.master.public: phone.sign(master(), a, &alice.device_id)}}),
            None,
        ),
        (
            json!({b: {&theirs.master.public: ours.user_signing.cross_sign(bobs(), a)}}),
            None,
        ),
    ] {
        check(signed, expected).await;
    }
    let signers = |shown: &Value, owner: &str| {
        let of = |object: &Value| -> BTreeSet<String> {
            let users = object["signatures"].as_object().into_iter().flatten();
            users
                .flat_map(|(_, keys)| keys.as_object().unwrap().keys().cloned())
                .collect()
        };
        let device = of(&shown["device_keys"][owner][&alice.device_id]);
        (device, of(&shown["master_keys"][owner]))
    };
    let id = |name: &str| format!("ed25519:{name}");
    let (by_phone, by_self, by_user) = (
        id(&alice.device_id),
        id(&ours.self_signing.public),
        id(&ours.user_signing.public),
    );
    let expected = (BTreeSet::from([by_phone.clone(), by_self]), BTreeSet::from([by_phone]));
    for viewer in [&alice, &bob, &eve] {
        assert_eq!(signers(&query(viewer, a).await, a), expected, "{}", viewer.user_id);
    }
    // Whom Alice has verified is nobody's business but hers.
    for (viewer, expected) in [
        (&alice, BTreeSet::from([by_user])),
        (&bob, BTreeSet::new()),
        (&eve, BTreeSet::new()),
    ] {
        assert_eq!(signers(&query(viewer, b).await, b).1, expected, "{}", viewer.user_id);
    }
}

#[tokio::test]
async fn renamed_and_removed_devices_are_told() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let second = cluster[0].login("alice").await;
    assert_eq!(alice.get_ok(CHANGES).await, json!({"changed": [], "left": []}));
    publish(&second).await;
    assert_eq!(
        alice.get_ok(CHANGES).await,
        json!({"changed": [&alice.user_id], "left": []})
    );
    let path = format!("/_matrix/client/v3/devices/{}", second.device_id);
    alice.put_ok(&path, json!({"display_name": "Second"})).await;
    let shown = query(&alice, &alice.user_id).await;
    let devices = &shown["device_keys"][&alice.user_id];
    assert_eq!(
        devices[&second.device_id]["unsigned"],
        json!({"device_display_name": "Second"})
    );
    second.post_ok("/_matrix/client/v3/logout", json!({})).await;
    let shown = query(&alice, &alice.user_id).await;
    assert_eq!(shown["device_keys"], json!({&alice.user_id: {}}));
    assert_eq!(claim(&alice, &second).await, None);
    for bad in ["from=x&to=s0_0", "from=s0_0&to=t1", "from=s0_0"] {
        let path = format!("/_matrix/client/v3/keys/changes?{bad}");
        assert_eq!(alice.get(&path).await.0.as_u16(), 400, "{bad}");
    }
}

#[tokio::test]
async fn a_device_with_a_new_identity_keeps_nothing_of_the_old() {
    let cluster = Cluster::start(1).await;
    let alice = cluster[0].register("alice").await;
    let old = publish(&alice).await;
    let identity = TestIdentity::new();
    alice.post_ok(DEVICE_SIGNING, identity.upload(&alice.user_id)).await;
    let signed = identity.self_signing.cross_sign(old.as_device(&alice), &alice.user_id);
    alice
        .post_ok(SIGNATURES, json!({&alice.user_id: {&alice.device_id: signed}}))
        .await;
    alice
        .post_ok(UPLOAD, json!({"one_time_keys": one_time_keys(names(0, 3))}))
        .await;
    let new = publish(&alice).await;
    let shown = query(&alice, &alice.user_id).await;
    assert_eq!(
        shown["device_keys"][&alice.user_id][&alice.device_id],
        new.as_device(&alice)
    );
    assert_eq!(claim(&alice, &alice).await, None);
}
