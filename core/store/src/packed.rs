//! Packs ascending numbers into few bytes, for the columns that hold states and auth events. It knows no SQL.
//!
//! Every number is an unsigned LEB128 varint; keys and event numbers that ascend are kept as differences.

use crate::StoreError;

/// Packs `(key, event)` pairs that ascend by key. An event of 0 says that the key is absent.
pub(crate) fn pack_pairs(pairs: &[(i64, i64)]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(pairs.len() * 5);
    let mut last = 0;
    for &(key, event) in pairs {
        push(&mut bytes, key - last);
        push(&mut bytes, event);
        last = key;
    }
    bytes
}

/// Unpacks what [`pack_pairs`] packed.
pub(crate) fn unpack_pairs(bytes: &[u8]) -> Result<Vec<(i64, i64)>, StoreError> {
    pairs(bytes).collect()
}

/// The event under a key in what [`pack_pairs`] packed.
pub(crate) fn find_pair(bytes: &[u8], wanted: i64) -> Result<Option<i64>, StoreError> {
    for pair in pairs(bytes) {
        let (key, event) = pair?;
        if key >= wanted {
            return Ok((key == wanted).then_some(event));
        }
    }
    Ok(None)
}

/// Packs numbers in ascending order.
pub(crate) fn pack_numbers(numbers: &mut [i64]) -> Vec<u8> {
    numbers.sort_unstable();
    let mut bytes = Vec::with_capacity(numbers.len() * 3);
    let mut last = 0;
    for &number in &*numbers {
        push(&mut bytes, number - last);
        last = number;
    }
    bytes
}

/// Unpacks what [`pack_numbers`] packed.
pub(crate) fn unpack_numbers(mut bytes: &[u8]) -> Result<Vec<i64>, StoreError> {
    let mut numbers = Vec::with_capacity(bytes.len() / 2);
    let mut last = 0;
    while !bytes.is_empty() {
        last = step(last, &mut bytes)?;
        numbers.push(last);
    }
    Ok(numbers)
}

fn pairs(mut bytes: &[u8]) -> impl Iterator<Item = Result<(i64, i64), StoreError>> {
    let mut last = 0;
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let pair = step(last, &mut bytes).and_then(|key| {
            last = key;
            Ok((key, pull(&mut bytes)?))
        });
        if pair.is_err() {
            bytes = &[];
        }
        Some(pair)
    })
}

fn push(bytes: &mut Vec<u8>, number: i64) {
    // Row numbers and their differences are never negative.
    let mut rest = number.unsigned_abs();
    while rest >= 0x80 {
        bytes.push((rest as u8 & 0x7f) | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
}

fn pull(bytes: &mut &[u8]) -> Result<i64, StoreError> {
    let mut number: i64 = 0;
    for shift in (0..63).step_by(7) {
        let Some((&byte, rest)) = bytes.split_first() else {
            break;
        };
        *bytes = rest;
        number |= i64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err(garbage())
}

fn step(last: i64, bytes: &mut &[u8]) -> Result<i64, StoreError> {
    last.checked_add(pull(bytes)?).ok_or_else(garbage)
}

fn garbage() -> StoreError {
    StoreError::Corrupt {
        what: "packed numbers",
        reason: "cut short or out of range".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn pairs_come_back(map: std::collections::BTreeMap<u32, u32>) {
            let pairs: Vec<(i64, i64)> = map.iter().map(|(&key, &event)| (key.into(), event.into())).collect();
            let bytes = pack_pairs(&pairs);
            prop_assert_eq!(unpack_pairs(&bytes).unwrap(), pairs.clone());
            for (key, event) in pairs {
                prop_assert_eq!(find_pair(&bytes, key).unwrap(), Some(event));
                let absent = !map.contains_key(&(key as u32 + 1));
                prop_assert_eq!(find_pair(&bytes, key + 1).unwrap().is_none(), absent);
            }
        }

        #[test]
        fn numbers_come_back(set: std::collections::BTreeSet<u32>) {
            let mut numbers: Vec<i64> = set.into_iter().rev().map(i64::from).collect();
            let bytes = pack_numbers(&mut numbers);
            prop_assert_eq!(unpack_numbers(&bytes).unwrap(), numbers);
        }

        #[test]
        fn garbage_is_refused_or_read_but_never_panics(bytes: Vec<u8>) {
            let _ = unpack_pairs(&bytes);
            let _ = unpack_numbers(&bytes);
            let _ = find_pair(&bytes, 7);
        }
    }
}
