//! `kith-wire HERE THERE SEED QUALITY`: makes two TAP devices of these names in the network namespace where it is started, and carries
//! each frame from either to the other: later, in order, and some of them never. A device may be moved to another namespace
//! meanwhile; it stays this program's. QUALITY is a `kith_tests::Quality` in JSON. For each line that it reads it prints what it has
//! carried so far (`kith_tests::Carried`), and it ends with its input. It changes no frame.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a wire that cannot be laid has no better answer than to say so"
)]

mod tap;

use std::{
    fs::File,
    io::{self, BufRead, Read, Write},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use kith_tests::{Carried, Quality};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::index};

/// Frames on their way in one direction; more are refused, as by a full queue of a router.
const QUEUE: usize = 4096;

/// The largest frame that a TAP device gives.
const LARGEST: usize = 65_536;

/// The type of a frame that carries IPv4.
const IPV4: [u8; 2] = [0x08, 0x00];

#[derive(Default)]
struct Counts {
    frames: AtomicU64,
    lost: AtomicU64,
    refused: AtomicU64,
}

impl Counts {
    fn carried(&self) -> Carried {
        Carried {
            frames: self.frames.load(Ordering::Relaxed),
            lost: self.lost.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }
}

/// Packets of which the wanted part is lost.
const HUNDRED: usize = 100;

/// Which packets are lost: of each hundred the wanted part, at places that the dice choose. So a line that carries little loses its
/// part as well.
struct Losses {
    of_each_hundred: usize,
    places: Vec<usize>,
    /// Packets so far, of this hundred.
    passed: usize,
}

impl Losses {
    fn new(part: f64) -> Self {
        Self {
            of_each_hundred: (part * HUNDRED as f64).round() as usize,
            places: Vec::new(),
            passed: 0,
        }
    }

    /// Whether the next packet is lost.
    fn next(&mut self, dice: &mut impl Rng) -> bool {
        if self.passed == 0 {
            self.places = index::sample(dice, HUNDRED, self.of_each_hundred).into_vec();
        }
        let lost = self.places.contains(&self.passed);
        self.passed = (self.passed + 1) % HUNDRED;
        lost
    }
}

/// A frame, and when it is to arrive.
struct Due {
    at: Instant,
    frame: Vec<u8>,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [here, there, seed, quality] = &arguments[..] else {
        panic!("kith-wire HERE THERE SEED QUALITY");
    };
    let quality: Quality = serde_json::from_str(quality).expect("a quality");
    let seed: u64 = seed.parse().expect("a number");
    let ends = [here, there].map(|name| tap::open(name).expect("a TAP device"));
    let counts = Arc::new(Counts::default());
    for (from, direction) in [(0, 0), (1, 1)] {
        let [from, to] = [from, 1 - from].map(|end: usize| ends[end].try_clone().expect("a file"));
        // Each direction throws its own dice, so that what one carries does not change what the other loses.
        let dice = StdRng::seed_from_u64(seed.wrapping_mul(2).wrapping_add(direction));
        let (queue, due) = sync_channel(QUEUE);
        let counts = Arc::clone(&counts);
        thread::spawn(move || take(from, &queue, &quality, dice, &counts));
        thread::spawn(move || give(to, &due));
    }
    say(&"ready");
    for line in io::stdin().lock().lines() {
        if line.is_err() {
            return;
        }
        say(&counts.carried());
    }
}

/// Takes frames in until the device is gone.
fn take(mut from: File, queue: &SyncSender<Due>, quality: &Quality, mut dice: StdRng, counts: &Counts) {
    let mut buffer = vec![0; LARGEST];
    let mut last = Instant::now();
    let mut losses = Losses::new(quality.loss);
    while let Ok(length) = from.read(&mut buffer) {
        let frame = &buffer[..length];
        // Only what travels far is lost: neighbours asking for each other's hardware address (ARP) do not.
        if frame.get(12..14) == Some(&IPV4[..]) && losses.next(&mut dice) {
            counts.lost.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        let jitter = quality.jitter.mul_f64(dice.r#gen());
        last = last.max(Instant::now() + quality.delay + jitter);
        let frame = frame.to_vec();
        match queue.try_send(Due { at: last, frame }) {
            Ok(()) => counts.frames.fetch_add(1, Ordering::Relaxed),
            Err(TrySendError::Full(_)) => counts.refused.fetch_add(1, Ordering::Relaxed),
            Err(TrySendError::Disconnected(_)) => return,
        };
    }
}

/// Gives each frame out when it is due.
fn give(mut to: File, due: &Receiver<Due>) {
    while let Ok(Due { at, frame }) = due.recv() {
        let left = at.saturating_duration_since(Instant::now());
        if left > Duration::ZERO {
            thread::sleep(left);
        }
        // A device that is down takes nothing, as an unplugged cable.
        let _ = to.write_all(&frame);
    }
}

fn say(what: &impl serde::Serialize) {
    let mut out = io::stdout().lock();
    let line = serde_json::to_string(what).expect("JSON");
    // Nobody listens any more: the input has ended, too.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_each_hundred_packets_the_wanted_part_is_lost() {
        for (part, lost) in [(0.0, 0), (0.01, 1), (0.02, 2), (0.5, 50), (1.0, 100)] {
            let mut dice = StdRng::seed_from_u64(1);
            let mut losses = Losses::new(part);
            for _ in 0..3 {
                let count = (0..HUNDRED).filter(|_| losses.next(&mut dice)).count();
                assert_eq!(count, lost, "{part}");
            }
        }
    }
}
