//! One run: a world is made, lived in and troubled for an hour, healed, and checked.

use std::{
    collections::BTreeMap,
    fmt::Write,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::watch,
    time::{Instant, sleep, sleep_until},
};

use crate::{
    bounds,
    checker::{self, Finding},
    faults::Fault,
    observer::Observer,
    random::{Dice, seed_system},
    trouble,
    workload::{self, Person},
    world::{Client, Plan, World},
};

/// How long people live and trouble lasts.
const HOUR: Duration = Duration::from_secs(3_600);
/// How long a healed world may take to become quiet.
const HEALING: Duration = Duration::from_secs(2 * 3_600);
/// How often it is looked whether it is.
const LOOK: Duration = Duration::from_secs(60);

/// What a run came to.
pub(crate) struct Outcome {
    /// What was found wrong.
    pub(crate) findings: Vec<Finding>,
    /// How often each fault fired.
    pub(crate) faults: BTreeMap<Fault, u64>,
    /// The hash of the trace.
    pub(crate) trace: String,
    /// How many lines the trace has.
    pub(crate) lines: u64,
    /// Client requests that were answered with 200.
    pub(crate) done: u64,
    /// Messages that were acknowledged.
    pub(crate) sent: usize,
    /// What people did while the world was split.
    pub(crate) split: BTreeMap<&'static str, u64>,
}

static PANICS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Runs a plan in this process, which must run no other: what lies in statics is part of the run.
pub(crate) fn run(plan: &Plan) -> Outcome {
    let plan = plan.clone();
    seed_system(plan.seed);
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let mut panics = PANICS.lock().unwrap_or_else(PoisonError::into_inner);
        panics.push(panic.to_string());
        print(panic);
    }));
    // A thread of its own, whose hash maps take their keys from the seed.
    let running = std::thread::Builder::new()
        .name("simulation".to_owned())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build();
            runtime.expect("a runtime").block_on(simulate(plan))
        });
    let mut outcome = running.expect("a thread").join().unwrap_or_else(|_| Outcome {
        findings: Vec::new(),
        faults: BTreeMap::new(),
        trace: String::new(),
        lines: 0,
        done: 0,
        sent: 0,
        split: BTreeMap::new(),
    });
    let panics = PANICS.lock().unwrap_or_else(PoisonError::into_inner);
    outcome
        .findings
        .extend(panics.iter().map(|panic| Finding(format!("a panic: {panic}"))));
    outcome
}

async fn simulate(plan: Plan) -> Outcome {
    let (world, stopped) = World::new(&plan);
    let dice = |part: &str| Dice::new(plan.seed, part);
    tokio::spawn(trouble::supervise(Arc::clone(&world), dice("supervisor"), stopped));
    for number in 0..world.nodes.len() {
        world.boot(number).await;
    }
    let people = workload::settle(&world, plan.seed).await;
    let clients: Vec<_> = people.iter().map(Person::client).collect();
    let (end, ends) = watch::channel(false);
    let follow = |client: &Client| {
        let dice = dice(&format!("observer {}", client.node));
        Observer::new(client.clone(), dice).follow(ends.clone())
    };
    let following: Vec<_> = clients.iter().map(|client| tokio::spawn(follow(client))).collect();
    let until = Instant::now() + HOUR;
    let living: Vec<_> = people
        .into_iter()
        .map(|person| tokio::spawn(person.live(until)))
        .collect();
    trouble::trouble(Arc::clone(&world), dice("trouble"), until).await;
    // Repetitions and answers that are still under way, and restarts.
    sleep_until(until + Duration::from_secs(900)).await;
    trouble::heal(&world).await;
    let mut people = Vec::new();
    for person in living {
        // One that panicked is reported with the other panics.
        people.extend(person.await);
    }
    quiet(&world).await;
    workload::dispute(&world, &people).await;
    quiet(&world).await;
    end.send_replace(true);
    let mut observers = Vec::new();
    for observer in following {
        observers.extend(observer.await);
    }
    let mut findings = world.findings();
    findings.extend(checker::check(&world, &clients, &observers).await);
    findings.extend(bounds::check(&world).await);
    if findings.is_empty() {
        findings.extend(rest(&world).await);
    }
    let society = &world.society;
    Outcome {
        findings,
        faults: world.faults.counts(),
        trace: world.trace.hash(),
        lines: world.trace.lines(),
        done: society.done(),
        sent: society.sent().len(),
        split: society.split(),
    }
}

/// Waits until nothing waits to be sent any more, and nothing has been sent for a while.
async fn quiet(world: &World) {
    let started = Instant::now();
    let mut stirs = 0;
    while started.elapsed() < HEALING {
        sleep(LOOK).await;
        let waiting = (0..world.nodes.len())
            .filter_map(|number| world.homeserver(number))
            .any(|hs| *hs.outbox.waiting().borrow() > 0);
        let now = world.trace.stirs();
        if !waiting && now == stirs {
            return;
        }
        stirs = now;
    }
}

/// A converged world in which nobody does anything says nothing: not a single request in an hour. Whoever is taken for
/// present, by what was last heard, has the hour before that to be taken for gone.
async fn rest(world: &World) -> Option<Finding> {
    sleep(HOUR).await;
    let before = world.trace.lines();
    sleep(HOUR).await;
    let said = world.trace.lines() - before;
    (said > 0).then(|| Finding(format!("an hour at rest cost {said} requests")))
}

impl Outcome {
    /// One line for whoever gathers the outcomes of many runs: fields of `name=value`.
    pub(crate) fn line(&self) -> String {
        let mut line = format!(
            "trace={} lines={} done={} sent={}",
            self.trace, self.lines, self.done, self.sent
        );
        for (fault, count) in &self.faults {
            let _ = write!(line, " {fault:?}={count}");
        }
        for (act, count) in &self.split {
            let _ = write!(line, " split-{act}={count}");
        }
        line
    }
}
