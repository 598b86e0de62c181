//! Runs many seeds, each in a process of its own and one for each processor at a time, and adds up what they say. It
//! simulates nothing itself.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::{Command as Process, ExitCode},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use tracing_subscriber::EnvFilter;

use crate::{
    faults::Fault,
    power,
    run::run,
    variant::Variant,
    workload::acts,
    world::{Plan, folder_in_memory},
};

/// What the suite of `make test` runs.
const SEEDS: u64 = 200;
const NODES: usize = 10;
/// So many of them are run again, and must do the same again.
const REPLAYS: u64 = 20;
/// Seeds in which nothing arrives over topics.
const GOSSIPLESS_SEEDS: u64 = 5;
/// Seeds that look for what was broken on purpose; each of them must find it.
const BROKEN_SEEDS: u64 = 3;
const BROKEN_NODES: usize = 5;

/// Real time that one seed may take: many times what any does, so that one that hangs is named, and the others go on.
const LIMIT: Duration = Duration::from_secs(600);
/// Lines shown of what a failing seed says.
const SHOWN_LINES: usize = 12;

/// What is asked for.
pub(crate) enum Command {
    /// One run in this process, which may take so long.
    One(Plan, Duration),
    /// Many runs.
    Many {
        /// The first seed.
        first: u64,
        /// How many.
        seeds: u64,
        /// What they share.
        nodes: usize,
        /// What is different about them.
        variant: Variant,
        /// How long each may take.
        limit: Duration,
    },
    /// What one store keeps, in this process.
    Power,
    /// The suite.
    Suite,
    /// Nothing: the arguments name other tests.
    Nothing,
}

impl Command {
    /// Reads the arguments. Those of libtest are taken for what cargo passes to every test.
    pub(crate) fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut named = BTreeMap::new();
        let mut one = None;
        let mut shown = false;
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            match argument.as_str() {
                "--seed" | "--seeds" | "--first" | "--nodes" | "--variant" | "--limit" | "--folder" => {
                    let value = rest.next().ok_or_else(|| format!("{argument} needs a value"))?;
                    named.insert(argument.trim_start_matches('-').to_owned(), value.clone());
                }
                "--trace" => shown = true,
                "--power" => return Ok(Self::Power),
                "--list" => return Ok(Self::Nothing),
                flag if flag.starts_with('-') => {}
                filter => one = Some(filter),
            }
        }
        let number = |name: &str, default: u64| match named.get(name) {
            Some(value) => value.parse().map_err(|_| format!("--{name} is a number, not {value}")),
            None => Ok(default),
        };
        let nodes = usize::try_from(number("nodes", NODES as u64)?).unwrap_or(NODES);
        let variant = named
            .get("variant")
            .map_or(Ok(Variant::Ordinary), |name| name.parse())?;
        let limit = Duration::from_secs(number("limit", LIMIT.as_secs())?);
        if named.contains_key("seed") {
            let plan = Plan {
                seed: number("seed", 0)?,
                nodes,
                variant,
                shown,
                folder: named.get("folder").map(PathBuf::from),
            };
            return Ok(Self::One(plan, limit));
        }
        if !named.is_empty() {
            return Ok(Self::Many {
                first: number("first", 1)?,
                seeds: number("seeds", SEEDS)?,
                nodes,
                variant,
                limit,
            });
        }
        Ok(match one {
            Some(filter) if !"simulation".contains(filter) => Self::Nothing,
            _ => Self::Suite,
        })
    }

    /// Does it.
    pub(crate) fn run(self) -> ExitCode {
        match self {
            Self::One(plan, limit) => run_one(&plan, limit),
            Self::Many {
                first,
                seeds,
                nodes,
                variant,
                limit,
            } => succeed(many(first, seeds, nodes, variant, limit).report(first, seeds)),
            Self::Power => {
                let problems = power::run();
                problems.iter().for_each(|problem| println!("{problem}"));
                succeed(problems.is_empty())
            }
            Self::Suite => succeed(suite()),
            Self::Nothing => ExitCode::SUCCESS,
        }
    }
}

fn succeed(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Ends this process when the time is up: a seed that hangs must not keep the others waiting.
fn end_after(limit: Duration) {
    thread::spawn(move || {
        thread::sleep(limit);
        eprintln!("no end after {} s", limit.as_secs());
        std::process::exit(1);
    });
}

fn run_one(plan: &Plan, limit: Duration) -> ExitCode {
    end_after(limit);
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("off"));
    // Fails only where there is a subscriber already.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .try_init();
    let outcome = run(plan);
    for finding in &outcome.findings {
        eprintln!("{finding}");
    }
    println!("{}", outcome.line());
    succeed(outcome.findings.is_empty())
}

/// What many runs came to.
#[derive(Default)]
struct Sum {
    failed: Vec<(u64, String)>,
    traces: BTreeMap<u64, String>,
    counts: BTreeMap<String, u64>,
    replay: String,
    /// How long all of it took.
    minutes: f64,
}

/// Runs seeds, each in a process of its own.
fn many(first: u64, seeds: u64, nodes: usize, variant: Variant, limit: Duration) -> Sum {
    let started = Instant::now();
    let sum = Mutex::new(Sum::default());
    let next = AtomicU64::new(first);
    let program = std::env::current_exe().expect("the path of this program");
    let arguments = |seed: u64, folder: &Path| {
        let named = [
            ("--seed", seed.to_string()),
            ("--nodes", nodes.to_string()),
            ("--variant", variant.to_string()),
            ("--limit", limit.as_secs().to_string()),
            ("--folder", folder.display().to_string()),
        ];
        named.map(|(name, value)| [name.to_owned(), value]).concat()
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::SeqCst);
                    if seed >= first + seeds {
                        return;
                    }
                    // Whatever becomes of the process, its folder goes.
                    let folder = folder_in_memory();
                    let output = Process::new(&program)
                        .args(arguments(seed, folder.path()))
                        .output()
                        .expect("a process");
                    let line = String::from_utf8_lossy(&output.stdout).into_owned();
                    let errors = String::from_utf8_lossy(&output.stderr).into_owned();
                    let mut sum = sum.lock().unwrap_or_else(PoisonError::into_inner);
                    sum.add(seed, output.status.success(), &line, errors);
                }
            });
        }
    });
    let mut sum = sum.into_inner().unwrap_or_else(PoisonError::into_inner);
    sum.replay = format!("make sim SEED=SEED NODES={nodes} VARIANT={variant}");
    sum.minutes = started.elapsed().as_secs_f64() / 60.0;
    sum
}

impl Sum {
    fn add(&mut self, seed: u64, good: bool, line: &str, errors: String) {
        for field in line.split_whitespace() {
            match field.split_once('=') {
                Some(("trace", trace)) => {
                    self.traces.insert(seed, trace.to_owned());
                }
                Some((name, count)) => *self.counts.entry(name.to_owned()).or_default() += count.parse().unwrap_or(0),
                None => {}
            }
        }
        if !good {
            self.failed.push((seed, errors));
        }
    }

    /// Says what came out; whether every seed did well and every fault fired.
    fn report(&self, first: u64, seeds: u64) -> bool {
        println!("{seeds} seeds from {first}: {:?}", self.counts);
        // Each run is an hour, and the time in which its world heals beside.
        #[allow(clippy::cast_precision_loss)] // A count of seeds.
        let rate = seeds as f64 / self.minutes;
        println!("{rate:.1} virtual hours a minute");
        let faults = Fault::ALL.iter().map(|fault| format!("{fault:?}"));
        let wanted = faults.chain(acts().map(|act| format!("split-{act}")));
        let idle: Vec<String> = wanted
            .filter(|what| self.counts.get(what).is_none_or(|count| *count == 0))
            .collect();
        if !idle.is_empty() {
            println!("never happened: {}", idle.join(", "));
        }
        for (seed, errors) in &self.failed {
            for line in errors.lines().take(SHOWN_LINES) {
                println!("    {line}");
            }
            println!(
                "seed {seed} fails; again with: {}",
                self.replay.replace("SEED=SEED", &format!("SEED={seed}"))
            );
        }
        self.failed.is_empty() && idle.is_empty()
    }
}

fn suite() -> bool {
    let started = Instant::now();
    let sum = many(1, SEEDS, NODES, Variant::Ordinary, LIMIT);
    let mut good = sum.report(1, SEEDS);
    let again = many(1, REPLAYS, NODES, Variant::Ordinary, LIMIT);
    good &= again.traces.len() as u64 == REPLAYS;
    for (seed, trace) in &again.traces {
        if sum.traces.get(seed) != Some(trace) {
            println!("seed {seed} does not do the same twice");
            good = false;
        }
    }
    // What topics lose, members find out.
    good &= many(1, GOSSIPLESS_SEEDS, NODES, Variant::NoGossip, LIMIT)
        .failed
        .is_empty();
    for variant in Variant::BROKEN {
        let sum = many(1, BROKEN_SEEDS, BROKEN_NODES, variant, LIMIT);
        println!("{variant}: {} of {BROKEN_SEEDS} seeds find it", sum.failed.len());
        good &= sum.failed.len() as u64 == BROKEN_SEEDS;
    }
    let program = std::env::current_exe().expect("the path of this program");
    good &= Process::new(program)
        .arg("--power")
        .status()
        .is_ok_and(|status| status.success());
    // One that does not end in time fails, by its number.
    let hanging = many(1, 1, NODES, Variant::Ordinary, Duration::ZERO);
    good &= hanging.failed.iter().map(|(seed, _)| *seed).eq([1]);
    println!("{} s", started.elapsed().as_secs());
    good
}
