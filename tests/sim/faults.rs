//! The faults there are, and how often each has fired: counted where it takes effect, not where it is planned.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// One kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Fault {
    /// A request that left later reached the same node earlier.
    Reordered,
    /// A request took seconds.
    Delayed,
    /// A request reached its node twice.
    Duplicated,
    /// A request was lost on its way.
    RequestLost,
    /// A request was served and its answer lost.
    AnswerLost,
    /// A message of a topic was lost on its way to one of those it was given to.
    GossipLost,
    /// No fault: a message of a topic arrived.
    Gossiped,
    /// A request met a partition.
    Partitioned,
    /// A request, or its answer, met a wire that works the other way.
    OneWay,
    /// A node stopped at a moment of its own.
    Crashed,
    /// A node stopped before a commit that it was about to make.
    CrashedBeforeCommit,
    /// A node stopped before a write to a file, most of them in the middle of a commit.
    CrashedWriting,
    /// A node stopped with everything written, and nothing of it synced.
    CrashedSyncing,
    /// A node stopped after a commit and before it told anyone.
    CrashedAfterCommit,
    /// A node started again over what its disk held.
    Restarted,
    /// A node's clock went forward by hours.
    ClockForward,
    /// A node's clock went back by hours.
    ClockBack,
    /// A commit took long.
    SlowDisk,
    /// A write met a disk without room.
    FullDisk,
    /// A stopped node lost its power too, and with it what was not synced.
    PowerLost,
    /// Some of what was not synced came through such a loss, and some did not.
    TornWrite,
    /// A read failed.
    ReadError,
    /// A write failed.
    WriteError,
    /// A sync failed, and what it was to make last may be gone after a loss of power.
    SyncError,
}

impl Fault {
    /// All of them: every set of runs must see each.
    pub(crate) const ALL: [Self; 24] = [
        Self::Reordered,
        Self::Delayed,
        Self::Duplicated,
        Self::RequestLost,
        Self::AnswerLost,
        Self::GossipLost,
        Self::Gossiped,
        Self::Partitioned,
        Self::OneWay,
        Self::Crashed,
        Self::CrashedBeforeCommit,
        Self::CrashedWriting,
        Self::CrashedSyncing,
        Self::CrashedAfterCommit,
        Self::Restarted,
        Self::ClockForward,
        Self::ClockBack,
        Self::SlowDisk,
        Self::FullDisk,
        Self::PowerLost,
        Self::TornWrite,
        Self::ReadError,
        Self::WriteError,
        Self::SyncError,
    ];
}

/// How often each fault fired. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Faults(Arc<Mutex<BTreeMap<Fault, u64>>>);

impl Faults {
    /// Counts one.
    pub(crate) fn count(&self, fault: Fault) {
        *self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(fault)
            .or_default() += 1;
    }

    /// The counts so far.
    pub(crate) fn counts(&self) -> BTreeMap<Fault, u64> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
