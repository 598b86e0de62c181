//! The coding of short JSON bodies, `kith-zstd`: what `kith_identity::compact` makes of them, behind a number that says which
//! earlier bodies of the same stream of requests it needs. Knows no route, and sends nothing.
//!
//! The number is LEB128: in the upper bits which body of its stream this is, from 1; in the lower four which of the four before it
//! are used, the lowest for the last one. A sender uses only those whose requests were answered with success, so that the
//! other end has them; a body that is not counted, as in an answer, has the number 0.

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use bytes::{Buf, Bytes};
use kith_identity::compact::{self, UnpackError};

/// Longest body that is coded so.
pub(crate) const MAX_SHORT: usize = 16 << 10;

/// Longest body that is remembered: what is said over and over is shorter.
const MAX_REMEMBERED: usize = 2 << 10;

/// Bodies that are used for the next one.
const USED: u64 = 4;

/// Bodies that are remembered by whoever heard them: requests that are under way at once may be read in any order.
const REMEMBERED: usize = 8;

/// Bytes of the longest number.
const MAX_NUMBER: usize = 10;

/// Why a short body cannot be decoded.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ShortError {
    #[error("it does not begin with a number")]
    Number,
    #[error("it builds upon what was not said here, or is forgotten")]
    Forgotten,
    #[error(transparent)]
    Packed(#[from] UnpackError),
}

/// The latest bodies of one stream, of which either end keeps its own list.
#[derive(Debug, Default)]
pub(crate) struct Said(Mutex<List>);

#[derive(Debug, Default)]
struct List {
    /// The number of the last body that was coded here.
    last: u64,
    /// What is remembered of each.
    bodies: BTreeMap<u64, Bytes>,
}

impl Said {
    /// Codes the next body of the stream, if that makes it smaller, and gives its number: [`Said::keep`] what was answered with
    /// success. One that is too long to be remembered has the number 0, for which that does nothing.
    pub(crate) fn encode(&self, body: &[u8]) -> Option<(Bytes, u64)> {
        if body.len() > MAX_REMEMBERED {
            return encode(body).map(|coded| (coded, 0));
        }
        let (number, used, before) = {
            let mut list = self.lock();
            list.last += 1;
            let number = list.last;
            let known = list.bodies.range(number.saturating_sub(USED)..number);
            let (mut used, mut before) = (0, Vec::new());
            for (earlier, body) in known {
                used |= 1 << (number - earlier - 1);
                before.push(body.clone());
            }
            (number, used, before)
        };
        let packed = compact::pack(body, &before)?;
        coded(number << USED | used, &packed, body.len()).map(|coded| (coded, number))
    }

    /// Decodes a body of the stream, and remembers it if it is counted.
    pub(crate) fn decode(&self, coded: Bytes, max: usize) -> Result<Bytes, ShortError> {
        let (head, packed) = split(coded)?;
        let (number, used) = (head >> USED, head & ((1 << USED) - 1));
        let before = self.before(number, used).ok_or(ShortError::Forgotten)?;
        let body: Bytes = compact::unpack(&packed, &before, max)?.into();
        self.keep(number, &body);
        Ok(body)
    }

    /// Remembers a body under its number.
    pub(crate) fn keep(&self, number: u64, body: &Bytes) {
        if number == 0 || body.len() > MAX_REMEMBERED {
            return;
        }
        let memory = compact::memory(body).into();
        let mut list = self.lock();
        list.bodies.insert(number, memory);
        if list.bodies.len() > REMEMBERED {
            list.bodies.pop_first();
        }
    }

    /// Builds upon nothing that was said so far: the other end does not remember it.
    pub(crate) fn forget(&self) {
        self.lock().bodies.clear();
    }

    /// The bodies that are used for one with this number, oldest first.
    fn before(&self, number: u64, used: u64) -> Option<Vec<Bytes>> {
        let list = self.lock();
        let places = (0..USED).rev().filter(|place| used & 1 << place != 0);
        places
            .map(|place| list.bodies.get(&number.checked_sub(place + 1)?).cloned())
            .collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, List> {
        // What it guards is whole at every step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Codes a body that is not counted, if that makes it smaller.
pub(crate) fn encode(body: &[u8]) -> Option<Bytes> {
    const NOTHING: &[Bytes] = &[];
    if body.len() > MAX_SHORT {
        return None;
    }
    coded(0, &compact::pack(body, NOTHING)?, body.len())
}

/// Decodes a body that is not counted.
pub(crate) fn decode(coded: Bytes, max: usize) -> Result<Bytes, ShortError> {
    Said::default().decode(coded, max)
}

fn coded(mut head: u64, packed: &[u8], limit: usize) -> Option<Bytes> {
    let mut coded = Vec::with_capacity(MAX_NUMBER + packed.len());
    while head >= 0x80 {
        coded.push(head as u8 | 0x80);
        head >>= 7;
    }
    coded.push(head as u8);
    coded.extend_from_slice(packed);
    (coded.len() < limit).then(|| coded.into())
}

/// The number and what follows it.
fn split(mut coded: Bytes) -> Result<(u64, Bytes), ShortError> {
    let mut head = 0_u64;
    for place in (0..64).step_by(7) {
        let byte = *coded.first().ok_or(ShortError::Number)?;
        coded.advance(1);
        head |= u64::from(byte & 0x7f)
            .checked_shl(place)
            .filter(|bits| bits >> place == u64::from(byte & 0x7f))
            .ok_or(ShortError::Number)?;
        if byte < 0x80 {
            return Ok((head, coded));
        }
    }
    Err(ShortError::Number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What does not change costs something the first time.
    const NAME: &str = "ybndrfg8ejkmcpqxot1uwisza345h769acegikmoqsuwy1357bdfh";

    fn body(number: usize) -> Bytes {
        format!(r#"{{"origin":"{NAME}","pdus":[{{"content":{{"body":"message {number}"}},"depth":{number}}}]}}"#).into()
    }

    /// Sends a body from one end to the other; says how long it was on its way.
    fn tell(told: &Said, heard: &Said, body: &Bytes) -> usize {
        let (coded, number) = told.encode(body).unwrap();
        assert_eq!(heard.decode(coded.clone(), MAX_SHORT).unwrap(), body);
        told.keep(number, body);
        coded.len()
    }

    #[test]
    fn each_body_is_coded_after_those_that_arrived() {
        let (told, heard) = (Said::default(), Said::default());
        let first = tell(&told, &heard, &body(1));
        let later: Vec<_> = (2..40).map(|number| tell(&told, &heard, &body(number))).collect();
        assert!(later.iter().all(|later| later * 2 < first), "{first}: {later:?}");

        // One is lost on its way: nothing builds upon it.
        told.encode(&body(40)).unwrap();
        assert!(tell(&told, &heard, &body(41)) * 2 < first);
        // Four under way at once, read in another order.
        let four = [42, 43, 44, 45].map(|number| told.encode(&body(number)).unwrap());
        for (coded, number) in four.into_iter().rev() {
            told.keep(number, &heard.decode(coded, MAX_SHORT).unwrap());
        }
        assert!(tell(&told, &heard, &body(46)) * 2 < first);
        // What is too long to be remembered passes all the same.
        let long: Bytes = body(47).repeat(30).into();
        tell(&told, &heard, &long);
        assert!(tell(&told, &heard, &body(48)) * 2 < first);
    }

    #[test]
    fn what_is_forgotten_is_said_and_can_be_said_anew() {
        let (told, heard) = (Said::default(), Said::default());
        tell(&told, &heard, &body(1));
        heard.forget();
        let (coded, _) = told.encode(&body(2)).unwrap();
        assert!(matches!(heard.decode(coded, MAX_SHORT), Err(ShortError::Forgotten)));
        told.forget();
        tell(&told, &heard, &body(2));
        tell(&told, &heard, &body(3));
    }

    #[test]
    fn numbers_and_memory_end_somewhere() {
        let heard = Said::default();
        let packed = encode(&body(1)).unwrap().slice(1..);
        let check = |head: &[u8], expected: fn(&Result<Bytes, ShortError>) -> bool| {
            let outcome = heard.decode([head, &packed].concat().into(), MAX_SHORT);
            assert!(expected(&outcome), "{head:?}: {outcome:?}");
        };
        check(&[0], Result::is_ok);
        check(&[0x80, 0], Result::is_ok);
        check(&[1], |outcome| matches!(outcome, Err(ShortError::Forgotten)));
        check(&[0x11], |outcome| matches!(outcome, Err(ShortError::Forgotten)));
        check(&[0xff; 11], |outcome| matches!(outcome, Err(ShortError::Number)));
        let mut largest = [0xff; 10];
        (largest[0], largest[9]) = (0xf0, 1);
        check(&largest, Result::is_ok);
        largest[9] = 2;
        check(&largest, |outcome| matches!(outcome, Err(ShortError::Number)));
        for number in 0..100_u8 {
            check(&[number << 4 | 0x80, number >> 3], Result::is_ok);
        }
        assert_eq!(heard.lock().bodies.len(), REMEMBERED);
        assert!(matches!(heard.decode(Bytes::new(), 1), Err(ShortError::Number)));
    }

    proptest! {
        #[test]
        fn any_bodies_arrive(bodies in prop::collection::vec((prop::collection::vec(32..127_u8, 0..200), 1..30_usize), 1..20)) {
            let (told, heard) = (Said::default(), Said::default());
            for (piece, times) in bodies {
                let body: Bytes = piece.repeat(times).into();
                let Some((coded, number)) = told.encode(&body) else { continue };
                prop_assert!(coded.len() < body.len());
                prop_assert_eq!(&heard.decode(coded, body.len()).unwrap(), &body);
                told.keep(number, &body);
            }
        }

        #[test]
        fn what_strangers_make_up_is_bounded(bodies: Vec<Vec<u8>>, max in 0..5000_usize) {
            let heard = Said::default();
            for coded in bodies {
                if let Ok(body) = heard.decode(coded.into(), max) {
                    prop_assert!(body.len() <= max);
                }
            }
        }
    }
}
