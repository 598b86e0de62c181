//! Where time, randomness and computing power come from. Services take them from here, so that a simulation can supply
//! its own.

use std::{
    fmt,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rand::{CryptoRng, RngCore};
use ruma::MilliSecondsSinceUnixEpoch;
use tokio::task::JoinHandle;

/// Wall-clock time. Waiting is tokio's business, which a simulation pauses.
pub trait Clock: Send + Sync + 'static {
    /// Milliseconds since the Unix epoch.
    fn now(&self) -> MilliSecondsSinceUnixEpoch;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> MilliSecondsSinceUnixEpoch {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let millis = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        MilliSecondsSinceUnixEpoch(ruma::UInt::new_saturating(millis))
    }
}

/// A source of secure random bytes.
pub trait Entropy: Send + Sync + 'static {
    /// Fills `bytes`.
    fn fill(&self, bytes: &mut [u8]);
}

/// The operating system's random numbers.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        rand::rngs::OsRng.fill_bytes(bytes);
    }
}

/// Where computing runs that takes more than a moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Computing {
    /// On tokio's threads for blocking work.
    #[default]
    Threads,
    /// In tasks of the runtime itself, one after another, so that the same input gives the same order.
    InPlace,
}

/// Clock, randomness and computing power together, as services hold them.
#[derive(Clone)]
pub struct World {
    clock: Arc<dyn Clock>,
    entropy: Arc<dyn Entropy>,
    computing: Computing,
}

impl World {
    /// Joins a clock and a source of randomness.
    pub fn new(clock: impl Clock, entropy: impl Entropy) -> Self {
        Self {
            clock: Arc::new(clock),
            entropy: Arc::new(entropy),
            computing: Computing::Threads,
        }
    }

    /// The same world, computing elsewhere.
    pub fn computing(self, computing: Computing) -> Self {
        Self { computing, ..self }
    }

    /// The machine's own.
    pub fn system() -> Self {
        Self::new(SystemClock, SystemEntropy)
    }

    /// Milliseconds since the Unix epoch.
    pub fn now(&self) -> MilliSecondsSinceUnixEpoch {
        self.clock.now()
    }

    /// Does work that takes the processor, or blocks, for more than a moment. It is done although the handle is dropped.
    pub fn compute<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
        match self.computing {
            Computing::Threads => tokio::task::spawn_blocking(work),
            Computing::InPlace => tokio::spawn(async move { work() }),
        }
    }

    /// Into how many parts such work is worth dividing.
    pub fn processors(&self) -> usize {
        match self.computing {
            Computing::Threads => std::thread::available_parallelism().map_or(1, usize::from),
            Computing::InPlace => 1,
        }
    }

    /// `N` random bytes.
    pub fn random_bytes<const N: usize>(&self) -> [u8; N] {
        let mut bytes = [0; N];
        self.entropy.fill(&mut bytes);
        bytes
    }

    /// A random generator for libraries that take one.
    pub fn rng(&self) -> impl RngCore + CryptoRng + use<> {
        EntropyRng(Arc::clone(&self.entropy))
    }

    /// An unguessable opaque name of 32 lower-case letters and digits (160 bits): tokens, device and media ids.
    pub fn random_token(&self) -> String {
        data_encoding::BASE32_NOPAD
            .encode(&self.random_bytes::<20>())
            .to_ascii_lowercase()
    }
}

impl fmt::Debug for World {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("World")
    }
}

struct EntropyRng(Arc<dyn Entropy>);

impl RngCore for EntropyRng {
    fn next_u32(&mut self) -> u32 {
        rand_core_next(self)
    }

    fn next_u64(&mut self) -> u64 {
        let mut bytes = [0; 8];
        self.0.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        self.0.fill(bytes);
    }

    fn try_fill_bytes(&mut self, bytes: &mut [u8]) -> Result<(), rand::Error> {
        self.0.fill(bytes);
        Ok(())
    }
}

impl CryptoRng for EntropyRng {}

fn rand_core_next(rng: &mut EntropyRng) -> u32 {
    let mut bytes = [0; 4];
    rng.0.fill(&mut bytes);
    u32::from_le_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use std::{sync::Mutex, thread};

    use super::*;

    fn world(computing: Computing) -> World {
        World::system().computing(computing)
    }

    #[tokio::test]
    async fn computing_in_place_stays_on_the_runtimes_thread_and_is_not_divided() {
        let here = thread::current().id();
        let place = |world: World| async move { world.compute(|| thread::current().id()).await.unwrap() };
        assert_eq!(place(world(Computing::InPlace)).await, here);
        assert_ne!(place(world(Computing::Threads)).await, here);
        assert_eq!(world(Computing::InPlace).processors(), 1);
    }

    #[tokio::test]
    async fn computing_in_place_keeps_its_order_and_ends_without_its_caller() {
        let world = world(Computing::InPlace);
        let order = Arc::new(Mutex::new(Vec::new()));
        let start = |number: u64| {
            let order = Arc::clone(&order);
            world.compute(move || order.lock().unwrap().push(number))
        };
        drop(start(0));
        drop(start(1));
        start(2).await.unwrap();
        assert_eq!(*order.lock().unwrap(), [0, 1, 2]);
    }
}
