//! Short JSON made shorter: zstd with a dictionary that every node has, and with what both ends remember of what was said
//! before. Pure, and knows nothing of who speaks; it never takes more memory than its caller allows.
//!
//! A packed piece is one zstd frame (RFC 8878) without the four bytes that every frame begins with. Its dictionary is
//! [`DICTIONARY`] and behind that what was said before, oldest first. `compact/make.py` makes the dictionary of
//! `compact/federation.txt`; both ends must have the same one, so that it is a part of version 1 of the protocol.
//!
//! The content hashes of a transaction's events are left out where the other end finds the same ones, and what is remembered of a
//! transaction ([`memory`]) includes the ids of its events, which the next event names.

mod derived;

use std::{io, sync::OnceLock};

use zstd::{
    bulk::{Compressor, Decompressor},
    dict::{DecoderDictionary, EncoderDictionary},
};

/// What messages between nodes have in common, as zstd's dictionaries are written (RFC 8878, section 5).
pub const DICTIONARY: &[u8] = include_bytes!("compact/federation.zdict");

/// The first of zstd's levels that finds all there is to find in so little.
const LEVEL: i32 = 6;

/// What every frame begins with.
const MAGIC: [u8; 4] = 0xFD2F_B528_u32.to_le_bytes();

/// What is unpacked is not what anybody packed, or was packed with other things said before, or is too long.
#[derive(Debug, thiserror::Error)]
#[error("it cannot be unpacked: {0}")]
pub struct UnpackError(#[source] io::Error);

/// What is to be remembered of a piece for those that follow it.
pub fn memory(plain: &[u8]) -> Vec<u8> {
    let mut memory = derived::without_hashes(plain).unwrap_or_else(|| plain.to_vec());
    memory.extend_from_slice(derived::event_ids(plain).as_bytes());
    memory
}

/// Packs a piece, if that makes it smaller. `before` are the [memories](memory) of what was said before, oldest first; a few
/// thousand bytes of them help, more cost more than they save.
pub fn pack(plain: &[u8], before: &[impl AsRef<[u8]>]) -> Option<Vec<u8>> {
    let frame = compress(&derived::without_hashes(plain)?, before).ok()?;
    // A frame without its magic number would be taken for something else.
    let packed = frame.strip_prefix(&MAGIC)?;
    (packed.len() < plain.len()).then(|| packed.to_vec())
}

fn compress(plain: &[u8], before: &[impl AsRef<[u8]>]) -> io::Result<Vec<u8>> {
    static PREPARED: OnceLock<EncoderDictionary<'static>> = OnceLock::new();
    let mut compressor = Compressor::new(LEVEL)?;
    if before.is_empty() {
        let prepared = PREPARED.get_or_init(|| EncoderDictionary::copy(DICTIONARY, LEVEL));
        compressor.set_prepared_dictionary(prepared)?;
    } else {
        compressor.set_dictionary(LEVEL, &dictionary(before))?;
    }
    compressor.include_dictid(false)?;
    compressor.compress(plain)
}

/// Takes back what [`pack`] was given. Takes memory for what the frame says it holds, or for `max` bytes, whichever is less, and
/// some times as much to find hashes that were left out; gives an error for more.
pub fn unpack(packed: &[u8], before: &[impl AsRef<[u8]>], max: usize) -> Result<Vec<u8>, UnpackError> {
    let plain = decompress(packed, before, max).map(|shorter| derived::with_hashes(&shorter));
    match plain {
        Ok(plain) if plain.len() > max => Err(UnpackError(io::ErrorKind::FileTooLarge.into())),
        plain => plain.map_err(UnpackError),
    }
}

fn decompress(packed: &[u8], before: &[impl AsRef<[u8]>], max: usize) -> io::Result<Vec<u8>> {
    static PREPARED: OnceLock<DecoderDictionary<'static>> = OnceLock::new();
    let mut decompressor = if before.is_empty() {
        let prepared = PREPARED.get_or_init(|| DecoderDictionary::copy(DICTIONARY));
        Decompressor::with_prepared_dictionary(prepared)?
    } else {
        Decompressor::with_dictionary(&dictionary(before))?
    };
    decompressor.decompress(&[&MAGIC, packed].concat(), max)
}

/// The dictionary's head says nothing of how long its content is.
fn dictionary(before: &[impl AsRef<[u8]>]) -> Vec<u8> {
    let mut dictionary = DICTIONARY.to_vec();
    for said in before {
        dictionary.extend_from_slice(said.as_ref());
    }
    dictionary
}

#[cfg(test)]
mod tests {
    use data_encoding::HEXLOWER;
    use proptest::prelude::*;
    use sha2::{Digest, Sha256};

    use super::*;

    const NOTHING: &[&[u8]] = &[];

    fn transaction(number: u64) -> String {
        let noise = |salt: &str| HEXLOWER.encode(&Sha256::digest(format!("{salt} {number}")));
        format!(
            r#"{{"origin":"a","origin_server_ts":{},"pdus":[{{"auth_events":["$x"],"content":{{"body":"{}","msgtype":"m.text"}},"depth":{number},"hashes":{{"sha256":"{}"}},"sender":"@a:a","type":"m.room.message"}}]}}"#,
            1_764_000_000_000 + 1000 * number,
            noise("said"),
            noise("hash"),
        )
    }

    #[test]
    fn the_dictionary_is_a_part_of_the_protocol() {
        let hash = HEXLOWER.encode(&Sha256::digest(DICTIONARY));
        assert_eq!(
            hash, "47002a56dced023eb6a087028e51e83ce7e18c2990e22ea02b7011db107210f5",
            "another dictionary is another version"
        );
        let text = include_str!("compact/federation.txt").replace('\n', "");
        assert!(DICTIONARY.ends_with(text.as_bytes()), "run compact/make.py");
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_back(pieces in prop::collection::vec("[ -~]{0,300}", 1..6), times in 1..20_usize) {
            let (plain, before) = pieces.split_first().unwrap();
            let plain = plain.repeat(times);
            if let Some(packed) = pack(plain.as_bytes(), before) {
                prop_assert!(packed.len() < plain.len());
                prop_assert_eq!(unpack(&packed, before, plain.len()).unwrap(), plain.as_bytes());
                prop_assert!(unpack(&packed, before, plain.len() - 1).is_err());
            }
        }

        #[test]
        fn what_nobody_packed_costs_no_more_than_is_allowed(bytes: Vec<u8>, before: Vec<u8>, max in 0..5000_usize) {
            for before in [vec![], vec![before]] {
                if let Ok(plain) = unpack(&bytes, &before, max) {
                    prop_assert!(plain.len() <= max);
                }
            }
        }
    }

    #[test]
    fn what_was_said_before_need_not_be_said_again() {
        let [first, second] = [1, 2].map(transaction);
        let alone = pack(second.as_bytes(), NOTHING).unwrap();
        let after = pack(second.as_bytes(), &[&first]).unwrap();
        // Two hashes of 32 bytes are new.
        assert!(
            alone.len() < second.len() * 2 / 3,
            "{} of {}",
            alone.len(),
            second.len()
        );
        assert!(after.len() < 64 + 50, "{}", after.len());
        assert_eq!(unpack(&after, &[&first], 1000).unwrap(), second.as_bytes());
        assert_ne!(unpack(&after, NOTHING, 1000).ok(), Some(second.into_bytes()));
    }

    #[test]
    fn a_frame_is_bounded_whatever_it_says() {
        let packed = |frame: Vec<u8>| frame.strip_prefix(&MAGIC).unwrap().to_vec();
        let bomb = packed(zstd::bulk::compress(&vec![0; 1 << 20], 19).unwrap());
        let mut unmarked = zstd::Encoder::new(Vec::new(), 1).unwrap();
        unmarked.include_contentsize(false).unwrap();
        std::io::copy(&mut &vec![0; 1 << 20][..], &mut unmarked).unwrap();
        let unmarked = packed(unmarked.finish().unwrap());
        let good = pack(transaction(1).as_bytes(), NOTHING).unwrap();
        let twice = [&good[..], &MAGIC, &good].concat();
        let cases = [&bomb[..], &unmarked, &good[..good.len() - 1], b"", b"garbage", &twice];
        for case in cases {
            assert!(unpack(case, NOTHING, transaction(1).len()).is_err(), "{case:?}");
        }
    }
}
