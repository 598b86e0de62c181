//! Recovery phrases.

use kith_identity::{IdentityKey, PhraseError, RecoveryPhrase};
use proptest::prelude::*;

/// Vectors of BIP 39 (trezor/python-mnemonic, vectors.json): 256 bits of entropy and their words.
#[test]
fn phrases_are_bip_39() {
    let cases = [
        ([0x00; 32], format!("{}art", "abandon ".repeat(23))),
        ([0xff; 32], format!("{}vote", "zoo ".repeat(23))),
        (
            [0x80; 32],
            "letter advice cage absurd amount doctor acoustic avoid letter advice cage absurd amount doctor acoustic \
             avoid letter advice cage absurd amount doctor acoustic bless"
                .to_owned(),
        ),
    ];
    for (secret, words) in cases {
        let phrase = RecoveryPhrase::of(&IdentityKey::from_bytes(&secret));
        assert_eq!(phrase.to_string(), words);
        assert_eq!(*RecoveryPhrase::parse(&words).unwrap().identity().to_bytes(), secret);
    }
}

#[test]
fn a_wrong_phrase_says_what_is_wrong() {
    let good = RecoveryPhrase::of(&IdentityKey::from_bytes(&[0x80; 32])).to_string();
    let cases = [
        (String::new(), PhraseError::WordCount(0)),
        ("letter advice".to_owned(), PhraseError::WordCount(2)),
        ("abandon ".repeat(11) + "about", PhraseError::WordCount(12)),
        (format!("{good} letter"), PhraseError::WordCount(25)),
        ("a ".repeat(10_000), PhraseError::WordCount(10_000)),
        (good.replacen("advice", "advise", 1), PhraseError::UnknownWord(2)),
        (good.replacen("bless", "blesss", 1), PhraseError::UnknownWord(24)),
        (good.replacen("advice", "zoo", 1), PhraseError::Checksum),
        (
            good.replacen("letter advice", "advice letter", 1),
            PhraseError::Checksum,
        ),
    ];
    for (words, expected) in cases {
        assert_eq!(RecoveryPhrase::parse(&words).unwrap_err(), expected, "{words:.40}");
    }
}

#[test]
fn case_and_spacing_do_not_matter() {
    let good = RecoveryPhrase::of(&IdentityKey::from_bytes(&[0x80; 32])).to_string();
    let written = format!("  {}\n", good.to_uppercase().replace(' ', " \t\n"));
    assert_eq!(RecoveryPhrase::parse(&written).unwrap().to_string(), good);
}

#[test]
fn debug_output_and_errors_hold_no_word() {
    let phrase = RecoveryPhrase::of(&IdentityKey::from_bytes(&[0x80; 32]));
    let error = RecoveryPhrase::parse(&phrase.to_string().replacen("cage", "kage", 1)).unwrap_err();
    for shown in [format!("{phrase:?}"), format!("{error} {error:?}")] {
        assert!(!shown.contains("letter") && !shown.contains("kage"), "{shown}");
    }
}

proptest! {
    #[test]
    fn phrases_restore_the_identity(secret: [u8; 32]) {
        let identity = IdentityKey::from_bytes(&secret);
        let phrase = RecoveryPhrase::of(&identity);
        prop_assert_eq!(phrase.words().count(), 24);
        let restored = RecoveryPhrase::parse(&phrase.to_string()).unwrap().identity();
        prop_assert_eq!(restored.public(), identity.public());
    }
}
