//! Runs many seeds, each in a process of its own and one for each processor at a time, and adds up what they say. It
//! simulates nothing itself.

use std::{
    collections::BTreeMap,
    process::{Command as Process, ExitCode},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Instant,
};

use tracing_subscriber::EnvFilter;

use crate::{faults::Fault, run::run, variant::Variant, world::Plan};

/// What the suite of `make test` runs.
const SEEDS: u64 = 20;
const NODES: usize = 5;
/// So many of them are run again, and must do the same again.
const REPLAYS: u64 = 4;
/// Seeds that look for what was broken on purpose; one of them must find it.
const BROKEN_SEEDS: u64 = 3;
const BROKEN_NODES: usize = 5;

/// What is asked for.
pub(crate) enum Command {
    /// One run in this process.
    One(Plan),
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
    },
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
                "--seed" | "--seeds" | "--first" | "--nodes" | "--variant" => {
                    let value = rest.next().ok_or_else(|| format!("{argument} needs a value"))?;
                    named.insert(argument.trim_start_matches('-').to_owned(), value.clone());
                }
                "--trace" => shown = true,
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
        if named.contains_key("seed") {
            return Ok(Self::One(Plan {
                seed: number("seed", 0)?,
                nodes,
                variant,
                shown,
            }));
        }
        if !named.is_empty() {
            return Ok(Self::Many {
                first: number("first", 1)?,
                seeds: number("seeds", SEEDS)?,
                nodes,
                variant,
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
            Self::One(plan) => run_one(plan),
            Self::Many {
                first,
                seeds,
                nodes,
                variant,
            } => succeed(many(first, seeds, nodes, variant).report(first, seeds)),
            Self::Suite => succeed(suite()),
            Self::Nothing => ExitCode::SUCCESS,
        }
    }
}

fn succeed(good: bool) -> ExitCode {
    if good { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn run_one(plan: Plan) -> ExitCode {
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
}

/// Runs seeds, each in a process of its own.
fn many(first: u64, seeds: u64, nodes: usize, variant: Variant) -> Sum {
    let sum = Mutex::new(Sum::default());
    let next = AtomicU64::new(first);
    let program = std::env::current_exe().expect("the path of this program");
    let arguments = |seed: u64| {
        let named = [
            ("--seed", seed.to_string()),
            ("--nodes", nodes.to_string()),
            ("--variant", variant.to_string()),
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
                    let output = Process::new(&program)
                        .args(arguments(seed))
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
        let idle: Vec<String> = Fault::ALL
            .iter()
            .map(|fault| format!("{fault:?}"))
            .filter(|fault| self.counts.get(fault).is_none_or(|count| *count == 0))
            .collect();
        if !idle.is_empty() {
            println!("never happened: {}", idle.join(", "));
        }
        for (seed, _) in &self.failed {
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
    let sum = many(1, SEEDS, NODES, Variant::Ordinary);
    let mut good = sum.report(1, SEEDS);
    let again = many(1, REPLAYS, NODES, Variant::Ordinary);
    good &= again.traces.len() as u64 == REPLAYS;
    for (seed, trace) in &again.traces {
        if sum.traces.get(seed) != Some(trace) {
            println!("seed {seed} does not do the same twice");
            good = false;
        }
    }
    for variant in Variant::BROKEN {
        let sum = many(1, BROKEN_SEEDS, BROKEN_NODES, variant);
        println!("{variant}: {} of {BROKEN_SEEDS} seeds find it", sum.failed.len());
        good &= !sum.failed.is_empty();
    }
    println!("{} s", started.elapsed().as_secs());
    good
}
