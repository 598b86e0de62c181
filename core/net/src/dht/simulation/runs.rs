//! Everybody publishes, the world changes, everybody moves and publishes again, and looks others up.

use futures::stream;
use kith_identity::SealedRecord;
use libp2p::kad::{KBucketKey, RecordKey};
use tokio::{runtime, sync::mpsc};
use tokio_util::sync::CancellationToken;

use super::{outcome::Outcome, *};
use crate::{dht::tests::Bob, internet::time_is_virtual};

/// People at the most.
const MAX_PEOPLE: usize = 100;

/// Lookups that each person makes.
const LOOKUPS: usize = 4;

/// Between the starts of two errands, so that they last while servers come and go.
const BETWEEN: Duration = Duration::from_millis(500);

/// Keys among which those who want to be near a record choose: many more than there are servers.
const GROUND_KEYS: usize = 20_000;

/// What the addresses of a person are before and after it moves.
const BEFORE: u16 = 1;
const AFTER: u16 = 2;

/// What is played.
struct Scenario {
    name: &'static str,
    /// The share of servers that is hostile.
    hostile: f64,
    config: DhtConfig,
}

struct Person {
    bob: Bob,
    client: Client,
}

/// How it went.
struct Report {
    puts: Outcome,
    moved: Outcome,
    gets: Outcome,
    /// Of those who suffer sybils.
    besieged: Option<Outcome>,
}

/// One world at a time: what waits on real time must not wait for another world.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Runs on a paused clock where libp2p goes by it, and otherwise in real time on two threads.
fn run(scenario: Scenario) -> Report {
    let mut builder = if time_is_virtual() {
        runtime::Builder::new_current_thread()
    } else {
        runtime::Builder::new_multi_thread()
    };
    if time_is_virtual() {
        builder.start_paused(true);
    } else {
        builder.worker_threads(2);
    }
    let runtime = builder.enable_all().build().unwrap();
    runtime.block_on(async {
        let _turn = TURN.lock().await;
        play(scenario).await
    })
}

/// Errands that start one after the other. Under virtual time their starts are apart.
#[expect(
    clippy::async_yields_async,
    reason = "several run side by side once they have started"
)]
async fn one_by_one<T>(errands: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let between = if time_is_virtual() { BETWEEN } else { Duration::ZERO };
    stream::iter(errands)
        .then(|errand| async move {
            sleep(between).await;
            errand
        })
        .buffered(AT_ONCE)
        .collect()
        .await
}

impl World {
    /// Everybody publishes both records, the addresses at a port. A publication has succeeded when as many took the
    /// record as are wanted, dead or hostile ones aside.
    async fn publish(&mut self, people: &mut [Person], port: u16) -> Outcome {
        let now = self.time.now();
        let clients = || people.iter().map(|person| &person.client);
        let before = self.carried(clients());
        let mut records = Vec::new();
        for person in people.iter_mut() {
            records.push((person.bob.where_at(now, port), person.client.dht.clone()));
            records.push((person.bob.document_at(now), person.client.dht.clone()));
        }
        let publications = records.into_iter().map(|(record, dht)| publish(record, dht));
        let times = self.meanwhile(one_by_one(publications)).await;
        let clients = people.iter().map(|person| &person.client);
        Outcome::new(&times, before, self.carried(clients))
    }

    /// People look up those that some of them are.
    async fn look_up(&mut self, people: &[Person], sought: &[&Person]) -> Outcome {
        let clients = || people.iter().map(|person| &person.client);
        let before = self.carried(clients());
        let lookups = (0..LOOKUPS).flat_map(|round| {
            sought.iter().enumerate().map(move |(index, sought)| {
                let seeker = &people[(index * 7 + round * 13 + 3) % people.len()];
                look_up(&seeker.client.dht, &sought.bob)
            })
        });
        let times = self.meanwhile(one_by_one(lookups)).await;
        Outcome::new(&times, before, self.carried(clients()))
    }

    /// Hostile servers with the PeerIds nearest to a record.
    fn besiege(&mut self, record: &SealedRecord, keys: &[Keypair], sybils: usize) {
        let record = KBucketKey::new(RecordKey::new(record.dht_key().as_bytes()));
        let mut keys: Vec<_> = keys.iter().collect();
        keys.sort_by_key(|key| KBucketKey::from(key.public().to_peer_id()).distance(&record));
        for key in &keys[..sybils] {
            let hostility = self.some_hostility();
            self.start_as(Some(hostility), key);
        }
    }
}

async fn publish(record: SealedRecord, dht: Dht) -> Option<Duration> {
    let start = Instant::now();
    let wanted = dht.0.config.replicas.get();
    let taken = dht.publish(&record).await;
    taken.is_ok_and(|taken| taken * 2 >= wanted).then(|| start.elapsed())
}

/// Looks somebody up until the address is there that is right, as a node does that reaches somebody at it.
async fn look_up(dht: &Dht, bob: &Bob) -> Option<Duration> {
    let start = Instant::now();
    let (tell, mut found) = mpsc::channel(64);
    let unwanted = CancellationToken::new();
    let name = bob.name();
    let search = async {
        dht.look_up(&name, &tell, &unwanted).await;
        drop(tell);
    };
    let right = async {
        while let Some((_, addresses)) = found.recv().await {
            if addresses.contains(&bob.address(AFTER)) {
                unwanted.cancel();
                return Some(start.elapsed());
            }
        }
        None
    };
    futures::join!(search, right).1
}

async fn play(scenario: Scenario) -> Report {
    let servers = *SERVERS;
    let mut world = World::new();
    let begun = Instant::now();
    let tell = |world: &World, what: &str| {
        let seconds = begun.elapsed().as_secs();
        println!(
            "  {seconds} s: {what}; {} connections so far",
            world.internet.connections()
        );
    };
    println!("{servers} servers, {}:", scenario.name);
    world.join(FIRST, 0).await;
    world
        .join(servers - FIRST, (servers as f64 * scenario.hostile) as usize)
        .await;
    tell(&world, "all have joined");
    let mut people: Vec<_> = (0..(servers / 4).min(MAX_PEOPLE))
        .map(|_| Person {
            bob: Bob::new(),
            client: world.client(scenario.config.clone()),
        })
        .collect();
    let besieged: Vec<_> = (0..people.len()).step_by(10).filter(|_| *SYBILS > 0).collect();
    if !besieged.is_empty() {
        let keys: Vec<_> = (0..GROUND_KEYS).map(|_| Keypair::generate_ed25519()).collect();
        for index in &besieged {
            let record = people[*index].bob.where_at(world.time.now(), BEFORE);
            world.besiege(&record, &keys, *SYBILS);
        }
    }
    let puts = world.publish(&mut people, BEFORE).await;
    tell(&world, "all have published");

    // A fifth of the honest servers is gone an hour later, the first ones among them; as many are new.
    let gone = world.die(0.2);
    world.time.pass(60 * 60 * 1000);
    world.join(gone, 0).await;
    tell(&world, "the first are dead, and others have joined");
    let moved = world.publish(&mut people, AFTER).await;
    tell(&world, "all have moved");
    let everybody: Vec<_> = people.iter().collect();
    let gets = world.look_up(&people, &everybody).await;
    let besieged: Vec<_> = besieged.iter().map(|index| &people[*index]).collect();
    let besieged = if besieged.is_empty() {
        None
    } else {
        Some(world.look_up(&people, &besieged).await)
    };
    let report = Report {
        puts,
        moved,
        gets,
        besieged,
    };
    tell(&world, "all were looked up");
    println!("  {} came and went meanwhile", world.exchanged);
    println!("  puts: {}", report.puts);
    println!("  puts after the first ones died: {}", report.moved);
    println!("  gets: {}", report.gets);
    if let Some(besieged) = &report.besieged {
        println!("  gets of those besieged by {} each: {besieged}", *SYBILS);
    }
    println!("  {} bytes carried in all", world.internet.bytes());
    report
}

/// What is asked of every world.
fn check(report: &Report) {
    assert!(report.puts.succeeded(99));
    assert!(report.moved.succeeded(99));
    assert!(report.gets.succeeded(99));
    // In real time a busy machine may take as long as it likes.
    if time_is_virtual() {
        assert!(report.gets.within(95) < Duration::from_secs(5));
    }
}

#[test]
fn names_are_found_while_servers_come_and_go_and_the_first_are_dead() {
    check(&run(Scenario {
        name: "all honest, desktops publish",
        hostile: 0.0,
        config: DhtConfig::desktop(),
    }));
}

/// Whether hostile servers can be played. In real time their silence and the business of the machine are not told apart.
fn hostile_worlds() -> bool {
    if !time_is_virtual() {
        println!("SKIPPED: hostile worlds of the DHT need virtual time, which `make sim-dht` gives them");
    }
    time_is_virtual()
}

#[test]
fn names_are_found_though_a_fifth_of_the_servers_is_hostile() {
    if !hostile_worlds() {
        return;
    }
    check(&run(Scenario {
        name: "a fifth hostile, desktops publish",
        hostile: 0.2,
        config: DhtConfig::desktop(),
    }));
}

#[test]
fn names_of_phones_are_found_too() {
    if !hostile_worlds() {
        return;
    }
    check(&run(Scenario {
        name: "a fifth hostile, phones publish",
        hostile: 0.2,
        config: DhtConfig::phone(),
    }));
}
