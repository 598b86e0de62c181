//! Server names: the z-base-32 of an Ed25519 public key. No other spelling of a key is accepted, so that equal names
//! and equal keys are the same thing.

use std::{fmt, str::FromStr, sync::LazyLock};

use data_encoding::{Encoding, Specification};
use ruma::{OwnedServerName, ServerName};

use crate::{KeyError, PublicKey};

/// Characters in a server name: 256 bits in fives.
const NAME_LENGTH: usize = 52;

/// z-base-32: lower case, most significant bit first, no padding; trailing bits must be zero.
/// The alphabet is a constant, so building it cannot fail; were it wrong, every test here would say so.
#[expect(clippy::expect_used)]
pub(crate) static Z_BASE_32: LazyLock<Encoding> = LazyLock::new(|| {
    let mut specification = Specification::new();
    specification.symbols.push_str("ybndrfg8ejkmcpqxot1uwisza345h769");
    specification.encoding().expect("the z-base-32 alphabet is valid")
});

/// Why a text is not a server name of ours.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// It has another length than 52 characters.
    #[error("a server name has 52 characters, not {0}")]
    Length(usize),
    /// It holds a character outside the z-base-32 alphabet, or its last character carries bits beyond the key.
    #[error("a server name is lower-case z-base-32 of 32 bytes")]
    Encoding,
    /// The 32 bytes are no usable key.
    #[error("the server name's key is unusable")]
    Key(#[source] KeyError),
}

/// The public half of an identity: what a server name says.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct IdentityPublicKey(PublicKey);

impl IdentityPublicKey {
    /// Takes 32 bytes as an identity key, if they are one.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        PublicKey::from_bytes(bytes).map(Self)
    }

    /// Reads a server name.
    pub fn from_server_name(name: &ServerName) -> Result<Self, NameError> {
        name.as_str().parse()
    }

    /// The 32 bytes.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }

    /// The key as one that verifies signatures.
    pub fn public_key(&self) -> &PublicKey {
        &self.0
    }

    /// The server name: 52 characters of z-base-32.
    pub fn server_name(&self) -> OwnedServerName {
        // Letters and digits alone are a valid host name, so ruma's parser has nothing to refuse.
        #[expect(clippy::expect_used)]
        ServerName::parse(self.to_string()).expect("z-base-32 is a valid server name")
    }
}

impl From<PublicKey> for IdentityPublicKey {
    fn from(key: PublicKey) -> Self {
        Self(key)
    }
}

impl FromStr for IdentityPublicKey {
    type Err = NameError;

    fn from_str(name: &str) -> Result<Self, NameError> {
        if name.len() != NAME_LENGTH {
            return Err(NameError::Length(name.chars().count()));
        }
        let mut bytes = [0; 32];
        let written = Z_BASE_32.decode_mut(name.as_bytes(), &mut bytes);
        if written != Ok(bytes.len()) {
            return Err(NameError::Encoding);
        }
        Self::from_bytes(&bytes).map_err(NameError::Key)
    }
}

impl fmt::Display for IdentityPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&Z_BASE_32.encode(self.as_bytes()))
    }
}

impl fmt::Debug for IdentityPublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
