//! Summaries of rooms and walks through spaces, within a node and across nodes.

use http::Method;
use serde_json::{Value, json};

use super::{at, create};
use crate::testing::{Client, Cluster, Node, assert_refused, escape};

async fn space(client: &Client, name: &str, mut body: Value) -> String {
    body["creation_content"] = json!({"type": "m.space"});
    body["name"] = name.into();
    create(client, body).await
}

async fn room(client: &Client, name: &str, mut body: Value) -> String {
    body["name"] = name.into();
    create(client, body).await
}

/// Lists a room in a space. `rest`: what the event holds beside `via`.
async fn list(client: &Client, space: &str, child: &str, via: &Node, mut rest: Value) {
    rest["via"] = json!([via.name]);
    let path = at(space, &format!("state/m.space.child/{}", escape(child)));
    client.put_ok(&path, rest).await;
}

fn hierarchy(space: &str, query: &str) -> String {
    format!("/_matrix/client/v1/rooms/{}/hierarchy?{query}", escape(space))
}

fn names(answer: &Value) -> Vec<&str> {
    let rooms = answer["rooms"].as_array().unwrap();
    rooms.iter().map(|room| room["name"].as_str().unwrap()).collect()
}

fn public() -> Value {
    json!({"preset": "public_chat"})
}

fn restricted_to(room: &str) -> Value {
    let rule = json!({"join_rule": "restricted", "allow": [{"type": "m.room_membership", "room_id": room}]});
    json!({"initial_state": [{"type": "m.room.join_rules", "content": rule}]})
}

/// On the first node a space with a public and a private room, on the second a public room and a space that holds a room
/// for members of the first space.
async fn house(cluster: &Cluster, alice: &Client, carol: &Client) -> [String; 6] {
    let top = space(alice, "Top", json!({"invite": [carol.user_id]})).await;
    carol
        .post_ok(&format!("/_matrix/client/v3/join/{}", escape(&top)), json!({}))
        .await;
    let tea = room(alice, "Tea", public()).await;
    let secret = room(alice, "Secret", json!({})).await;
    let coffee = room(carol, "Coffee", public()).await;
    let cellar = space(carol, "Cellar", public()).await;
    let wine = room(carol, "Wine", restricted_to(&top)).await;
    let (first, second) = (&cluster[0], &cluster[1]);
    list(alice, &top, &cellar, second, json!({"order": "c"})).await;
    list(alice, &top, &coffee, second, json!({"order": "b", "suggested": true})).await;
    list(alice, &top, &tea, first, json!({"order": "a"})).await;
    list(alice, &top, &secret, first, json!({"suggested": true})).await;
    list(carol, &cellar, &wine, second, json!({})).await;
    // A circle leads nowhere.
    list(carol, &cellar, &top, first, json!({})).await;
    [top, tea, secret, coffee, cellar, wine]
}

#[tokio::test]
async fn a_space_is_walked_across_nodes() {
    let cluster = Cluster::start(3).await;
    let alice = cluster[0].register("alice").await;
    let carol = cluster[1].register("carol").await;
    let bob = cluster[2].register("bob").await;
    let [top, _, _, coffee, cellar, _] = house(&cluster, &alice, &carol).await;

    // Alice is in the space and in the private room; what is on the other node is asked for there.
    let walked = alice.get_ok(&hierarchy(&top, "")).await;
    assert_eq!(names(&walked), ["Top", "Tea", "Coffee", "Cellar", "Wine", "Secret"]);
    assert_eq!(walked.get("next_batch"), None);
    assert_eq!(walked["rooms"][0]["children_state"].as_array().unwrap().len(), 4);
    assert_eq!(walked["rooms"][0]["room_type"], "m.space");
    assert_eq!(walked["rooms"][4]["allowed_room_ids"], json!([top]));
    let first = &walked["rooms"][0]["children_state"][2];
    assert_eq!(first["state_key"], *cellar);
    assert_eq!(first["sender"], alice.user_id);
    assert!(first["origin_server_ts"].is_u64());

    // Bob has nothing to do with it until he is invited; then everything is asked for.
    assert_refused(bob.get(&hierarchy(&top, "")).await, (403, "M_FORBIDDEN"));
    alice
        .post_ok(&at(&top, "invite"), json!({"user_id": bob.user_id}))
        .await;
    let walked = bob.get_ok(&hierarchy(&top, "")).await;
    assert_eq!(names(&walked), ["Top", "Tea", "Coffee", "Cellar"]);
    let join = format!("/_matrix/client/v3/join/{}", escape(&top));
    bob.post_ok(&join, json!({})).await;
    let at_carols = async || txn_joined(&cluster[1], &top, &cluster[2]).await;
    cluster[1].until("carol's node knows that bob came", at_carols).await;
    let walked = bob.get_ok(&hierarchy(&top, "")).await;
    assert_eq!(names(&walked), ["Top", "Tea", "Coffee", "Cellar", "Wine"]);

    let cases = [
        ("max_depth=0", vec!["Top"]),
        ("max_depth=1", vec!["Top", "Tea", "Coffee", "Cellar"]),
        ("suggested_only=true", vec!["Top", "Coffee"]),
    ];
    for (query, expected) in cases {
        assert_eq!(names(&bob.get_ok(&hierarchy(&top, query)).await), expected, "{query}");
    }

    // Page by page it is the same.
    let mut pages = Vec::new();
    let mut query = "limit=2".to_owned();
    loop {
        let page = bob.get_ok(&hierarchy(&top, &query)).await;
        pages.extend(names(&page).into_iter().map(ToOwned::to_owned));
        let Some(next) = page["next_batch"].as_str() else { break };
        query = format!("limit=2&from={next}");
        // One that got lost can be asked for again.
        assert_eq!(
            bob.get_ok(&hierarchy(&top, &query)).await["rooms"]
                .as_array()
                .unwrap()
                .len()
                .min(1),
            1
        );
        let other = format!("{query}&suggested_only=true");
        assert_refused(bob.get(&hierarchy(&top, &other)).await, (400, "M_INVALID_PARAM"));
        assert_refused(alice.get(&hierarchy(&top, &query)).await, (400, "M_INVALID_PARAM"));
    }
    assert_eq!(pages, ["Top", "Tea", "Coffee", "Cellar", "Wine"]);
    assert_refused(bob.get(&hierarchy(&top, "from=x")).await, (400, "M_INVALID_PARAM"));

    // A node that is away takes its rooms with it, and no others.
    cluster[1].go_down();
    assert_eq!(names(&bob.get_ok(&hierarchy(&top, "")).await), ["Top", "Tea"]);
    assert_refused(bob.get(&hierarchy(&coffee, "")).await, (403, "M_FORBIDDEN"));
}

async fn txn_joined(node: &Node, room: &str, server: &Node) -> bool {
    let (room, server) = (ruma::RoomId::parse(room).unwrap(), server.name.clone());
    let read = node
        .hs
        .context
        .store
        .read(move |txn| txn.is_server_joined(&room, &server));
    read.await.unwrap()
}

#[tokio::test]
async fn other_servers_are_told_what_their_users_could_enter() {
    let cluster = Cluster::start(3).await;
    let alice = cluster[0].register("alice").await;
    let carol = cluster[1].register("carol").await;
    let [top, tea, secret, ..] = house(&cluster, &alice, &carol).await;
    let path = |room: &str| format!("/_matrix/federation/v1/hierarchy/{}", escape(room));
    let ask = async |from: usize, room: &str| {
        cluster[from]
            .ask(&cluster[0], Method::GET, &path(room), Value::Null)
            .await
    };
    let (status, told) = ask(1, &top).await;
    assert_eq!(status, 200);
    assert_eq!(told["room"]["name"], "Top");
    assert_eq!(told["children"].as_array().unwrap().len(), 1);
    assert_eq!(told["children"][0]["name"], "Tea");
    assert_eq!(told["inaccessible_children"], json!([secret]));
    for (from, room, expected) in [
        (2, &top, (404, "M_NOT_FOUND")),
        (1, &secret, (404, "M_NOT_FOUND")),
        (1, &"!none:here".to_owned(), (404, "M_NOT_FOUND")),
    ] {
        assert_refused(ask(from, room).await, expected);
    }
    // A server that the room keeps out is told nothing, though the room is public.
    assert_eq!(ask(2, &tea).await.0, 200);
    let acl = json!({"allow": ["*"], "deny": [cluster[2].name]});
    alice.put_ok(&at(&tea, "state/m.room.server_acl/"), acl).await;
    assert_refused(ask(2, &tea).await, (404, "M_NOT_FOUND"));
}

#[tokio::test]
async fn summaries_are_for_those_who_could_enter() {
    let cluster = Cluster::start(2).await;
    let alice = cluster[0].register("alice").await;
    let dave = cluster[0].register("dave").await;
    let bob = cluster[1].register("bob").await;
    let encrypted = json!([{"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}]);
    let body =
        json!({"preset": "public_chat", "room_alias_name": "tea", "topic": "Leaves", "initial_state": encrypted});
    let tea = room(&alice, "Tea", body).await;
    let secret = room(&alice, "Secret", json!({})).await;
    let invited = room(&alice, "Invited", json!({"invite": [bob.user_id, dave.user_id]})).await;
    let knocked = room(
        &alice,
        "Knock",
        json!({"initial_state": [
            {"type": "m.room.join_rules", "content": {"join_rule": "knock"}}
        ]}),
    )
    .await;
    let via = format!("via={}", cluster[0].name);
    let path = |room: &str| format!("/_matrix/client/v1/room_summary/{}?{via}", escape(room));

    let alias = format!("#tea:{}", cluster[0].name);
    for client in [&alice, &dave, &bob] {
        for name in [&tea, &alias] {
            let told = client.get_ok(&path(name)).await;
            assert_eq!(told["room_id"], *tea);
            assert_eq!((&told["name"], &told["topic"]), (&json!("Tea"), &json!("Leaves")));
            // Public is what a room is that says nothing.
            assert_eq!(told.get("join_rule"), None);
            assert_eq!(told["num_joined_members"], 1);
            assert_eq!(told["encryption"], "m.megolm.v1.aes-sha2");
            assert_eq!(told["room_version"], "12");
            let expected = if client.user_id == alice.user_id {
                "join"
            } else {
                "leave"
            };
            assert_eq!(told["membership"], expected);
        }
    }
    for client in [&dave, &bob] {
        assert_eq!(client.get_ok(&path(&invited)).await["membership"], "invite");
        assert_eq!(client.get_ok(&path(&knocked)).await["join_rule"], "knock");
    }
    // What one may not know of is not there, and without a token one may know of nothing.
    for client in [&dave, &bob] {
        assert_refused(client.get(&path(&secret)).await, (404, "M_NOT_FOUND"));
    }
    for room in [&tea, &alias, &secret] {
        assert_refused(cluster[0].client().get(&path(room)).await, (401, "M_MISSING_TOKEN"));
    }
    // Another server's tale of another room is not believed.
    cluster
        .wires
        .lie("/hierarchy/", |answer| answer["room"]["room_id"] = json!("!other:room"));
    assert_refused(bob.get(&path(&tea)).await, (404, "M_NOT_FOUND"));
}
