//! Backups: a copy of the database, and beside it one of the media files. Keys are never in one: the recovery phrase
//! brings the identity back, and a copy that falls into wrong hands makes nobody this node.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use kith_store::{BackupError, StoreError};

use crate::{Node, data_folder::DataFolder};

impl Node {
    /// Copies the database as it is now to a new file, and what people uploaded or fetched to the folder
    /// [`media_of_backup`]. Both are whole, or neither is there. Where the file system can, files are linked, not copied.
    pub async fn backup(&self, to: &Path) -> Result<(), BackupError> {
        let context = &self.homeserver().context;
        let (from, beside) = (DataFolder::media(&context.config.data), media_of_backup(to));
        if beside.exists() {
            return Err(BackupError::Exists(beside));
        }
        // Rows come after the files that they speak of: what the copied database knows is here to be copied now.
        context.store.backup(to).await?;
        let copying = tokio::task::spawn_blocking(move || copy_media(&from, &beside));
        let copied = copying.await.map_err(|_| StoreError::Panicked)?;
        if copied.is_err() {
            // It would pass for a whole backup. What cannot be removed is at least not acknowledged.
            let _ = fs::remove_file(to);
        }
        copied
    }
}

/// Where the media files of a backup are: beside the database's copy, with `.media` at the end of its name.
pub fn media_of_backup(file: &Path) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(".media");
    name.into()
}

/// Copies the folder of all media files; it appears whole or not at all.
fn copy_media(from: &Path, to: &Path) -> Result<(), BackupError> {
    let mut partial = to.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let copy = || {
        remove(&partial)?;
        if copy_folders(from, &partial)? {
            fs::rename(&partial, to)?;
        }
        Ok(())
    };
    copy().map_err(|source| {
        let _ = remove(&partial);
        BackupError::File {
            path: to.to_owned(),
            source,
        }
    })
}

fn remove(folder: &Path) -> io::Result<()> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Copies every finished file. Says whether there was any.
fn copy_folders(from: &Path, to: &Path) -> io::Result<bool> {
    let mut any = false;
    for folder in list(from)? {
        // Finished files stand in folders named by their first two letters.
        if !folder.file_type()?.is_dir() || folder.file_name().len() != 2 {
            continue;
        }
        let target = to.join(folder.file_name());
        fs::create_dir_all(&target)?;
        for file in list(&folder.path())? {
            copy_file(&file.path(), &target.join(file.file_name()))?;
            any = true;
        }
        fs::File::open(&target)?.sync_all()?;
    }
    Ok(any)
}

/// A folder that is not there holds nothing.
fn list(folder: &Path) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// Files under their hash never change, so a second name for the same bytes is as good as a copy.
fn copy_file(from: &Path, to: &Path) -> io::Result<()> {
    if fs::hard_link(from, to).is_ok() {
        return Ok(());
    }
    let copied = fs::copy(from, to).and_then(|_| fs::File::open(to)?.sync_all());
    match copied {
        // Fetched files make room for newer ones meanwhile; they can be fetched again.
        Err(error) if error.kind() == io::ErrorKind::NotFound && !from.exists() => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finished_files_are_copied_and_failures_leave_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("media"), folder.path().join("copy.media"));
        copy_media(&from, &to).unwrap();
        assert!(!to.exists(), "where there is no media, there is no folder");

        for (name, bytes) in [("ab/abc", "1"), ("cd/cde", "2"), ("unfinished/x", "3")] {
            fs::create_dir_all(from.join(name).parent().unwrap()).unwrap();
            fs::write(from.join(name), bytes).unwrap();
        }
        // What an earlier attempt left behind is in nobody's way.
        fs::create_dir_all(folder.path().join("copy.media.partial/zz")).unwrap();
        copy_media(&from, &to).unwrap();
        assert_eq!(fs::read(to.join("ab/abc")).unwrap(), b"1");
        assert_eq!(fs::read(to.join("cd/cde")).unwrap(), b"2");
        let mut names: Vec<_> = list(&to).unwrap().iter().map(fs::DirEntry::file_name).collect();
        names.sort();
        assert_eq!(names, ["ab", "cd"]);

        let nowhere = folder.path().join("ab-sent/copy.media");
        fs::write(folder.path().join("ab-sent"), "a file").unwrap();
        assert!(matches!(copy_media(&from, &nowhere), Err(BackupError::File { .. })));
        assert!(!nowhere.exists());
    }
}
