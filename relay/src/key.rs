//! The file that keeps the relay's transport key: 32 bytes that only the owner may read. Written once, never changed.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
};

use kith_identity::TransportKey;
use rand::rngs::OsRng;
use zeroize::Zeroizing;

const FILE: &str = "transport.key";

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KeyFileError {
    #[error("{path} cannot be used: {source}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{0} can be read by others: allow only its owner (chmod 600)")]
    Permissions(PathBuf),
    #[error("{0} is damaged: a key has 32 bytes. Without it the relay gets a new address: move it away to allow that")]
    Damaged(PathBuf),
}

/// Reads the key, or makes one in a folder that has none.
pub(crate) fn load_or_create(data: &Path) -> Result<TransportKey, KeyFileError> {
    let path = data.join(FILE);
    match File::open(&path) {
        Ok(file) => load(&path, file),
        Err(error) if error.kind() == io::ErrorKind::NotFound => create(data, &path),
        Err(source) => Err(KeyFileError::Io { path, source }),
    }
}

fn load(path: &Path, file: File) -> Result<TransportKey, KeyFileError> {
    let fault = |source| KeyFileError::Io {
        path: path.to_owned(),
        source,
    };
    let mode = file.metadata().map_err(fault)?.permissions().mode();
    if mode & 0o077 != 0 {
        return Err(KeyFileError::Permissions(path.to_owned()));
    }
    let mut bytes = Zeroizing::new(Vec::with_capacity(33));
    file.take(33).read_to_end(&mut bytes).map_err(fault)?;
    let seed = <&[u8; 32]>::try_from(bytes.as_slice()).map_err(|_| KeyFileError::Damaged(path.to_owned()))?;
    Ok(TransportKey::from_bytes(seed))
}

/// The key is on disk, whole, before it is used: a relay must not come back under another address.
fn create(data: &Path, path: &Path) -> Result<TransportKey, KeyFileError> {
    let key = TransportKey::generate(&mut OsRng);
    let written = data.join("transport.key.new");
    let write = || {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(data)?;
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&written)?;
        file.set_permissions(fs::Permissions::from_mode(0o600))?;
        file.write_all(key.to_bytes().as_slice())?;
        file.sync_all()?;
        // Fails when another relay made one meanwhile, instead of replacing it.
        fs::hard_link(&written, path)?;
        fs::remove_file(&written)?;
        File::open(data)?.sync_all()
    };
    write().map_err(|source| KeyFileError::Io {
        path: path.to_owned(),
        source,
    })?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_only_its_owner_reads_it() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("new/folder");
        let made = load_or_create(&data).unwrap().to_bytes();
        assert_eq!(load_or_create(&data).unwrap().to_bytes(), made);
        let mode = fs::metadata(data.join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(&data).unwrap().count(), 1);
    }

    #[test]
    fn an_unusable_file_is_refused_and_left_alone() {
        let cases: [(&[u8], u32, &str); 4] = [
            (&[1; 32], 0o644, "can be read by others"),
            (&[1; 31], 0o600, "is damaged"),
            (&[1; 33], 0o600, "is damaged"),
            (&[], 0o600, "is damaged"),
        ];
        for (bytes, mode, reason) in cases {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join(FILE);
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = load_or_create(folder.path()).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
            assert_eq!(fs::read(&path).unwrap(), bytes);
        }
    }
}
