//! Nodes that reach each other across routers, carriers and firewalls, through relays and past them: whole programs in network
//! namespaces.

use futures::future::join_all;
use kith_tests::{Access, Internet, Node, NodeOptions, Relay, lab};
use rusqlite::Connection;

#[tokio::test]
async fn any_two_are_connected_through_a_relay_and_straight_where_their_routers_permit() {
    let set_up = lab(
        "any_two_are_connected_through_a_relay_and_straight_where_their_routers_permit",
        async {
            let mut internet = Internet::set_up().await?;
            let relay = internet.public_host().await?;
            let mut hosts = Vec::new();
            for access in Access::ALL.into_iter().chain(Access::ALL) {
                hosts.push((access, internet.host(access).await?));
            }
            Ok((internet, relay, hosts))
        },
    );
    let Some((_internet, relay, hosts)) = set_up.await else {
        return;
    };
    let relay = Relay::start_at(&relay).await;
    let relays = [&relay];
    let nodes = join_all(hosts.iter().map(|(_, (host, _))| Node::start_at(host, &relays))).await;
    let (first, second) = nodes.split_at(Access::ALL.len());
    for (one, from) in first.iter().zip(Access::ALL) {
        let mut alice = one.client_over_socket("alice").await;
        for (other, to) in second.iter().zip(Access::ALL) {
            one.know(other).await;
            let mut bob = other.client_over_socket(&format!("bob{from:?}").to_lowercase()).await;
            alice.talk_to(&mut bob).await;
            let path = if from.permits_straight(to) { "direct" } else { "relayed" };
            one.reaches(other, path).await;
        }
    }
}

#[tokio::test]
async fn a_conversation_goes_on_over_another_uplink() {
    let set_up = lab("a_conversation_goes_on_over_another_uplink", async {
        let mut internet = Internet::set_up().await?;
        let relay = internet.public_host().await?;
        let mut home = internet.router(Access::Home).await?;
        let mut carrier = internet.router(Access::Carrier).await?;
        let phone = home.host().await?;
        let mobile = carrier.offer(&phone, "mobile").await?;
        let friend = internet.host(Access::Home).await?;
        Ok((internet, relay, (home, carrier), phone, mobile, friend))
    });
    let Some((_internet, relay, _routers, phone, mobile, friend)) = set_up.await else {
        return;
    };
    let relay = Relay::start_at(&relay).await;
    let (one, other) = (
        Node::start_at(&phone, &[&relay]).await,
        Node::start_at(&friend.0, &[&relay]).await,
    );
    let (mut alice, mut bob) = (
        one.client_over_socket("alice").await,
        other.client_over_socket("bob").await,
    );
    one.know(&other).await;
    let room = alice.talk_to(&mut bob).await;
    one.reaches(&other, "direct").await;

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
    let set_up = lab("another_relay_steps_in_for_one_that_dies", async {
        let mut internet = Internet::set_up().await?;
        let relays = [internet.public_host().await?, internet.public_host().await?];
        let hosts = [
            internet.host(Access::Carrier).await?,
            internet.host(Access::Carrier).await?,
        ];
        Ok((internet, relays, hosts))
    });
    let Some((_internet, relays, hosts)) = set_up.await else {
        return;
    };
    let mut relays = [Relay::start_at(&relays[0]).await, Relay::start_at(&relays[1]).await];
    let both = [&relays[0], &relays[1]];
    let (one, other) = (
        Node::start_at(&hosts[0].0, &both).await,
        Node::start_at(&hosts[1].0, &both).await,
    );
    let (mut alice, mut bob) = (
        one.client_over_socket("alice").await,
        other.client_over_socket("bob").await,
    );
    one.know(&other).await;
    let room = alice.talk_to(&mut bob).await;
    let peer = one.peer(&other).await.unwrap();
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
    let set_up = lab("two_in_one_house_talk_on_while_the_internet_is_cut", async {
        let mut internet = Internet::set_up().await?;
        let relay = internet.public_host().await?;
        let mut home = internet.router(Access::Home).await?;
        let hosts = [home.host().await?, home.host().await?];
        Ok((internet, relay, home, hosts))
    });
    let Some((_internet, relay, home, hosts)) = set_up.await else {
        return;
    };
    let relay = Relay::start_at(&relay).await;
    let (one, other) = (
        Node::start_at(&hosts[0], &[&relay]).await,
        Node::start_at(&hosts[1], &[&relay]).await,
    );
    let (mut alice, mut bob) = (
        one.client_over_socket("alice").await,
        other.client_over_socket("bob").await,
    );
    one.know(&other).await;
    let room = alice.talk_to(&mut bob).await;
    one.reaches(&other, "lan").await;
    home.cut().await.unwrap();
    let texts = ["is it only me?", "here too"].map(str::to_owned);
    alice.send_text(&room, &texts[0]).await;
    bob.texts_until(&room, &texts[..1]).await;
    bob.send_text(&room, &texts[1]).await;
    assert_eq!(alice.texts_until(&room, &texts).await, texts);
}

#[tokio::test]
async fn a_router_that_opens_ports_lets_in_whom_no_hole_could_be_punched_for() {
    let set_up = lab(
        "a_router_that_opens_ports_lets_in_whom_no_hole_could_be_punched_for",
        async {
            let mut internet = Internet::set_up().await?;
            let relay = internet.public_host().await?;
            let mut home = internet.router(Access::Home).await?;
            home.open_ports().await?;
            let host = home.host().await?;
            let friend = internet.host(Access::Carrier).await?;
            Ok((internet, relay, home, host, friend))
        },
    );
    let Some((_internet, relay, _home, host, friend)) = set_up.await else {
        return;
    };
    let relay = Relay::start_at(&relay).await;
    let relays = [&relay];
    let one = Node::start(NodeOptions {
        upnp: true,
        ..Node::options_at(&host, &relays)
    });
    let (one, other) = futures::join!(one, Node::start_at(&friend.0, &relays));
    let (mut alice, mut bob) = (
        one.client_over_socket("alice").await,
        other.client_over_socket("bob").await,
    );
    other.know(&one).await;
    bob.talk_to(&mut alice).await;
    other.reaches(&one, "direct").await;
}

#[tokio::test]
async fn holes_are_punched_for_tcp_where_routers_let_no_udp_pass() {
    let set_up = lab("holes_are_punched_for_tcp_where_routers_let_no_udp_pass", async {
        let mut internet = Internet::set_up().await?;
        let relay = internet.public_host().await?;
        let hosts = [
            internet.host(Access::HomeWithoutUdp).await?,
            internet.host(Access::HomeWithoutUdp).await?,
        ];
        Ok((internet, relay, hosts))
    });
    let Some((_internet, relay, hosts)) = set_up.await else {
        return;
    };
    let relay = Relay::start_at(&relay).await;
    let relays = [&relay];
    let (mut one, other) = (
        Node::start_at(&hosts[0].0, &relays).await,
        Node::start_at(&hosts[1].0, &relays).await,
    );
    let (mut alice, mut bob) = (
        one.client_over_socket("alice").await,
        other.client_over_socket("bob").await,
    );
    one.know(&other).await;
    alice.talk_to(&mut bob).await;
    one.reaches(&other, "direct").await;

    // Where a hole was, nobody listens later.
    assert!(one.stop().await.success());
    let own = format!("/ip4/{}/", hosts[1].0.address);
    for address in remembered(&one, &other) {
        assert!(
            address.contains("/p2p-circuit") || address.starts_with(&own),
            "{address}"
        );
    }
}

/// The addresses at which a node that has stopped remembers another.
fn remembered(node: &Node, other: &Node) -> Vec<String> {
    let store = Connection::open(node.data().join("kith.db")).unwrap();
    let mut rows = store
        .prepare("SELECT value FROM peer_addresses, json_each(addresses) WHERE server = ?1")
        .unwrap();
    let rows = rows.query_map([&other.ready.server_name], |row| row.get(0)).unwrap();
    rows.collect::<Result<_, _>>().unwrap()
}
