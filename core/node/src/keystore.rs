//! The node's secrets as files of their own, apart from the database, so that a damaged database never costs the
//! identity. Nothing else of the node is kept here, and no secret leaves here except as a key type that wipes itself.
//!
//! `DATA/keys` has mode 0700 and its files 0600. Each secret is one line `KIND 1 BASE64 CHECK`, where CHECK tells a
//! damaged line from a secret; `document.json` is the identity's own key document.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use data_encoding::BASE64URL_NOPAD;
use kith_identity::{DocumentError, IdentityKey, KeyDocument, NodeKey, RecordError, TransportKey, cbor::CborError};
use ruma::{MilliSecondsSinceUnixEpoch, OwnedServerName, UInt};
use zeroize::Zeroizing;

use crate::clock::World;

/// A transport key older than this is replaced at the next start (`protocol.md` section 1).
const TRANSPORT_KEY_AGE_MS: u64 = 7 * DAY_MS;

/// How long a key document is valid from its signing. Renewed when less than [`RENEW_BEFORE_MS`] is left.
const DOCUMENT_LIFETIME_MS: u64 = 30 * DAY_MS;

/// The rest of its life at which a key document is signed anew. Until then it is the same bytes everywhere.
const RENEW_BEFORE_MS: u64 = 15 * DAY_MS;

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// No file here is larger; certificates made ahead take the most.
const MAX_FILE: u64 = 64 * 1024;

const IDENTITY: &str = "identity";
const NODE: &str = "node";
const TRANSPORT: &str = "transport";
const DOCUMENT: &str = "document.json";

/// Why the keys cannot be read or written. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum KeystoreError {
    /// The file system refused.
    #[error("cannot {action} {path}")]
    Io {
        /// What was tried: `read`, `write`, …
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Others could read a secret.
    #[error("{path} is open to others (mode {mode:03o}); run: chmod {wanted:03o} '{path}'")]
    Permissions {
        /// The file or folder.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// The mode it must have.
        wanted: u32,
    },
    /// A file is not what it should be.
    #[error("{path} is damaged; put a copy back, or restore the identity from its recovery phrase in a new folder")]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// There are node keys, but no identity.
    #[error("{path} is missing; put a copy back, or run `kith phrase restore`")]
    IdentityMissing {
        /// The file.
        path: PathBuf,
    },
    /// The folder has an identity already, and it is another one.
    #[error("this folder already belongs to {0}; restore into an empty one")]
    OtherIdentity(OwnedServerName),
    /// The key document cannot be made or changed.
    #[error("the key document cannot be used")]
    Document(#[from] DocumentError),
    /// Certificates for DHT records cannot be made.
    #[error("certificates for DHT records cannot be made")]
    Records(#[from] RecordError),
    /// They cannot be written down.
    #[error("certificates for DHT records cannot be written")]
    Encoding(#[from] CborError),
}

/// The secrets of a node and its key document, as a start needs them.
#[derive(Debug)]
pub struct Keys {
    /// Signs key documents.
    pub identity: IdentityKey,
    /// Signs events and hellos.
    pub node: NodeKey,
    /// The newest key document, which lists `node` as current.
    pub document: KeyDocument,
}

/// The folder of the keys.
#[derive(Debug, Clone)]
pub struct Keystore {
    folder: PathBuf,
}

impl Keystore {
    /// The keys inside a data folder. Touches nothing yet.
    pub fn new(data: &Path) -> Self {
        Self {
            folder: data.join("keys"),
        }
    }

    /// Reads identity, node key and key document; makes what is not there yet; renews a document near its end.
    pub fn open(&self, world: &World) -> Result<Keys, KeystoreError> {
        self.prepare_folder()?;
        let held = self.identity()?;
        let is_new = held.is_none();
        let identity = match (held, self.exists(NODE)?) {
            (Some(identity), _) => identity,
            (None, false) => self.create_identity(IdentityKey::generate(&mut world.rng()))?,
            (None, true) => {
                return Err(KeystoreError::IdentityMissing {
                    path: self.path(IDENTITY),
                });
            }
        };
        let node = match self.read_secret::<64>(NODE)? {
            Some(secret) => NodeKey::from_bytes(&secret),
            None => {
                let node = NodeKey::generate(&mut world.rng());
                self.write_secret(NODE, node.to_bytes().as_ref())?;
                node
            }
        };
        let document = self.current_document(&identity, is_new, &node, world.now())?;
        Ok(Keys {
            identity,
            node,
            document,
        })
    }

    /// The identity, if there is one.
    pub fn identity(&self) -> Result<Option<IdentityKey>, KeystoreError> {
        self.check_mode(&self.folder, 0o700)?;
        let secret = self.read_secret::<32>(IDENTITY)?;
        Ok(secret.map(|secret| IdentityKey::from_bytes(&secret)))
    }

    /// The secret behind the PeerId: made if there is none, or if it is a week old.
    pub fn transport_key(&self, world: &World) -> Result<TransportKey, KeystoreError> {
        self.prepare_folder()?;
        let now = u64::from(world.now().0);
        if let Some((made, key)) = self.read_transport()?
            && transport_lasts(made, now) > 0
        {
            return Ok(key);
        }
        let key = TransportKey::generate(&mut world.rng());
        let mut secret = Zeroizing::new([0; 40]);
        secret[..8].copy_from_slice(&now.to_be_bytes());
        secret[8..].copy_from_slice(key.to_bytes().as_ref());
        self.write_secret(TRANSPORT, secret.as_ref())?;
        Ok(key)
    }

    /// For how long [`Keystore::transport_key`] gives the same key; zero when there is none.
    pub fn transport_key_lasts(&self, world: &World) -> Result<Duration, KeystoreError> {
        let left = self
            .read_transport()?
            .map(|(made, _)| transport_lasts(made, world.now().0.into()));
        Ok(Duration::from_millis(left.unwrap_or_default()))
    }

    /// When the key was made, in milliseconds since the epoch, and the key.
    fn read_transport(&self) -> Result<Option<(u64, TransportKey)>, KeystoreError> {
        let Some(secret) = self.read_secret::<40>(TRANSPORT)? else {
            return Ok(None);
        };
        let (made, seed) = secret.split_at(8);
        let made = made.iter().fold(0, |made, byte| (made << 8) | u64::from(*byte));
        let mut key = Zeroizing::new([0; 32]);
        key.copy_from_slice(seed);
        Ok(Some((made, TransportKey::from_bytes(&key))))
    }

    /// Puts a restored identity in place. The node's other keys are made at its next start. Restoring the identity that
    /// is there already changes nothing; another one is never replaced.
    pub fn restore(&self, identity: IdentityKey) -> Result<(), KeystoreError> {
        self.prepare_folder()?;
        match self.identity()? {
            Some(held) if held.public() == identity.public() => Ok(()),
            Some(held) => Err(KeystoreError::OtherIdentity(held.public().server_name())),
            None => {
                let document = self.read_document()?;
                match document.map(|document| document.identity()) {
                    Some(other) if other != identity.public() => Err(KeystoreError::OtherIdentity(other.server_name())),
                    _ => self.create_identity(identity).map(drop),
                }
            }
        }
    }

    /// Whether a key document should be signed anew.
    pub fn is_stale(document: &KeyDocument, now: MilliSecondsSinceUnixEpoch) -> bool {
        u64::from(document.valid_until().0) < u64::from(now.0).saturating_add(RENEW_BEFORE_MS)
    }

    /// Milliseconds until a key document should be signed anew.
    pub fn fresh_for(document: &KeyDocument, now: MilliSecondsSinceUnixEpoch) -> u64 {
        u64::from(document.valid_until().0).saturating_sub(u64::from(now.0).saturating_add(RENEW_BEFORE_MS))
    }

    /// Signs the next version of a key document and keeps it.
    pub fn renew(
        &self,
        identity: &IdentityKey,
        document: &KeyDocument,
        now: MilliSecondsSinceUnixEpoch,
    ) -> Result<KeyDocument, KeystoreError> {
        let renewed = document.renew(identity, valid_until(now))?;
        self.write_document(&renewed)?;
        Ok(renewed)
    }

    fn create_identity(&self, identity: IdentityKey) -> Result<IdentityKey, KeystoreError> {
        self.write_secret(IDENTITY, identity.to_bytes().as_ref())?;
        Ok(identity)
    }

    /// The document on disk if it is good for this node; otherwise the next one, which is kept first.
    fn current_document(
        &self,
        identity: &IdentityKey,
        is_new: bool,
        node: &NodeKey,
        now: MilliSecondsSinceUnixEpoch,
    ) -> Result<KeyDocument, KeystoreError> {
        let public = node.public();
        let held = self.read_document()?;
        let next = match &held {
            Some(held) if held.nodes().any(|(_, entry)| entry.key == public) => {
                if !Self::is_stale(held, now) {
                    return Ok(held.clone());
                }
                held.renew(identity, valid_until(now))?
            }
            Some(held) => held.add_node(identity, &public, now, valid_until(now))?,
            None if is_new => KeyDocument::new(identity, &public, now, valid_until(now))?,
            // Versions of this identity may be out there that this folder never saw: one restored from its phrase.
            None => KeyDocument::restored(identity, &public, now, valid_until(now))?,
        };
        self.write_document(&next)?;
        Ok(next)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn exists(&self, name: &str) -> Result<bool, KeystoreError> {
        let path = self.path(name);
        path.try_exists().map_err(|source| failed("read", &path, source))
    }

    fn prepare_folder(&self) -> Result<(), KeystoreError> {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.folder);
        made.map_err(|source| failed("create", &self.folder, source))?;
        self.check_mode(&self.folder, 0o700)
    }

    /// Refuses what others can read or change. What does not exist is fine.
    fn check_mode(&self, path: &Path, wanted: u32) -> Result<(), KeystoreError> {
        let mode = match fs::metadata(path) {
            Ok(metadata) => metadata.permissions().mode() & 0o777,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(failed("read", path, source)),
        };
        if mode & 0o077 == 0 {
            return Ok(());
        }
        Err(KeystoreError::Permissions {
            path: path.to_owned(),
            mode,
            wanted,
        })
    }

    fn read(&self, name: &str) -> Result<Option<Zeroizing<String>>, KeystoreError> {
        let path = self.path(name);
        self.check_mode(&path, 0o600)?;
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed("read", &path, source)),
        };
        // The size is known ahead, so that no grown buffer leaves copies of a secret behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_FILE as usize));
        file.take(MAX_FILE)
            .read_to_end(&mut bytes)
            .map_err(|source| failed("read", &path, source))?;
        let text = str::from_utf8(&bytes).map_err(|_| KeystoreError::Damaged { path })?;
        Ok(Some(Zeroizing::new(text.to_owned())))
    }

    fn read_secret<const N: usize>(&self, kind: &str) -> Result<Option<Zeroizing<[u8; N]>>, KeystoreError> {
        let Some(bytes) = self.read_secret_bytes(kind)? else {
            return Ok(None);
        };
        let mut secret = Zeroizing::new([0; N]);
        if bytes.len() != N {
            return Err(self.damaged(kind));
        }
        secret.copy_from_slice(&bytes);
        Ok(Some(secret))
    }

    pub(crate) fn read_secret_bytes(&self, kind: &str) -> Result<Option<Zeroizing<Vec<u8>>>, KeystoreError> {
        let Some(line) = self.read(kind)? else {
            return Ok(None);
        };
        decode(kind, &line).ok_or_else(|| self.damaged(kind)).map(Some)
    }

    pub(crate) fn damaged(&self, name: &str) -> KeystoreError {
        KeystoreError::Damaged { path: self.path(name) }
    }

    pub(crate) fn write_secret(&self, kind: &str, secret: &[u8]) -> Result<(), KeystoreError> {
        self.write(kind, encode(kind, secret).as_bytes())
    }

    fn read_document(&self) -> Result<Option<KeyDocument>, KeystoreError> {
        let Some(json) = self.read(DOCUMENT)? else {
            return Ok(None);
        };
        let document = KeyDocument::parse(json.trim_end().as_bytes()).map_err(|_| self.damaged(DOCUMENT))?;
        Ok(Some(document))
    }

    fn write_document(&self, document: &KeyDocument) -> Result<(), KeystoreError> {
        self.write(DOCUMENT, document.to_json().as_bytes())
    }

    /// Writes a file whole or not at all: beside it, synced, then moved into place.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), KeystoreError> {
        let (path, beside) = (self.path(name), self.path(&format!("{name}.new")));
        let write = || {
            // A remainder of an interrupted write may have any mode.
            match fs::remove_file(&beside) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&beside)?;
            file.write_all(bytes)?;
            file.sync_all()?;
            fs::rename(&beside, &path)?;
            File::open(&self.folder)?.sync_all()
        };
        write().map_err(|source| failed("write", &path, source))
    }
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> KeystoreError {
    KeystoreError::Io {
        action,
        path: path.to_owned(),
        source,
    }
}

fn valid_until(now: MilliSecondsSinceUnixEpoch) -> MilliSecondsSinceUnixEpoch {
    MilliSecondsSinceUnixEpoch(now.0.saturating_add(UInt::new_saturating(DOCUMENT_LIFETIME_MS)))
}

/// Milliseconds that a transport key may still be used. One from the future was made under a wrong clock: its age is
/// unknown.
fn transport_lasts(made: u64, now: u64) -> u64 {
    if made > now {
        return 0;
    }
    made.saturating_add(TRANSPORT_KEY_AGE_MS).saturating_sub(now)
}

/// `KIND 1 BASE64 CHECK` and a line end.
fn encode(kind: &str, secret: &[u8]) -> Zeroizing<String> {
    let encoded = Zeroizing::new(BASE64URL_NOPAD.encode(secret));
    Zeroizing::new(format!("kith-{kind} 1 {} {}\n", *encoded, check(kind, secret)))
}

fn decode(kind: &str, line: &str) -> Option<Zeroizing<Vec<u8>>> {
    let rest = line.trim_end().strip_prefix(&format!("kith-{kind} 1 "))?;
    let (encoded, sum) = rest.split_once(' ')?;
    let bytes = Zeroizing::new(BASE64URL_NOPAD.decode(encoded.as_bytes()).ok()?);
    (sum == check(kind, &bytes)).then_some(bytes)
}

/// 48 bits that a damaged line does not match by chance, and that say nothing useful about 256 random bits.
fn check(kind: &str, secret: &[u8]) -> String {
    let hash = Zeroizing::new(blake3::derive_key(&format!("kith keystore 1 {kind}"), secret));
    BASE64URL_NOPAD.encode(&hash[..6])
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, sync::atomic::AtomicU64, sync::atomic::Ordering::SeqCst};

    use super::*;
    use crate::clock::{Clock, SystemEntropy};

    #[derive(Clone)]
    struct SetClock(Arc<AtomicU64>);

    impl Clock for SetClock {
        fn now(&self) -> MilliSecondsSinceUnixEpoch {
            MilliSecondsSinceUnixEpoch(UInt::new_saturating(self.0.load(SeqCst)))
        }
    }

    struct Fixture {
        data: tempfile::TempDir,
        clock: SetClock,
        world: World,
        keystore: Keystore,
    }

    fn fixture() -> Fixture {
        let data = tempfile::tempdir().unwrap();
        let clock = SetClock(Arc::new(AtomicU64::new(1_700_000_000_000)));
        Fixture {
            world: World::new(clock.clone(), SystemEntropy),
            keystore: Keystore::new(data.path()),
            data,
            clock,
        }
    }

    impl Fixture {
        fn open(&self) -> Result<Keys, KeystoreError> {
            self.keystore.open(&self.world)
        }

        fn transport(&self) -> Result<Zeroizing<[u8; 32]>, KeystoreError> {
            self.keystore.transport_key(&self.world).map(|key| key.to_bytes())
        }

        fn file(&self, name: &str) -> PathBuf {
            self.data.path().join("keys").join(name)
        }

        fn mode(&self, path: &Path) -> u32 {
            fs::metadata(path).unwrap().permissions().mode() & 0o777
        }
    }

    #[test]
    fn keys_are_made_once_and_found_again() {
        let f = fixture();
        let (first, second) = (f.open().unwrap(), f.open().unwrap());
        assert_eq!(first.identity.public(), second.identity.public());
        assert_eq!(first.node.public(), second.node.public());
        assert_eq!(f.transport().unwrap(), f.transport().unwrap());
        assert_eq!(first.document, second.document);
        assert_eq!(first.document.identity(), first.identity.public());
        assert!(first.document.status(first.node.key_id()).is_some());

        assert_eq!(f.mode(&f.data.path().join("keys")), 0o700);
        for name in [IDENTITY, NODE, TRANSPORT, DOCUMENT] {
            assert_eq!(f.mode(&f.file(name)), 0o600, "{name}");
        }
    }

    #[test]
    fn the_transport_key_lives_a_week() {
        let f = fixture();
        let seed = || f.transport().unwrap();
        let first = seed();
        f.clock.0.fetch_add(TRANSPORT_KEY_AGE_MS - 1, SeqCst);
        assert_eq!(seed(), first);
        f.clock.0.fetch_add(1, SeqCst);
        let second = seed();
        assert_ne!(second, first);
        f.clock.0.fetch_sub(1, SeqCst);
        assert_ne!(seed(), second, "a key from the future has an unknown age");
    }

    #[test]
    fn the_document_is_signed_anew_when_half_its_life_is_over() {
        let f = fixture();
        let first = f.open().unwrap().document;
        f.clock.0.fetch_add(DOCUMENT_LIFETIME_MS - RENEW_BEFORE_MS, SeqCst);
        assert_eq!(f.open().unwrap().document, first);
        f.clock.0.fetch_add(1, SeqCst);
        let second = f.open().unwrap().document;
        assert!(second.supersedes(&first));
        assert_eq!(f.open().unwrap().document, second);
    }

    #[test]
    fn a_phrase_restores_the_identity_in_a_new_folder() {
        let (old, new) = (fixture(), fixture());
        let before = old.open().unwrap();
        let phrase = kith_identity::RecoveryPhrase::of(&before.identity).to_string();
        let restored = kith_identity::RecoveryPhrase::parse(&phrase).unwrap().identity();
        new.keystore.restore(restored).unwrap();
        // Even at the very time at which the first document was made.
        let after = new.open().unwrap();
        assert_eq!(after.identity.public(), before.identity.public());
        assert_ne!(after.node.public(), before.node.public());
        assert!(
            after.document.supersedes(&before.document),
            "contacts must accept the new node"
        );

        let again = IdentityKey::from_bytes(&before.identity.to_bytes());
        new.keystore.restore(again).unwrap();
        let other = new.keystore.restore(IdentityKey::from_bytes(&[9; 32]));
        assert!(
            matches!(other, Err(KeystoreError::OtherIdentity(held)) if held == before.identity.public().server_name())
        );
        assert_eq!(new.open().unwrap().identity.public(), before.identity.public());
    }

    #[test]
    fn a_lost_identity_is_not_silently_replaced() {
        let f = fixture();
        let before = f.open().unwrap();
        fs::remove_file(f.file(IDENTITY)).unwrap();
        assert!(matches!(f.open(), Err(KeystoreError::IdentityMissing { .. })));
        let other = f.keystore.restore(IdentityKey::from_bytes(&[9; 32]));
        assert!(
            matches!(other, Err(KeystoreError::OtherIdentity(_))),
            "the document names the owner"
        );
        f.keystore.restore(before.identity).unwrap();
        assert_eq!(f.open().unwrap().node.public(), before.node.public());
    }

    #[test]
    fn damage_is_noticed_in_every_file_and_left_as_it_is() {
        type Damage = fn(&str) -> String;
        let damages: [(&str, Damage); 5] = [
            ("emptied", |_| String::new()),
            ("cut short", |text| text[..text.len() / 2].to_owned()),
            ("one character changed", |text| {
                let middle = text.len() / 2;
                let other = if text.as_bytes()[middle] == b'A' { "B" } else { "A" };
                format!("{}{other}{}", &text[..middle], &text[middle + 1..])
            }),
            ("another kind", |text| {
                text.replacen("kith-", "kath-", 1).replacen('{', "[", 1)
            }),
            ("garbage", |_| "\u{fffd}garbage".repeat(5000)),
        ];
        for name in [IDENTITY, NODE, TRANSPORT, DOCUMENT] {
            for (what, damage) in damages {
                let f = fixture();
                f.open().unwrap();
                f.transport().unwrap();
                let damaged = damage(&fs::read_to_string(f.file(name)).unwrap());
                fs::write(f.file(name), &damaged).unwrap();
                let error = f.open().and_then(|_| f.transport()).expect_err(what);
                assert!(matches!(error, KeystoreError::Damaged { .. }), "{name} {what}: {error}");
                assert_eq!(fs::read_to_string(f.file(name)).unwrap(), damaged, "{name} {what}");
            }
        }
    }

    #[test]
    fn what_others_can_read_is_refused() {
        for (name, mode, wanted) in [("", 0o755, 0o700), (IDENTITY, 0o644, 0o600), (NODE, 0o660, 0o600)] {
            let f = fixture();
            f.open().unwrap();
            let path = f.file(name);
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = f.open().unwrap_err().to_string();
            assert!(error.contains(&format!("chmod {wanted:o}")), "{error}");
            assert_eq!(f.mode(&path), mode);
        }
    }

    #[test]
    fn an_interrupted_write_is_no_obstacle() {
        let f = fixture();
        f.keystore.prepare_folder().unwrap();
        fs::write(f.file("identity.new"), "half a li").unwrap();
        f.open().unwrap();
        assert!(!f.file("identity.new").exists());
    }
}
