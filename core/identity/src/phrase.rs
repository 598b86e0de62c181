//! The recovery phrase: an identity key as 24 English words (BIP 39), which a person can write down. It restores the
//! identity only; node and transport keys are made anew.

use std::fmt;

use bip39::{Language, Mnemonic};
use zeroize::Zeroizing;

use crate::IdentityKey;

/// Words in a phrase: 256 bits and a checksum of 8.
const WORDS: usize = 24;

/// Longest text looked at; 24 words of at most 8 letters need 215 bytes.
const MAX_TEXT: usize = 1024;

/// Why words are not a recovery phrase.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PhraseError {
    /// There are not 24 words.
    #[error("a recovery phrase has 24 words, not {0}")]
    WordCount(usize),
    /// A word is not in the BIP 39 English list. The position counts from 1; the word itself is not repeated, because it
    /// may be part of a secret.
    #[error("word {0} is not in the word list; check its spelling")]
    UnknownWord(usize),
    /// All words are known, but they do not belong together.
    #[error("the words do not belong together; check their order and each word")]
    Checksum,
}

/// Twenty-four words. Shown only on purpose: `Debug` hides them.
pub struct RecoveryPhrase(Mnemonic);

impl RecoveryPhrase {
    /// The phrase of an identity.
    pub fn of(identity: &IdentityKey) -> Self {
        // BIP 39 takes 32 bytes of entropy whatever they are.
        #[expect(clippy::expect_used)]
        Self(Mnemonic::from_entropy_in(Language::English, identity.to_bytes().as_ref()).expect("32 bytes are 24 words"))
    }

    /// Reads a phrase: words in any case, separated by any white space.
    pub fn parse(text: &str) -> Result<Self, PhraseError> {
        if text.len() > MAX_TEXT {
            return Err(PhraseError::WordCount(text.split_whitespace().count()));
        }
        let words = Zeroizing::new(text.to_lowercase());
        let count = words.split_whitespace().count();
        if count != WORDS {
            return Err(PhraseError::WordCount(count));
        }
        let mnemonic = Mnemonic::parse_in_normalized(Language::English, &words).map_err(|error| match error {
            bip39::Error::UnknownWord(index) => PhraseError::UnknownWord(index + 1),
            _ => PhraseError::Checksum,
        })?;
        Ok(Self(mnemonic))
    }

    /// The identity that the words mean.
    pub fn identity(&self) -> IdentityKey {
        let (entropy, _) = self.0.to_entropy_array();
        let entropy = Zeroizing::new(entropy);
        let mut secret = Zeroizing::new([0; 32]);
        secret.copy_from_slice(&entropy[..32]);
        IdentityKey::from_bytes(&secret)
    }

    /// The words, in order.
    pub fn words(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.0.words()
    }
}

/// The words with single spaces between them.
impl fmt::Display for RecoveryPhrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for RecoveryPhrase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecoveryPhrase")
    }
}
