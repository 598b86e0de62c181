//! The disk of one node: it takes time, may be slow, fail or run out of room, and stops with its machine, at any write of a
//! commit. When the power goes, what was not synced may be lost or torn.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use kith_engine::testing::flip_ties;
use kith_store::{Disk, DiskFuture, StoreError};
use tokio::sync::mpsc;

use crate::{
    faults::{Fault, Faults},
    random::Dice,
    surface::{Loss, Surface},
    vfs::{Failure, Medium},
};

/// What SQLite keeps beside a database.
const LOG: &str = "-wal";
const JOURNAL: &str = "-journal";
const INDEX: &str = "-shm";

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

/// When a machine stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// With jobs waiting, none of them done.
    BeforeCommit,
    /// Before something is written to a file.
    Writing,
    /// Before something written is synced.
    Syncing,
    /// With everything committed, and nobody told.
    AfterCommit,
}

impl Moment {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::BeforeCommit, Self::Writing, Self::Syncing, Self::AfterCommit];

    fn fault(self) -> Fault {
        match self {
            Self::BeforeCommit => Fault::CrashedBeforeCommit,
            Self::Writing => Fault::CrashedWriting,
            Self::Syncing => Fault::CrashedSyncing,
            Self::AfterCommit => Fault::CrashedAfterCommit,
        }
    }
}

/// Chances in a thousand that an operation fails.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Errors {
    /// Of reads.
    pub(crate) reads: u32,
    /// Of writes.
    pub(crate) writes: u32,
    /// Of syncs.
    pub(crate) syncs: u32,
}

/// How a disk does now.
#[derive(Debug, Default)]
struct Condition {
    slow: bool,
    /// Bytes by which files may still grow, if there is an end to it.
    room: Option<u64>,
    errors: Errors,
    /// Stop at this moment, the one after so many others of its kind.
    stop: Option<(u64, Moment)>,
    /// How many operations were made to fail.
    failed: u64,
    /// Somebody looks at the files who is no part of the world: nothing fails.
    quiet: bool,
    /// What the files are on.
    surface: Surface,
    /// What has them open.
    machine: Option<Arc<Machine>>,
}

/// What is particular about a disk.
pub(crate) struct Settings {
    /// The database on it.
    pub(crate) file: PathBuf,
    /// Whether syncing the log does nothing, as if the node did not ask for it with every commit.
    pub(crate) skips_syncs: bool,
    /// Whether the node that writes to it resolves states with the order of times turned round.
    pub(crate) flips: bool,
}

/// A node's disk; it outlives the machines.
pub(crate) struct DiskDrive {
    node: usize,
    settings: Settings,
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
            settings,
            condition: Mutex::default(),
            dice,
            faults,
            stopped,
        })
    }

    /// From now on commits take seconds, or do not.
    pub(crate) fn set_slow(&self, slow: bool) {
        self.lock().slow = slow;
    }

    /// From now on files grow by so many bytes at the most, or as they like.
    pub(crate) fn set_room(&self, room: Option<u64>) {
        self.lock().room = room;
    }

    /// From now on operations fail so often.
    pub(crate) fn set_errors(&self, errors: Errors) {
        self.lock().errors = errors;
    }

    /// The machine stops at this moment, after so many others of its kind; or no longer does.
    pub(crate) fn stop_at(&self, stop: Option<(u64, Moment)>) {
        self.lock().stop = stop;
    }

    /// How many operations have failed so far.
    pub(crate) fn failed(&self) -> u64 {
        self.lock().failed
    }

    /// Lets somebody look at the files while nothing fails.
    pub(crate) fn quietly<T>(&self, look: impl FnOnce(&Path) -> T) -> T {
        self.lock().quiet = true;
        let seen = look(&self.settings.file);
        self.lock().quiet = false;
        seen
    }

    /// Puts it into a machine, for the first time or after a stop that took the power or did not.
    pub(crate) fn start(&self, machine: &Arc<Machine>) -> io::Result<Loss> {
        let power_lost = self.dice.percent(60);
        self.start_after(machine, power_lost)
    }

    /// Puts it into a machine. What a stopped one left is as its system held it, or, if the power was gone too, what of it
    /// had reached the disk.
    pub(crate) fn start_after(&self, machine: &Arc<Machine>, power_lost: bool) -> io::Result<Loss> {
        let mut condition = self.lock();
        let started_before = condition.machine.replace(Arc::clone(machine)).is_some();
        let mut loss = Loss::default();
        if started_before && power_lost {
            self.faults.count(Fault::PowerLost);
            loss = condition.surface.lose_power(&self.dice)?;
            if loss.dropped > 0 && loss.kept > 0 {
                self.faults.count(Fault::TornWrite);
            }
        }
        // Remains of the stopped machine's tasks keep the old files open, and what they share in memory with them.
        for file in [self.beside(""), self.beside(LOG), self.beside(JOURNAL)] {
            if file.exists() {
                let copy = self.beside(".copy");
                fs::copy(&file, &copy)?;
                fs::rename(&copy, &file)?;
                condition.surface.mark(&file)?;
            }
        }
        match fs::remove_file(self.beside(INDEX)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(loss),
        }
    }

    /// Watches over a file that is being opened, if it is one of this disk's.
    pub(crate) fn watch(self: &Arc<Self>, path: &Path) -> Option<Box<dyn Medium>> {
        if ![self.beside(""), self.beside(LOG), self.beside(JOURNAL)].contains(&path.to_owned()) {
            return None;
        }
        let file = File::open(path).ok()?;
        let mut condition = self.lock();
        condition.surface.open(path, &file).ok()?;
        Some(Box::new(OpenFile {
            drive: Arc::clone(self),
            machine: condition.machine.clone()?,
            path: path.to_owned(),
            file,
        }))
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.settings.file.clone().into_os_string();
        name.push(suffix);
        name.into()
    }

    fn lock(&self) -> MutexGuard<'_, Condition> {
        self.condition.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stops a machine at this moment, if it is to.
    fn pass(&self, machine: &Machine, moment: Moment) {
        let stops = match &mut self.lock().stop {
            Some((0, at)) if *at == moment => true,
            Some((left, at)) if *at == moment => {
                *left -= 1;
                false
            }
            _ => false,
        };
        if stops {
            self.stop_at(None);
            if machine.stop() {
                self.faults.count(moment.fault());
                // The queue has a place for every node, and a node stops once.
                let _ = self.stopped.try_send(self.node);
            }
        }
    }
}

/// A file on a disk, as one machine has it open.
struct OpenFile {
    drive: Arc<DiskDrive>,
    machine: Arc<Machine>,
    path: PathBuf,
    /// For looking at what is about to be written over.
    file: File,
}

impl OpenFile {
    /// Fails if the machine has stopped, or now and then, as the disk does now.
    fn attempt(&self, failure: Failure, fault: Fault, chance: impl Fn(&Errors) -> u32) -> Result<(), Failure> {
        let mut condition = self.drive.lock();
        if condition.quiet {
            return Ok(());
        }
        if !self.machine.runs() {
            return Err(failure);
        }
        let chance = chance(&condition.errors);
        if chance > 0 && self.drive.dice.between(1, 1_000) <= u64::from(chance) {
            condition.failed += 1;
            self.drive.faults.count(fault);
            return Err(failure);
        }
        Ok(())
    }

    /// Takes the room that a write needs.
    fn grow(&self, to: u64) -> Result<(), Failure> {
        let mut condition = self.drive.lock();
        let Some(room) = condition.room else { return Ok(()) };
        let length = self.file.metadata().map_or(0, |metadata| metadata.len());
        match room.checked_sub(to.saturating_sub(length)) {
            Some(left) => condition.room = Some(left),
            None => {
                condition.failed += 1;
                self.drive.faults.count(Fault::FullDisk);
                return Err(Failure::Full);
            }
        }
        Ok(())
    }

    fn skips_syncs(&self) -> bool {
        self.drive.settings.skips_syncs && self.path == self.drive.beside(LOG)
    }
}

impl Medium for OpenFile {
    fn read(&self) -> Result<(), Failure> {
        self.attempt(Failure::Read, Fault::ReadError, |errors| errors.reads)
    }

    fn write(&self, from: u64, length: u64) -> Result<(), Failure> {
        self.drive.pass(&self.machine, Moment::Writing);
        self.attempt(Failure::Write, Fault::WriteError, |errors| errors.writes)?;
        self.grow(from + length)?;
        let surface = &mut self.drive.lock().surface;
        let written = surface.write(&self.path, &self.file, from, length);
        written.map_err(|_| Failure::Write)
    }

    fn truncate(&self, to: u64) -> Result<(), Failure> {
        self.attempt(Failure::Write, Fault::WriteError, |errors| errors.writes)?;
        let surface = &mut self.drive.lock().surface;
        let cut = surface.truncate(&self.path, &self.file, to);
        cut.map_err(|_| Failure::Write)
    }

    fn sync(&self) -> Result<(), Failure> {
        self.drive.pass(&self.machine, Moment::Syncing);
        let outcome = self.attempt(Failure::Sync, Fault::SyncError, |errors| errors.syncs);
        if self.skips_syncs() || (outcome.is_err() && !self.machine.runs()) {
            return outcome;
        }
        let surface = &mut self.drive.lock().surface;
        let done = match outcome {
            Ok(()) => surface.sync(&self.path, &self.file),
            Err(_) => surface.fail_to_sync(&self.path, &self.file, &self.drive.dice),
        };
        done.map_err(|_| Failure::Sync).and(outcome)
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

    fn pass(&self, moment: Moment) -> Result<(), StoreError> {
        self.alive()?;
        self.drive.pass(&self.machine, moment);
        self.alive()
    }
}

impl Disk for Attached {
    fn before_commit(&self) -> DiskFuture<'_, ()> {
        Box::pin(async {
            let slow = self.drive.lock().slow;
            let millis = if slow {
                self.drive.faults.count(Fault::SlowDisk);
                self.drive.dice.between(200, 5_000)
            } else {
                self.drive.dice.between(1, 8)
            };
            tokio::time::sleep(Duration::from_millis(millis)).await;
            self.pass(Moment::BeforeCommit)?;
            // Everything between this and the end of the commit is this node's, on this thread.
            flip_ties(self.drive.settings.flips);
            Ok(())
        })
    }

    fn after_commit(&self) -> DiskFuture<'_, ()> {
        Box::pin(async {
            flip_ties(false);
            self.pass(Moment::AfterCommit)?;
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
