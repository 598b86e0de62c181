//! Nodes that reach each other across routers, carriers and firewalls, through relays and past them: whole programs in network
//! namespaces.

use futures::future::join_all;
use kith_tests::{Access, Host, Internet, LanError, Node, NodeOptions, Relay, skipped, within};
use serde_json::{Value, json};

/// Starts a relay as a volunteer would, with TCP on the port that firewalls let through.
async fn relay_on(host: &Host) -> Relay {
    let ports = ["udp/4433/quic-v1", "tcp/4433", "tcp/443"];
    let listen = ports.map(|port| format!("/ip4/{}/{port}", host.address));
    Relay::start_on(&host.on(), &listen).await
}

/// Starts a node that knows nothing but relays, each by its first address.
async fn node_on(host: &Host, relays: &[&Relay]) -> Node {
    let relays = relays.iter().map(|relay| relay.addresses[0].clone());
    Node::start(NodeOptions {
        listen: vec!["/ip4/0.0.0.0/udp/0/quic-v1".to_owned(), "/ip4/0.0.0.0/tcp/0".to_owned()],
        arguments: relays.flat_map(|relay| ["--relay".to_owned(), relay]).collect(),
        through: host.on(),
        ..NodeOptions::default()
    })
    .await
}

async fn status(node: &Node) -> Value {
    let (done, status, error) = node.kith(&["status", "--json"], "").await;
    assert!(done.success(), "{error}");
    serde_json::from_str(&status).unwrap()
}

/// What `node` says of `other` among its peers.
async fn peer(node: &Node, other: &Node) -> Option<Value> {
    let status = status(node).await;
    let mut peers = status["peers"].as_array().unwrap().iter();
    let peer = peers.find(|peer| peer["server_name"] == other.ready.server_name.as_str());
    peer.cloned()
}

/// Waits until `node` reaches `other` in this way.
async fn reached(node: &Node, other: &Node, path: &str) {
    let reached = async { while peer(node, other).await.is_none_or(|peer| peer["path"] != path) {} };
    within(&format!("a path that is {path}"), reached).await;
}

async fn know(node: &Node, other: &Node) {
    let (done, _, error) = node.kith(&["peer", "add", &other.ready.ticket], "").await;
    assert!(done.success(), "{error}");
}

/// One invites the other, who joins, and each hears the other.
async fn talk(first: &mut kith_tests::Client, second: &mut kith_tests::Client) -> String {
    let room = first
        .create_room(json!({"preset": "trusted_private_chat", "is_direct": true, "invite": [second.user_id]}))
        .await;
    while second.invited().await != room {}
    second.post(&format!("/join/{room}"), json!({})).await.ok();
    let texts = ["hello".to_owned(), "and back".to_owned()];
    first.send_text(&room, &texts[0]).await;
    second.texts_until(&room, &texts[..1]).await;
    second.send_text(&room, &texts[1]).await;
    first.texts_until(&room, &texts).await;
    room
}

#[tokio::test]
async fn any_two_are_connected_through_a_relay_and_straight_where_their_routers_permit() {
    let name = "any_two_are_connected_through_a_relay_and_straight_where_their_routers_permit";
    let lab = async {
        let mut internet = Internet::set_up().await?;
        let relay = internet.public_host().await?;
        let mut hosts = Vec::new();
        for access in Access::ALL.into_iter().chain(Access::ALL) {
            hosts.push((access, internet.host(access).await?));
        }
        Ok::<_, LanError>((internet, relay, hosts))
    };
    let (_internet, relay, hosts) = match lab.await {
        Ok(lab) => lab,
        Err(error) => return skipped(name, &error),
    };
    let relay = relay_on(&relay).await;
    let relays = [&relay];
    let nodes = join_all(hosts.iter().map(|(_, (host, _))| node_on(host, &relays))).await;
    let (first, second) = nodes.split_at(Access::ALL.len());
    for (one, from) in first.iter().zip(Access::ALL) {
        let mut alice = one.client_over_socket("alice").await;
        for (other, to) in second.iter().zip(Access::ALL) {
            know(one, other).await;
            let mut bob = other.client_over_socket(&format!("bob{from:?}").to_lowercase()).await;
            talk(&mut alice, &mut bob).await;
            let path = if from.permits_straight(to) { "direct" } else { "relayed" };
            reached(one, other, path).await;
        }
    }
}

#[tokio::test]
async fn a_conversation_goes_on_over_another_uplink() {
    let name = "a_conversation_goes_on_over_another_uplink";
    let lab = async {
        let mut internet = Internet::set_up().await?;
        let relay = internet.public_host().await?;
        let mut home = internet.router(Access::Home).await?;
        let mut carrier = internet.router(Access::Carrier).await?;
        let phone = home.host().await?;
        let mobile = carrier.offer(&phone, "mobile").await?;
        let friend = internet.host(Access::Home).await?;
        Ok::<_, LanError>((internet, relay, (home, carrier), phone, mobile, friend))
    };
    let (_internet, relay, _routers, phone, mobile, friend) = match lab.await {
        Ok(lab) => lab,
        Err(error) => return skipped(name, &error),
    };
    let relay = relay_on(&relay).await;
    let (one, other) = (node_on(&phone, &[&relay]).await, node_on(&friend.0, &[&relay]).await);
    let (mut alice, mut bob) = (
        one.client_over_socket("alice").await,
        other.client_over_socket("bob").await,
    );
    know(&one, &other).await;
    let room = talk(&mut alice, &mut bob).await;
    reached(&one, &other, "direct").await;

    let mut texts = Vec::new();
    for turn in 0..6 {
        if turn == 2 {
            phone.switch("eth", "mobile", &mobile).await.unwrap();
        }
        let (sender, text) = if turn % 2 == 0 {
            (&mut alice, "to")
        } else {
            (&mut bob, "fro")
        };
        texts.push(format!("{text} {turn}"));
        sender.send_text(&room, texts.last().unwrap()).await;
    }
    // Each side hears everything once, whatever path it took.
    for client in [&mut alice, &mut bob] {
        let heard = client.texts_until(&room, &texts).await;
        for text in &texts {
            assert_eq!(heard.iter().filter(|heard| *heard == text).count(), 1, "{heard:?}");
        }
    }
}

#[tokio::test]
async fn another_relay_steps_in_for_one_that_dies() {
    let name = "another_relay_steps_in_for_one_that_dies";
    let lab = async {
        let mut internet = Internet::set_up().await?;
        let relays = [internet.public_host().await?, internet.public_host().await?];
        let hosts = [
            internet.host(Access::Carrier).await?,
            internet.host(Access::Carrier).await?,
        ];
        Ok::<_, LanError>((internet, relays, hosts))
    };
    let (_internet, relays, hosts) = match lab.await {
        Ok(lab) => lab,
        Err(error) => return skipped(name, &error),
    };
    let mut relays = [relay_on(&relays[0]).await, relay_on(&relays[1]).await];
    let both = [&relays[0], &relays[1]];
    let (one, other) = (node_on(&hosts[0].0, &both).await, node_on(&hosts[1].0, &both).await);
    let (mut alice, mut bob) = (
        one.client_over_socket("alice").await,
        other.client_over_socket("bob").await,
    );
    know(&one, &other).await;
    let room = talk(&mut alice, &mut bob).await;
    let peer = peer(&one, &other).await.unwrap();
    let used = peer["addresses"][0].as_str().unwrap();
    let dies = relays
        .iter()
        .position(|relay| relay.addresses.iter().any(|address| used.starts_with(address)))
        .unwrap_or_else(|| panic!("{used} names no relay"));
    relays[dies].kill().await;
    let texts = ["are you there?", "yes"].map(str::to_owned);
    alice.send_text(&room, &texts[0]).await;
    bob.texts_until(&room, &texts[..1]).await;
    bob.send_text(&room, &texts[1]).await;
    assert_eq!(alice.texts_until(&room, &texts).await, texts);
}

#[tokio::test]
async fn two_in_one_house_talk_on_while_the_internet_is_cut() {
    let name = "two_in_one_house_talk_on_while_the_internet_is_cut";
    let lab = async {
        let mut internet = Internet::set_up().await?;
        let relay = internet.public_host().await?;
        let mut home = internet.router(Access::Home).await?;
        let hosts = [home.host().await?, home.host().await?];
        Ok::<_, LanError>((internet, relay, home, hosts))
    };
    let (_internet, relay, home, hosts) = match lab.await {
        Ok(lab) => lab,
        Err(error) => return skipped(name, &error),
    };
    let relay = relay_on(&relay).await;
    let (one, other) = (node_on(&hosts[0], &[&relay]).await, node_on(&hosts[1], &[&relay]).await);
    let (mut alice, mut bob) = (
        one.client_over_socket("alice").await,
        other.client_over_socket("bob").await,
    );
    know(&one, &other).await;
    let room = talk(&mut alice, &mut bob).await;
    reached(&one, &other, "lan").await;
    home.cut().await.unwrap();
    let texts = ["is it only me?", "here too"].map(str::to_owned);
    alice.send_text(&room, &texts[0]).await;
    bob.texts_until(&room, &texts[..1]).await;
    bob.send_text(&room, &texts[1]).await;
    assert_eq!(alice.texts_until(&room, &texts).await, texts);
}
