//! What happened in a run, as text for whoever looks into a failure and as a hash that two runs of one seed must share.
//! It decides nothing.

use std::{
    fmt::Write,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::time::Instant;

/// The record of one run. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Trace {
    inner: Arc<Mutex<Inner>>,
    start: Instant,
}

struct Inner {
    hash: blake3::Hasher,
    lines: u64,
    stirs: u64,
    /// Whether every line goes to standard error too.
    shown: bool,
}

impl Trace {
    /// A record that starts now.
    pub(crate) fn new(shown: bool) -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner {
                hash: blake3::Hasher::new(),
                lines: 0,
                stirs: 0,
                shown,
            })),
            start: Instant::now(),
        }
    }

    /// Notes that something happened now.
    pub(crate) fn note(&self, what: impl std::fmt::Display) {
        self.aside(what);
        self.lock().stirs += 1;
    }

    /// Notes something that happens in a quiet world too.
    pub(crate) fn aside(&self, what: impl std::fmt::Display) {
        let at = self.start.elapsed();
        let mut line = String::new();
        let _ = write!(line, "{:>5}.{:03} {what}", at.as_secs(), at.subsec_millis());
        let mut inner = self.lock();
        inner.lines += 1;
        inner.hash.update(line.as_bytes()).update(b"\n");
        if inner.shown {
            eprintln!("{line}");
        }
    }

    /// How many lines there are.
    pub(crate) fn lines(&self) -> u64 {
        self.lock().lines
    }

    /// How many of them say that the world is not quiet.
    pub(crate) fn stirs(&self) -> u64 {
        self.lock().stirs
    }

    /// The hash over everything noted so far.
    pub(crate) fn hash(&self) -> String {
        self.lock().hash.finalize().to_hex()[..16].to_owned()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A few letters that stand for a body in the trace.
pub(crate) fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex()[..8].to_owned()
}
