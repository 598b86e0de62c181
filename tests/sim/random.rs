//! All randomness of a run, from its seed: the simulation's own dice, the nodes' entropy, and what libraries ask of the
//! operating system. Nothing here is fit for keys outside a simulation.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

use kith_node::clock::Entropy;
use rand::{Rng, RngCore, SeedableRng, rngs::StdRng, seq::SliceRandom};

/// A generator that many parts of a run share. Clones draw from the same one.
#[derive(Clone)]
pub(crate) struct Dice(Arc<Mutex<StdRng>>);

impl Dice {
    /// The generator of one part of a run: draws of one part leave the others' alone.
    pub(crate) fn new(seed: u64, part: &str) -> Self {
        let mut hash = blake3::Hasher::new();
        hash.update(&seed.to_le_bytes()).update(part.as_bytes());
        Self(Arc::new(Mutex::new(StdRng::from_seed(hash.finalize().into()))))
    }

    fn draw<T>(&self, draw: impl FnOnce(&mut StdRng) -> T) -> T {
        draw(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// True so many times in a hundred.
    pub(crate) fn percent(&self, chance: u32) -> bool {
        self.draw(|rng| rng.gen_range(0..100) < chance)
    }

    /// A number from `least` to `most`.
    pub(crate) fn between(&self, least: u64, most: u64) -> u64 {
        self.draw(|rng| rng.gen_range(least..=most))
    }

    /// One of some things.
    pub(crate) fn choose<'a, T>(&self, from: &'a [T]) -> Option<&'a T> {
        self.draw(|rng| from.choose(rng))
    }

    /// The things in any order.
    pub(crate) fn shuffle<T>(&self, things: &mut [T]) {
        self.draw(|rng| things.shuffle(rng));
    }
}

impl Entropy for Dice {
    fn fill(&self, bytes: &mut [u8]) {
        self.draw(|rng| rng.fill_bytes(bytes));
    }
}

static SYSTEM: AtomicU64 = AtomicU64::new(0);

/// Sets what the operating system's random numbers are from now on. One process runs one seed, so that whatever it
/// keeps in statics starts anew with each.
pub(crate) fn seed_system(seed: u64) {
    SYSTEM.store(seed, Ordering::SeqCst);
}

/// Stands in for the C library's function, which the standard library seeds its hash maps with, and tokio its choice
/// among branches that are ready: with it, both are the same in every run of a seed.
///
/// # Safety
///
/// As for getrandom(2): `buffer` points to `length` bytes that may be written.
#[unsafe(no_mangle)]
#[allow(unsafe_code)] // The symbol must be the C library's own, and its caller passes a pointer.
unsafe extern "C" fn getrandom(buffer: *mut libc::c_void, length: usize, _flags: libc::c_uint) -> isize {
    // SAFETY: the caller owns these bytes, as the contract of getrandom(2) says.
    let bytes = unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) };
    split_mix(&SYSTEM, bytes);
    isize::try_from(length).unwrap_or(isize::MAX)
}

/// Fills bytes from a state that moves on. SplitMix64 (Steele, Lea, Flood 2014).
pub(crate) fn split_mix(state: &AtomicU64, bytes: &mut [u8]) {
    for chunk in bytes.chunks_mut(8) {
        let mut number = state.fetch_add(0x9E37_79B9_7F4A_7C15, Ordering::SeqCst);
        number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        number ^= number >> 31;
        chunk.copy_from_slice(&number.to_le_bytes()[..chunk.len()]);
    }
}
