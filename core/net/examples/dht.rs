//! Measures the DHT over real QUIC on loopback: how long it takes to publish a node's two records, and to reach a node of which
//! nothing is known but its name; and what a publication costs on the wire, if nothing else uses the loopback interface. Prints
//! rows of a table. Servers and nodes are in one process, which shares out the processor among all of them: times are what one
//! errand takes while nothing else happens, without any distance.
//!
//! `unshare -rn sh -c 'ip link set lo up; exec "$0" "$@"' target/release/examples/dht [SERVERS] [NODES] [phone|desktop]`

use std::{
    collections::HashMap,
    error::Error,
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::FutureExt;
use http_body_util::{BodyExt, Empty};
use kith_identity::{
    AddressRecord, Certificate, Day, IdentityKey, KeyDocument, NodeKey, Record, RecordKey, RecordKind, RecordSigner,
    RecordSlot, SealedRecord, TransportKey, Whereabouts,
};
use kith_net::{
    ConnectionLimits, DhtConfig, DhtServerConfig, Multiaddr, Net, NetConfig, ShelfLimits, Timing,
    relay::{Relay, RelayConfig, RelayLimits},
    testing::MemoryDirectory,
};
use rand::rngs::OsRng;
use ruma::{MilliSecondsSinceUnixEpoch, OwnedServerName, UInt};
use tokio::time::sleep;

const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

/// What a measurement ends with.
type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Until connections that nobody uses are gone, and the wire is silent.
const SILENCE: Duration = Duration::from_secs(30);

/// Times that each record is published again.
const RENEWALS: usize = 3;

async fn server(others: Vec<Multiaddr>) -> Outcome<Relay> {
    let relay = Relay::start(RelayConfig {
        transport_key: TransportKey::generate(&mut OsRng),
        listen: vec![QUIC.parse()?],
        external: Vec::new(),
        limits: RelayLimits {
            memory: usize::MAX,
            ..RelayLimits::default()
        },
        dht: DhtServerConfig {
            clock: Arc::new(MilliSecondsSinceUnixEpoch::now),
            limits: ShelfLimits::default(),
            servers: others,
        },
        timing: Timing::default(),
    });
    Ok(relay.await?)
}

struct Node {
    net: Net,
    identity: IdentityKey,
    key: Arc<NodeKey>,
    document: KeyDocument,
    /// Those of records, which a node keeps for the day.
    keys: HashMap<RecordKind, RecordKey>,
}

impl Node {
    async fn start(dht: DhtConfig) -> Outcome<Self> {
        let now = MilliSecondsSinceUnixEpoch::now();
        let until = MilliSecondsSinceUnixEpoch(now.0 + UInt::from(1_000_000_000_u32));
        let (identity, key) = (
            IdentityKey::generate(&mut OsRng),
            Arc::new(NodeKey::generate(&mut OsRng)),
        );
        let document = KeyDocument::new(&identity, &key.public(), now, until)?;
        let net = Net::start(NetConfig {
            server_name: document.server_name(),
            transport_key: TransportKey::generate(&mut OsRng),
            node_key: key.clone(),
            directory: MemoryDirectory::new(Some(document.clone()), Arc::new(MilliSecondsSinceUnixEpoch::now)),
            service: Arc::new(|_, _| {
                let empty = Empty::new().map_err(|never| match never {}).boxed_unsync();
                std::future::ready(http::Response::new(empty)).boxed()
            }),
            listen: vec![QUIC.parse()?],
            relays: Vec::new(),
            external: Vec::new(),
            mdns: false,
            dht,
            upnp: false,
            limits: ConnectionLimits {
                memory: usize::MAX,
                ..ConnectionLimits::default()
            },
            timing: Timing::default(),
        });
        Ok(Self {
            net: net.await?,
            identity,
            key,
            document,
            keys: HashMap::new(),
        })
    }

    fn name(&self) -> OwnedServerName {
        self.document.server_name()
    }

    /// Both records, of now.
    fn records(&mut self) -> Outcome<[SealedRecord; 2]> {
        let now = MilliSecondsSinceUnixEpoch::now();
        let whereabouts = Whereabouts {
            peer_id: self.net.local_peer_id().to_bytes(),
            addrs: self.net.listen_addrs().iter().map(Multiaddr::to_vec).collect(),
            ..Whereabouts::default()
        };
        let address = AddressRecord::sign(whereabouts, &self.document, &self.key, now)?;
        Ok([
            self.seal(&Record::Address(address), Day::of(now))?,
            self.seal(&Record::keys(self.document.clone(), now), Day::of(now))?,
        ])
    }

    fn seal(&mut self, record: &Record, day: Day) -> Outcome<SealedRecord> {
        let kind = record.kind();
        let key = self.keys.entry(kind.clone());
        let key = key.or_insert_with(|| RecordKey::generate(&mut OsRng));
        let certificate = match &kind {
            RecordKind::Keys => Certificate::for_document(&self.identity, &self.document, day, &key.public())?,
            RecordKind::Address(id) => Certificate::for_node(&self.identity, id, day, &key.public())?,
        };
        let slot = RecordSlot::new(self.identity.public(), kind, day);
        let signer = RecordSigner::new(slot, certificate, RecordKey::from_bytes(&key.to_bytes()))?;
        Ok(SealedRecord::seal(record, &signer, &mut OsRng)?)
    }
}

/// Bytes that the loopback interface carried, and packets.
fn carried() -> Outcome<(u64, u64)> {
    let interfaces = fs::read_to_string("/proc/self/net/dev")?;
    let loopback = interfaces.lines().find_map(|line| line.trim().strip_prefix("lo:"));
    let mut counts = loopback.ok_or("no loopback interface")?.split_whitespace();
    let mut next = || -> Outcome<u64> { Ok(counts.next().ok_or("no count")?.parse()?) };
    Ok((next()?, next()?))
}

/// IP packets, that is; the interface counts what an Ethernet would add too.
const ETHERNET: u64 = 14;

/// What something put on the wire, until it is silent again: bytes with IP headers, and packets.
async fn cost(of: impl Future<Output = Outcome<()>>) -> Outcome<(u64, u64)> {
    let before = carried()?;
    of.await?;
    sleep(SILENCE).await;
    let after = carried()?;
    let packets = after.1 - before.1;
    Ok((after.0 - before.0 - ETHERNET * packets, packets))
}

/// What so many of a hundred do not exceed.
fn within(times: &mut [Duration], percent: usize) -> String {
    times.sort();
    let last = (times.len() * percent).div_ceil(100) - 1;
    format!("{:.1} ms", times[last].as_secs_f64() * 1000.0)
}

#[tokio::main]
async fn main() -> Outcome<()> {
    let mut arguments = std::env::args().skip(1);
    let servers: usize = arguments.next().as_deref().unwrap_or("24").parse()?;
    let nodes: usize = arguments.next().as_deref().unwrap_or("10").parse()?;
    let profile = arguments.next().unwrap_or_else(|| "phone".to_owned());
    let config = || match profile.as_str() {
        "phone" => Ok(DhtConfig::phone()),
        "desktop" => Ok(DhtConfig {
            serve: None,
            ..DhtConfig::desktop()
        }),
        other => Err(format!("{other} is neither phone nor desktop")),
    };
    let mut relays = vec![server(Vec::new()).await?];
    while relays.len() < servers {
        let first = relays[0].addrs();
        let joining = server(first).await?;
        joining.dht().wait_for(|status| status.servers == relays.len()).await?;
        relays.push(joining);
    }
    let mut people = Vec::new();
    for index in 0..nodes {
        let mut dht = config()?;
        // As people do, each knows two relays.
        for number in [index, index + 1] {
            dht.servers.extend(relays[number % servers].addrs());
        }
        people.push(Node::start(dht).await?);
    }
    // What relays say to one another has ended then, but for what keeps their connections open.
    sleep(SILENCE).await;
    let rest = cost(async { Ok(()) }).await?;
    let mut puts = Vec::new();
    let (mut first, mut again) = ((0, 0), (0, 0));
    for (index, person) in people.iter_mut().enumerate() {
        for round in 0..=RENEWALS {
            let records = person.records()?;
            let publication = async {
                let start = Instant::now();
                for record in &records {
                    person.net.publish(record).await?;
                }
                puts.push(start.elapsed());
                Ok(())
            };
            // What it costs is counted with one person only.
            match (index, round) {
                (0, 0) => first = cost(publication).await?,
                (0, 1) => again = cost(publication).await?,
                _ => publication.await?,
            }
        }
    }
    let mut gets = Vec::new();
    for (index, person) in people.iter().enumerate() {
        let sought = people[(index + 1) % people.len()].name();
        let start = Instant::now();
        person.net.connect(&sought).await?;
        gets.push(start.elapsed());
    }
    println!("| {servers} servers, {nodes} nodes with a {profile}'s settings | value |\n| --- | --- |");
    println!("| put of both records, p50 | {} |", within(&mut puts, 50));
    println!("| put of both records, p95 | {} |", within(&mut puts, 95));
    println!("| get by name alone, connected, p50 | {} |", within(&mut gets, 50));
    println!("| get by name alone, connected, p95 | {} |", within(&mut gets, 95));
    let rows = [
        ("both records", first),
        ("both records again", again),
        ("nothing for as long", rest),
    ];
    for (what, (bytes, packets)) in rows {
        println!(
            "| on the wire: {what} | {:.1} KB, {packets} packets |",
            bytes as f64 / 1000.0
        );
    }
    Ok(())
}
