//! What a node costs while nothing happens: bytes, packets and wake-ups an hour of a phone and of a desktop with fifty contacts,
//! twenty rooms and two relays, each behind a router of its own; and the memory of a connection.

use std::time::Duration;

use futures::{StreamExt, future::join_all, stream};
use kith_tests::{Access, Client, Host, Internet, LanError, Node, NodeOptions, Relay};
use serde_json::{Value, json};
use tokio::{
    process::Command,
    time::{Instant, sleep},
};

use crate::{Table, process::resident_mb};

/// Times that a contact tries to join a room, a second apart.
const JOIN_TRIES: usize = 60;

const CONTACTS: usize = 50;

/// Twenty rooms, by the number of contacts in them; and twenty of which two are large enough for a topic.
const SMALL_ROOMS: &[(usize, usize)] = &[(14, 1), (6, 3)];
const ROOMS: &[(usize, usize)] = &[(12, 1), (6, 3), (2, 10)];

/// Six of a phone's life signs.
const WINDOW: Duration = Duration::from_secs(330);

/// Connections that do not change for this long are those that stay: longer than a visit lasts, and than the last pause before
/// somebody is dialled again who was not reached.
const SETTLED: Duration = Duration::from_secs(150);

/// Longer than a phone's connection lingers because something was said on it, or was delivered after the start.
const AT_REST: Duration = Duration::from_secs(11 * 60);

/// For connections to settle.
const PATIENCE: Duration = Duration::from_secs(30 * 60);

/// Contacts that are set up at once.
const AT_ONCE: usize = 4;

/// Machines of contacts: relays and the DHT give one address only so much.
const CONTACT_HOSTS: usize = 25;

/// The machines.
struct Lab {
    _internet: Internet,
    relays: Vec<Host>,
    contacts: Vec<Host>,
    /// Behind routers, which the hosts outlive.
    measured: Vec<(Host, Option<kith_tests::Router>)>,
}

impl Lab {
    async fn set_up(measured: usize) -> Result<Self, LanError> {
        let mut internet = Internet::set_up().await?;
        let relays = vec![internet.public_host().await?, internet.public_host().await?];
        let mut contacts = Vec::new();
        for _ in 0..CONTACT_HOSTS {
            contacts.push(internet.public_host().await?);
        }
        let mut hosts = Vec::new();
        for _ in 0..measured {
            hosts.push(internet.host(Access::Home).await?);
        }
        Ok(Self {
            _internet: internet,
            relays,
            contacts,
            measured: hosts,
        })
    }
}

/// Measures and tabulates.
pub(crate) async fn measure() -> Table {
    let mut table = Table::new(
        "Idle: 50 contacts, 20 rooms, 2 relays",
        &[
            "measured",
            "phone, small rooms",
            "phone, two large rooms",
            "phone, silent for half an hour",
            "desktop, two large rooms",
        ],
    );
    let lab = match Lab::set_up(5).await {
        Ok(lab) => lab,
        Err(error) => {
            table.row([format!("no network namespaces here: {error}")]);
            return table;
        }
    };
    let relays = join_all(lab.relays.iter().map(relay_on)).await;
    let relay_arguments: Vec<String> = relays
        .iter()
        .flat_map(|relay| ["--relay".to_owned(), relay.addresses[0].clone()])
        .collect();
    let start = |host: &Host, profile: &str, peers: Vec<String>| {
        let options = NodeOptions {
            peers,
            listen: vec!["/ip4/0.0.0.0/udp/0/quic-v1".to_owned()],
            arguments: [&["--profile".to_owned(), profile.to_owned()][..], &relay_arguments].concat(),
            through: host.on(),
            ..NodeOptions::default()
        };
        Node::start(options)
    };
    let hosts: Vec<&Host> = lab.measured.iter().map(|(host, _)| host).collect();

    // Every other one is a phone itself.
    let contacts = stream::iter(0..CONTACTS).map(|number| {
        let start = &start;
        let host = &lab.contacts[number % CONTACT_HOSTS];
        async move {
            let profile = ["phone", "desktop"][number % 2];
            let node = start(host, profile, Vec::new()).await;
            let client = node.client_over_socket("contact").await;
            (node, client)
        }
    });
    let contacts: Vec<(Node, Client)> = contacts.buffered(AT_ONCE).collect().await;
    let tickets: Vec<String> = contacts.iter().map(|(node, _)| node.ready.ticket.clone()).collect();
    let nodes: Vec<&Node> = contacts.iter().map(|(node, _)| node).collect();
    memory(&mut table, start(hosts[4], "desktop", Vec::new()).await, &nodes).await;

    let clients: Vec<&Client> = contacts.iter().map(|(_, client)| client).collect();
    // All that silence leaves of a phone's connections in the end are its places at relays, unless it is in large rooms: as with a phone
    // that knows nobody.
    let mut measured = [
        (start(hosts[0], "phone", tickets.clone()).await, hosts[0]),
        (start(hosts[1], "phone", tickets.clone()).await, hosts[1]),
        (start(hosts[2], "phone", Vec::new()).await, hosts[2]),
        (start(hosts[3], "desktop", tickets.clone()).await, hosts[3]),
    ];
    let rooms = [SMALL_ROOMS, ROOMS, &[], ROOMS];
    let talks = measured.iter().zip(rooms).map(|((node, _), rooms)| async {
        settle(node, 0, SETTLED).await;
        talk(node, &clients, rooms).await;
    });
    join_all(talks).await;
    // What was said last is remembered; after a start, no connection lingers because of it.
    for index in [0, 1, 3] {
        assert!(measured[index].0.stop().await.success());
    }
    let before = counters(&measured).await;
    for index in [0, 1, 3] {
        measured[index].0.restart().await;
    }
    let peers = join_all(measured.iter().map(|(node, _)| settle(node, 0, AT_REST))).await;
    let started = difference(&before, &counters(&measured).await);
    row(
        &mut table,
        "servers connected when nothing is said",
        peers.iter().map(ToString::to_string),
    );
    row(
        &mut table,
        "from a start until every contact is met (with IP and UDP headers)",
        started
            .iter()
            .map(|traffic| format!("{:.0} KB", traffic.bytes as f64 / 1e3)),
    );

    let (before, woken) = (counters(&measured).await, wake_ups(&measured));
    sleep(WINDOW).await;
    let idle = difference(&before, &counters(&measured).await);
    let woken = wake_ups(&measured)
        .into_iter()
        .zip(woken)
        // Threads that ended took their counts with them.
        .map(|(after, before)| after.saturating_sub(before));
    let hourly = |count: u64| count as f64 * 3600.0 / WINDOW.as_secs_f64();
    row(
        &mut table,
        "bytes an hour, both ways, with IP and UDP headers (aim 40 KB on a phone)",
        idle.iter()
            .map(|traffic| format!("{:.1} KB", hourly(traffic.bytes) / 1e3)),
    );
    row(
        &mut table,
        "the same without these headers",
        idle.iter()
            .map(|traffic| format!("{:.1} KB", hourly(traffic.bytes - 28 * traffic.packets) / 1e3)),
    );
    row(
        &mut table,
        "packets an hour, both ways",
        idle.iter().map(|traffic| format!("{:.0}", hourly(traffic.packets))),
    );
    row(
        &mut table,
        "wake-ups of threads an hour",
        woken.map(|count| format!("{:.0}", hourly(count))),
    );
    table
}

fn row(table: &mut Table, name: &str, cells: impl Iterator<Item = String>) {
    table.row([name.to_owned()].into_iter().chain(cells));
}

async fn relay_on(host: &Host) -> Relay {
    let listen = ["udp/4433/quic-v1", "tcp/4433"].map(|port| format!("/ip4/{}/{port}", host.address));
    Relay::start_on(&host.on(), &listen).await
}

/// Has a contact join, in the end: fifty nodes on one machine are not always in time to connect.
async fn join(member: &Client, path: &str) {
    for _ in 0..JOIN_TRIES {
        if member.post(path, json!({})).await.status == 200 {
            return;
        }
        sleep(Duration::from_secs(1)).await;
    }
    panic!("a contact could not join in {JOIN_TRIES} tries");
}

/// Makes the rooms, has the contacts join them, and says something in each; in those of two last.
async fn talk(node: &Node, contacts: &[&Client], kinds: &[(usize, usize)]) {
    let user = node.client_over_socket("measured").await;
    let mut next = contacts.iter().cycle();
    let mut rooms = Vec::new();
    for (count, members) in kinds {
        for _ in 0..*count {
            let members: Vec<&Client> = next.by_ref().take(*members).copied().collect();
            let room = user.create_room(json!({"preset": "public_chat"})).await;
            let path = format!("/join/{room}?server_name={}", node.ready.server_name);
            for member in members {
                join(member, &path).await;
            }
            rooms.push(room);
        }
    }
    for room in rooms.iter().rev() {
        user.send_text(room, "all here?").await;
    }
}

/// Waits until so many servers are connected at the least, and then until their number has not changed for so long; gives it.
async fn settle(node: &Node, least: usize, still: Duration) -> usize {
    let begun = Instant::now();
    let (mut count, mut since) = (connected(node).await, Instant::now());
    while count < least || since.elapsed() < still {
        assert!(begun.elapsed() < PATIENCE, "connections come and go: {count}");
        sleep(Duration::from_secs(1)).await;
        let now = connected(node).await;
        if now != count {
            (count, since) = (now, Instant::now());
        }
    }
    count
}

async fn connected(node: &Node) -> usize {
    let (done, status, error) = node.kith(&["status", "--json"], "").await;
    assert!(done.success(), "{error}");
    let status: Value = serde_json::from_str(&status).expect("JSON");
    status["peers"].as_array().map_or(0, Vec::len)
}

/// What a connection takes of a node that does nothing else. The contacts know it too, or they would let it go.
async fn memory(table: &mut Table, node: Node, contacts: &[&Node]) {
    sleep(Duration::from_secs(5)).await;
    let before = resident_mb(node.pid());
    for contact in contacts {
        for (one, other) in [(*contact, &node), (&node, *contact)] {
            let (done, _, error) = one.kith(&["peer", "add", &other.ready.ticket], "").await;
            assert!(done.success(), "{error}");
        }
    }
    let count = settle(&node, contacts.len(), SETTLED).await;
    let each = (resident_mb(node.pid()) - before) * 1e3 / count as f64;
    table.row(["memory of each of 50 connections", "", "", "", &format!("{each:.0} KB")]);
}

/// What a machine sent and received, from IP's header on.
#[derive(Debug, Clone, Copy)]
struct Traffic {
    bytes: u64,
    packets: u64,
}

async fn counters(measured: &[(Node, &Host)]) -> Vec<Traffic> {
    join_all(measured.iter().map(|(_, host)| traffic(host))).await
}

/// Both ways. The interface's own counters would take ARP for traffic; programs on one machine talk over Unix sockets here.
async fn traffic(host: &Host) -> Traffic {
    let line = host.on();
    let mut read = Command::new(&line[0]);
    read.args(&line[1..])
        .args(["cat", "/proc/net/netstat", "/proc/net/snmp"]);
    let output = read.output().await.expect("cat runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    Traffic {
        bytes: counter(&text, "IpExt:", "InOctets") + counter(&text, "IpExt:", "OutOctets"),
        packets: counter(&text, "Ip:", "InReceives") + counter(&text, "Ip:", "OutRequests"),
    }
}

/// proc(5): a line of names, and one of values.
fn counter(text: &str, group: &str, name: &str) -> u64 {
    let mut lines = text
        .lines()
        .filter(|line| line.split_whitespace().next() == Some(group));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    let value = pairs.find_map(|(known, value)| (known == name).then_some(value));
    value.expect("the counter").parse().expect("a number")
}

fn difference(before: &[Traffic], after: &[Traffic]) -> Vec<Traffic> {
    let pairs = before.iter().zip(after);
    let gone = |(before, after): (&Traffic, &Traffic)| Traffic {
        bytes: after.bytes - before.bytes,
        packets: after.packets - before.packets,
    };
    pairs.map(gone).collect()
}

/// How often threads gave up the processor because they had nothing to do, and so were woken.
fn wake_ups(measured: &[(Node, &Host)]) -> Vec<u64> {
    let of_thread = |task: std::fs::DirEntry| -> Option<u64> {
        let status = std::fs::read_to_string(task.path().join("status")).ok()?;
        let count = status
            .lines()
            .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?;
        count.trim().parse().ok()
    };
    let of_process = |pid: u32| {
        let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the process runs");
        tasks.filter_map(|task| of_thread(task.ok()?)).sum()
    };
    measured.iter().map(|(node, _)| of_process(node.pid())).collect()
}
