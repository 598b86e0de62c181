//! What of the files on a disk would be left if the power went now: everything synced, and of everything else any sectors,
//! old or new. It decides nothing about when.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use crate::random::Dice;

/// What a disk writes whole or not at all, in bytes.
const SECTOR: u64 = 512;
/// When a marked file says that it was changed: never since.
const MARK: SystemTime = SystemTime::UNIX_EPOCH;

/// What a loss of power did.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Loss {
    /// Sectors that are as they were before.
    pub(crate) dropped: u64,
    /// Sectors that came through though nobody had synced them.
    pub(crate) kept: u64,
}

/// The files of one disk, by what of them is not synced.
#[derive(Debug, Default)]
pub(crate) struct Surface(BTreeMap<PathBuf, Unsynced>);

#[derive(Debug)]
struct Unsynced {
    /// Bytes that the file certainly has.
    length: u64,
    /// What sectors held before they were written.
    before: BTreeMap<u64, Vec<u8>>,
    /// The same of sectors whose sync failed: reading gives what was written, the disk does not hold it, and no later sync
    /// makes up for that. Only writing them again does. (Rebello et al., "Can Applications Recover from fsync Failures?")
    forsaken: BTreeMap<u64, Vec<u8>>,
    /// Whether it was marked and not written to through SQLite since.
    marked: bool,
}

fn sectors(from: u64, to: u64) -> std::ops::Range<u64> {
    from / SECTOR..to.div_ceil(SECTOR)
}

impl Unsynced {
    fn is_clean(&self) -> bool {
        self.before.is_empty() && self.forsaken.is_empty()
    }

    /// Remembers what stands in some sectors.
    fn remember(&mut self, file: &File, from: u64, to: u64) -> io::Result<()> {
        for sector in sectors(from, to) {
            if self.before.contains_key(&sector) {
                continue;
            }
            let old = match self.forsaken.remove(&sector) {
                Some(old) => old,
                None => self.old(file, sector)?,
            };
            self.before.insert(sector, old);
        }
        Ok(())
    }

    /// What a sector holds, as far as the file certainly reached.
    fn old(&self, file: &File, sector: u64) -> io::Result<Vec<u8>> {
        let at = sector * SECTOR;
        let mut bytes = vec![0; usize::try_from(self.length.saturating_sub(at).min(SECTOR)).unwrap_or(0)];
        let read = file.read_at(&mut bytes, at)?;
        bytes.truncate(read);
        Ok(bytes)
    }

    /// The file as it is left.
    fn remains(&self, mut bytes: Vec<u8>, dice: &Dice, loss: &mut Loss) -> Vec<u8> {
        let now = bytes.len() as u64;
        let length = if now > self.length {
            dice.between(self.length / SECTOR, now / SECTOR) * SECTOR
        } else {
            *dice.choose(&[now, self.length]).unwrap_or(&now)
        };
        let length = length.max(now.min(self.length));
        let chance = *dice.choose(&[5, 50, 95]).unwrap_or(&50);
        bytes.resize(usize::try_from(length).unwrap_or(0), 0);
        let unsynced = self.before.iter().map(|entry| (entry, true));
        for ((sector, old), may_be_kept) in unsynced.chain(self.forsaken.iter().map(|entry| (entry, false))) {
            let from = sector * SECTOR;
            // What was cut off and is there again was never replaced.
            if from < now && may_be_kept && dice.percent(chance) {
                loss.kept += 1;
                continue;
            }
            loss.dropped += 1;
            for (offset, at) in (from..(from + SECTOR).min(length)).enumerate() {
                bytes[usize::try_from(at).unwrap_or(0)] = old.get(offset).copied().unwrap_or(0);
            }
        }
        bytes
    }
}

impl Surface {
    fn of(&mut self, path: &Path, file: &File) -> io::Result<&mut Unsynced> {
        if !self.0.contains_key(path) {
            let unsynced = Unsynced {
                length: file.metadata()?.len(),
                before: BTreeMap::new(),
                forsaken: BTreeMap::new(),
                marked: false,
            };
            self.0.insert(path.to_owned(), unsynced);
        }
        self.0.get_mut(path).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    /// A file was opened. What it holds now lasts if it is new here, or if somebody has written it anew since it was marked:
    /// what does not go through SQLite is not watched, and believed to be synced.
    pub(crate) fn open(&mut self, path: &Path, file: &File) -> io::Result<()> {
        if file.metadata()?.modified()? != MARK && self.0.get(path).is_some_and(|unsynced| unsynced.marked) {
            self.0.remove(path);
        }
        self.of(path, file).map(drop)
    }

    /// Marks a file that nobody has open.
    pub(crate) fn mark(&mut self, path: &Path) -> io::Result<()> {
        let file = File::options().write(true).open(path)?;
        file.set_modified(MARK)?;
        self.of(path, &file)?.marked = true;
        Ok(())
    }

    /// Bytes are about to be written.
    pub(crate) fn write(&mut self, path: &Path, file: &File, from: u64, length: u64) -> io::Result<()> {
        let unsynced = self.of(path, file)?;
        unsynced.marked = false;
        unsynced.remember(file, from, from + length)
    }

    /// A file is about to be cut.
    pub(crate) fn truncate(&mut self, path: &Path, file: &File, to: u64) -> io::Result<()> {
        let unsynced = self.of(path, file)?;
        unsynced.marked = false;
        unsynced.remember(file, to, unsynced.length.max(to))
    }

    /// Everything written to a file lasts from now on, but for what a failed sync has forsaken.
    pub(crate) fn sync(&mut self, path: &Path, file: &File) -> io::Result<()> {
        let length = file.metadata()?.len();
        let unsynced = self.of(path, file)?;
        unsynced.length = length;
        unsynced.before.clear();
        Ok(())
    }

    /// A sync has failed half-way: some of what was written lasts, and the rest is never tried again.
    pub(crate) fn fail_to_sync(&mut self, path: &Path, file: &File, dice: &Dice) -> io::Result<()> {
        let unsynced = self.of(path, file)?;
        let tried = std::mem::take(&mut unsynced.before);
        unsynced.forsaken.extend(tried.into_iter().filter(|_| dice.percent(50)));
        Ok(())
    }

    /// The power goes: each file is replaced by what is left of it.
    pub(crate) fn lose_power(&mut self, dice: &Dice) -> io::Result<Loss> {
        let mut loss = Loss::default();
        for path in self.0.keys().cloned().collect::<Vec<_>>() {
            let unsynced = &self.0[&path];
            if path.exists() && !(unsynced.is_clean() && fs::metadata(&path)?.len() == unsynced.length) {
                let bytes = unsynced.remains(fs::read(&path)?, dice, &mut loss);
                fs::write(&path, bytes)?;
            }
            self.0.remove(&path);
        }
        Ok(loss)
    }
}
