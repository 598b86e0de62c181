//! Two people who have nothing in common but a relay: how soon the first message arrives, and how soon it goes straight.

use std::time::{Duration, Instant};

use futures::future::join_all;
use kith_tests::{Access, Client, LanError, Node};

use super::{Lab, PUBLISHED, UPLINK, first_message, is_straight, placed, seconds, until_path};
use crate::{Table, percentile, sorted};

/// Rounds of hole punching between two home routers.
const ROUNDS: usize = 10;

/// Uplinks of the second half of the rounds lose this part of the packets, each.
const LOSS: f64 = 0.01;

struct Pair {
    nodes: [Node; 2],
    alice: Client,
    bob: Client,
}

impl Pair {
    async fn start(lab: &Lab, hosts: [&kith_tests::Host; 2]) -> Self {
        let (first, second) = futures::join!(lab.node(hosts[0]), lab.node(hosts[1]));
        let (alice, bob) = futures::join!(first.client_over_socket("alice"), second.client_over_socket("bob"));
        Self {
            nodes: [first, second],
            alice,
            bob,
        }
    }

    async fn straight(&self) -> Option<Duration> {
        until_path(&self.nodes[0], &self.nodes[1], is_straight).await
    }
}

/// Starts pairs of nodes that never met, and waits until they can be found by name.
async fn strangers(lab: &Lab, hosts: &[[&kith_tests::Host; 2]]) -> Vec<Pair> {
    let mut pairs = Vec::new();
    for hosts in hosts {
        pairs.push(Pair::start(lab, *hosts).await);
    }
    join_all(pairs.iter().flat_map(|pair| &pair.nodes).map(placed)).await;
    tokio::time::sleep(PUBLISHED).await;
    pairs
}

/// Every kind of network with every other.
pub(super) async fn measure(table: &mut Table, reach: &mut Table) -> Result<(), LanError> {
    let mut lab = Lab::set_up(1, Some(UPLINK)).await?;
    let mut hosts = Vec::new();
    for access in Access::ALL {
        hosts.push((access, lab.host(access).await?, lab.host(access).await?));
    }
    let kinds: Vec<_> = hosts
        .iter()
        .flat_map(|(from, first, _)| hosts.iter().map(move |(to, _, second)| ((*from, *to), [first, second])))
        .collect();
    let places: Vec<_> = kinds.iter().map(|(_, hosts)| *hosts).collect();
    let (mut firsts, mut straights) = (Vec::new(), Vec::new());
    for ((from, to), mut pair) in kinds.iter().map(|(kind, _)| *kind).zip(strangers(&lab, &places).await) {
        let (_, first) = first_message(&mut pair.alice, &mut pair.bob).await;
        firsts.push(first.as_secs_f64());
        let straight = if from.permits_straight(to) {
            let straight = pair.straight().await;
            straights.push(straight.map_or(f64::INFINITY, |straight| straight.as_secs_f64()));
            straight.map_or("NEVER".to_owned(), |straight| format!("{} later", seconds(straight)))
        } else {
            "not possible".to_owned()
        };
        table.row([format!("{from:?}"), format!("{to:?}"), seconds(first), straight]);
    }
    let (firsts, straights) = (sorted(firsts), sorted(straights));
    let row = |value: f64| format!("{value:.2} s");
    reach.row([
        "first message, median of the pairs",
        &row(percentile(&firsts, 50.0)),
        "",
    ]);
    reach.row([
        "first message, p95 of the pairs",
        &row(percentile(&firsts, 95.0)),
        "3 s",
    ]);
    let slowest = row(percentile(&straights, 100.0));
    reach.row(["straight path where the pair permits, the slowest", &slowest, "30 s"]);
    Ok(())
}

/// Between two home routers, again and again with nodes that never met; the second half on lines that lose packets.
pub(super) async fn holes(reach: &mut Table) -> Result<(), LanError> {
    for (what, loss) in [
        ("holes punched between two home routers", 0.0),
        ("holes punched where 2 % of the packets are lost each way", LOSS),
    ] {
        let mut lab = Lab::set_up(1, Some(kith_tests::Quality { loss, ..UPLINK })).await?;
        let (first, second) = (lab.host(Access::Home).await?, lab.host(Access::Home).await?);
        let mut times = Vec::new();
        for mut pair in strangers(&lab, &[[&first, &second]; ROUNDS]).await {
            let start = Instant::now();
            first_message(&mut pair.alice, &mut pair.bob).await;
            if pair.straight().await.is_some() {
                times.push(start.elapsed().as_secs_f64());
            }
        }
        let punched = times.len();
        let median = if times.is_empty() {
            f64::NAN
        } else {
            percentile(&sorted(times), 50.0)
        };
        reach.row([
            what,
            &format!("{punched} of {ROUNDS}, median {median:.2} s from typing the invitation"),
            "",
        ]);
    }
    Ok(())
}
