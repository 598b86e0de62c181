//! Deterministic CBOR (RFC 8949, section 4.2.1) for everything of ours that goes over the wire: one value has exactly
//! one encoding, and any other is refused. Nothing is decoded past a size limit that the caller gives.

use ciborium::Value;
use serde::{Serialize, de::DeserializeOwned};

/// Arrays and maps nested deeper than this are refused; ours nest three deep.
const MAX_DEPTH: usize = 16;

/// Why bytes are not the CBOR they should be, or a value cannot be written as CBOR.
#[derive(Debug, thiserror::Error)]
pub enum CborError {
    /// The bytes exceed the limit for this structure.
    #[error("{found} bytes are more than the {limit} allowed")]
    TooLarge {
        /// Bytes found.
        found: usize,
        /// Bytes allowed.
        limit: usize,
    },
    /// The bytes do not decode as this structure.
    #[error("malformed CBOR: {0}")]
    Malformed(String),
    /// The bytes decode, but are not the one deterministic encoding of what they mean.
    #[error("not deterministic CBOR")]
    NotDeterministic,
}

/// The one deterministic encoding of `value`.
pub fn to_vec<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, CborError> {
    let value = Value::serialized(value).map_err(|error| CborError::Malformed(error.to_string()))?;
    write(&sorted(value)?)
}

/// Decodes `bytes`, which must be at most `limit` long, hold nothing else, and be the deterministic encoding of the
/// result (so unknown fields are refused too).
pub fn from_slice<T: Serialize + DeserializeOwned>(bytes: &[u8], limit: usize) -> Result<T, CborError> {
    if bytes.len() > limit {
        return Err(CborError::TooLarge {
            found: bytes.len(),
            limit,
        });
    }
    let mut rest = bytes;
    let value: T = ciborium::de::from_reader_with_recursion_limit(&mut rest, MAX_DEPTH).map_err(malformed)?;
    if !rest.is_empty() || to_vec(&value)? != bytes {
        return Err(CborError::NotDeterministic);
    }
    Ok(value)
}

fn malformed(error: ciborium::de::Error<std::io::Error>) -> CborError {
    use ciborium::de::Error::{Io, RecursionLimitExceeded, Semantic, Syntax};
    CborError::Malformed(match error {
        Io(_) => "cut short".to_owned(),
        Syntax(at) => format!("wrong at byte {at}"),
        Semantic(_, what) => what,
        RecursionLimitExceeded => "nested too deep".to_owned(),
    })
}

fn write(value: &Value) -> Result<Vec<u8>, CborError> {
    let mut bytes = Vec::new();
    ciborium::into_writer(value, &mut bytes).map_err(|error| CborError::Malformed(error.to_string()))?;
    Ok(bytes)
}

/// Section 4.2.1: "The keys in every map MUST be sorted in the bytewise lexicographic order of their deterministic
/// encodings." Integers and lengths are already as short as they can be: ciborium writes no other.
fn sorted(value: Value) -> Result<Value, CborError> {
    Ok(match value {
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect::<Result<_, _>>()?),
        Value::Map(entries) => {
            let mut keyed = entries
                .into_iter()
                .map(|(key, value)| Ok((write(&key)?, key, sorted(value)?)))
                .collect::<Result<Vec<_>, CborError>>()?;
            keyed.sort_by(|(a, ..), (b, ..)| a.cmp(b));
            Value::Map(keyed.into_iter().map(|(_, key, value)| (key, value)).collect())
        }
        other => other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sample {
        longer: u64,
        b: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        a: Option<String>,
    }

    #[test]
    fn map_keys_are_sorted_by_their_encoding() {
        let sample = Sample {
            longer: 500,
            b: 1,
            a: Some("x".into()),
        };
        assert_eq!(
            to_vec(&sample).unwrap(),
            b"\xa3\x61a\x61x\x61b\x01\x66longer\x19\x01\xf4"
        );
    }

    #[test]
    fn only_the_deterministic_encoding_is_read() {
        let cases: &[(&[u8], bool, &str)] = &[
            (b"\xa2\x61b\x01\x66longer\x02", true, "as written here"),
            (b"\xa2\x66longer\x02\x61b\x01", false, "keys out of order"),
            (
                b"\xa2\x61b\x18\x01\x66longer\x02",
                false,
                "an integer longer than needed",
            ),
            (b"\xbf\x61b\x01\x66longer\x02\xff", false, "an indefinite length"),
            (b"\xa3\x61b\x01\x61b\x01\x66longer\x02", false, "a duplicate key"),
            (b"\xa3\x61b\x01\x61c\x01\x66longer\x02", false, "an unknown field"),
            (
                b"\xa3\x61a\xf6\x61b\x01\x66longer\x02",
                false,
                "an absent field written as null",
            ),
            (b"\xa2\x61b\x01\x66longer\x02\x00", false, "bytes left over"),
            (b"\xa2\x61b\x01\x66longer", false, "cut short"),
            (b"\xa2\x61b\x20\x66longer\x02", false, "a negative number"),
            (b"\xd8\x2a\xa2\x61b\x01\x66longer\x02", false, "a tag"),
            (b"\xbb\xff\xff\xff\xff\xff\xff\xff\xff", false, "a map of 2^64 entries"),
            (b"", false, "nothing"),
        ];
        for (bytes, accepted, what) in cases {
            assert_eq!(from_slice::<Sample>(bytes, 64).is_ok(), *accepted, "{what}");
        }
    }

    #[test]
    fn size_comes_before_content() {
        let error = from_slice::<Sample>(&[0xff; 65], 64).unwrap_err();
        assert!(matches!(error, CborError::TooLarge { found: 65, limit: 64 }));
    }

    #[test]
    fn nesting_is_bounded() {
        let deep = vec![0x81; 4096];
        assert!(from_slice::<Vec<u8>>(&deep, 4096).is_err());
    }
}
