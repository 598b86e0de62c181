//! The disk of one node: it takes time, may be slow or full, and stops with its machine, before a commit or right after
//! one. What a commit has written stays, unless the run is one of broken nodes.

use std::{
    fs, io,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kith_engine::testing::flip_ties;
use kith_store::{Disk, DiskFuture, Room, StoreError};
use tokio::sync::mpsc;

use crate::{
    faults::{Fault, Faults},
    random::Dice,
};

/// A disk that forgets loses up to so many commits.
const FORGOTTEN: u64 = 25;

/// A machine that a node runs on, from a start to the next crash. What is left of its tasks after that reaches nothing.
#[derive(Debug)]
pub(crate) struct Machine {
    running: AtomicBool,
}

impl Machine {
    /// A machine that runs.
    pub(crate) fn start() -> Arc<Self> {
        Arc::new(Self {
            running: AtomicBool::new(true),
        })
    }

    /// Whether it still runs.
    pub(crate) fn runs(&self) -> bool {
        self.running.load(Ordering::SeqCst)
    }

    /// Stops it. Says whether it ran.
    pub(crate) fn stop(&self) -> bool {
        self.running.swap(false, Ordering::SeqCst)
    }
}

/// Where in a commit a machine stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// With jobs waiting, none of them done.
    BeforeCommit,
    /// With everything committed, and nobody told.
    AfterCommit,
}

/// How a disk does now.
#[derive(Debug, Clone, Copy)]
struct Condition {
    slow: bool,
    full: bool,
    /// Stop at this moment of the commit after so many others.
    stop: Option<(u64, Moment)>,
    /// Commits so far.
    commits: u64,
}

/// What is particular about a disk.
pub(crate) struct Settings {
    /// The database on it.
    pub(crate) file: PathBuf,
    /// Whether a crash takes it back to an earlier commit.
    pub(crate) forgets: bool,
    /// Whether the node that writes to it resolves states with the order of times turned round.
    pub(crate) flips: bool,
}

/// A node's disk; it outlives the machines.
pub(crate) struct DiskDrive {
    node: usize,
    file: PathBuf,
    forgets: bool,
    flips: bool,
    condition: Mutex<Condition>,
    dice: Dice,
    faults: Faults,
    /// Told the number of a node that stopped by itself.
    stopped: mpsc::Sender<usize>,
}

impl DiskDrive {
    /// A disk that does well.
    pub(crate) fn new(
        node: usize,
        settings: Settings,
        dice: Dice,
        faults: Faults,
        stopped: mpsc::Sender<usize>,
    ) -> Arc<Self> {
        Arc::new(Self {
            node,
            condition: Mutex::new(Condition {
                slow: false,
                full: false,
                stop: None,
                commits: 0,
            }),
            file: settings.file,
            forgets: settings.forgets,
            flips: settings.flips,
            dice,
            faults,
            stopped,
        })
    }

    /// From now on commits take seconds, or do not.
    pub(crate) fn set_slow(&self, slow: bool) {
        self.lock().slow = slow;
    }

    /// From now on there is no room, or there is.
    pub(crate) fn set_full(&self, full: bool) {
        self.lock().full = full;
    }

    /// The machine stops at this moment of a commit, after so many others; or no longer does.
    pub(crate) fn stop_at(&self, stop: Option<(u64, Moment)>) {
        self.lock().stop = stop;
    }

    /// Makes it what it is when a machine starts: as the last one left it, or as it was some commits before.
    pub(crate) fn start(&self) -> io::Result<()> {
        if !self.forgets || !self.copy_of("").exists() {
            return Ok(());
        }
        fs::copy(self.copy_of(""), &self.file)?;
        fs::copy(self.copy_of("-wal"), self.beside("-wal"))?;
        fs::remove_file(self.beside("-shm"))
    }

    /// Remembers the file as it is now, every so many commits.
    fn remember(&self) -> io::Result<()> {
        if !self.forgets {
            return Ok(());
        }
        let commits = {
            let mut condition = self.lock();
            condition.commits += 1;
            condition.commits
        };
        if commits.is_multiple_of(FORGOTTEN) {
            fs::copy(&self.file, self.copy_of(""))?;
            fs::copy(self.beside("-wal"), self.copy_of("-wal"))?;
        }
        Ok(())
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.file.clone().into_os_string();
        name.push(suffix);
        name.into()
    }

    fn copy_of(&self, suffix: &str) -> PathBuf {
        self.beside(&format!("{suffix}.copy"))
    }

    fn lock(&self) -> MutexGuard<'_, Condition> {
        self.condition.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the machine is to stop now.
    fn stops(&self, moment: Moment) -> bool {
        let mut condition = self.lock();
        match &mut condition.stop {
            Some((0, at)) if *at == moment => {
                condition.stop = None;
                true
            }
            Some((left, _)) if moment == Moment::BeforeCommit => {
                *left = left.saturating_sub(1);
                false
            }
            _ => false,
        }
    }
}

/// A [`DiskDrive`] as one machine reaches it.
pub(crate) struct Attached {
    /// The disk.
    pub(crate) drive: Arc<DiskDrive>,
    /// The machine.
    pub(crate) machine: Arc<Machine>,
}

impl Attached {
    fn alive(&self) -> Result<(), StoreError> {
        if self.machine.runs() {
            Ok(())
        } else {
            Err(StoreError::Closed)
        }
    }

    fn pass(&self, moment: Moment, fault: Fault) -> Result<(), StoreError> {
        self.alive()?;
        if self.drive.stops(moment) && self.machine.stop() {
            self.drive.faults.count(fault);
            // The queue has a place for every node, and a node stops once.
            let _ = self.drive.stopped.try_send(self.drive.node);
        }
        self.alive()
    }
}

impl Disk for Attached {
    fn before_commit(&self) -> DiskFuture<'_, Room> {
        Box::pin(async {
            let (slow, full) = {
                let condition = self.drive.lock();
                (condition.slow, condition.full)
            };
            let millis = if slow {
                self.drive.faults.count(Fault::SlowDisk);
                self.drive.dice.between(200, 5_000)
            } else {
                self.drive.dice.between(1, 8)
            };
            tokio::time::sleep(Duration::from_millis(millis)).await;
            self.pass(Moment::BeforeCommit, Fault::CrashedBeforeCommit)?;
            // Everything between this and the end of the commit is this node's, on this thread.
            flip_ties(self.drive.flips);
            if full {
                self.drive.faults.count(Fault::FullDisk);
                return Ok(Room::None);
            }
            Ok(Room::Some)
        })
    }

    fn after_commit(&self) -> DiskFuture<'_, ()> {
        Box::pin(async {
            flip_ties(false);
            self.drive.remember().map_err(|_| StoreError::Closed)?;
            self.pass(Moment::AfterCommit, Fault::CrashedAfterCommit)?;
            // Whoever reads meanwhile sees the commit before its caller is told.
            if self.drive.dice.percent(30) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            self.alive()
        })
    }

    fn before_read(&self) -> DiskFuture<'_, ()> {
        Box::pin(async {
            if self.drive.dice.percent(10) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            self.alive()
        })
    }
}
