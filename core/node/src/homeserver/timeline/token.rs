//! Writes and reads the tokens that clients keep their place with. A token is a place, never a permission.

use std::{fmt, str::FromStr};

use kith_store::Seq;

/// A token that this server never wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("unknown token")]
pub(crate) struct UnknownToken;

/// How far a client has read everything that `/sync` tells: `s<stream>_<ephemeral>`, with `_<to-device>` after it when
/// messages to its device wait beyond what one answer held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SyncToken {
    /// What is committed up to here is told.
    pub(crate) seq: Seq,
    /// Typing and presence, which live in memory, are told up to here.
    pub(crate) ephemeral: u64,
    /// Messages to the device are told up to here. Never beyond `seq`.
    pub(crate) to_device: Seq,
}

impl fmt::Display for SyncToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s{}_{}", self.seq.0, self.ephemeral)?;
        if self.to_device != self.seq {
            write!(f, "_{}", self.to_device.0)?;
        }
        Ok(())
    }
}

impl FromStr for SyncToken {
    type Err = UnknownToken;

    fn from_str(token: &str) -> Result<Self, UnknownToken> {
        let mut parts = token.strip_prefix('s').ok_or(UnknownToken)?.split('_');
        let seq = Seq(number(parts.next())?);
        let ephemeral = number(parts.next())?;
        let to_device = match parts.next() {
            None => seq,
            part => Seq(number(part)?),
        };
        if parts.next().is_some() || seq.0 < 0 || to_device.0 < 0 || to_device > seq {
            return Err(UnknownToken);
        }
        Ok(Self {
            seq,
            ephemeral,
            to_device,
        })
    }
}

/// A place between two events of a room's timeline: `t<stream>`, just after the event at that place. `/messages` reads
/// away from it, in either direction. A sync token is such a place too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TimelineToken(pub(crate) i64);

impl fmt::Display for TimelineToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{}", self.0)
    }
}

impl FromStr for TimelineToken {
    type Err = UnknownToken;

    fn from_str(token: &str) -> Result<Self, UnknownToken> {
        match token.strip_prefix('t') {
            Some(stream) => Ok(Self(number(Some(stream))?)),
            None => Ok(Self(token.parse::<SyncToken>()?.seq.0)),
        }
    }
}

/// Reads a number as this module writes it: no plus sign, no leading zero, so that each place has one name.
fn number<T: FromStr + ToString>(text: Option<&str>) -> Result<T, UnknownToken> {
    let text = text.ok_or(UnknownToken)?;
    let number: T = text.parse().map_err(|_| UnknownToken)?;
    if number.to_string() == text {
        Ok(number)
    } else {
        Err(UnknownToken)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn foreign_tokens_are_unknown() {
        let foreign = [
            "",
            "s",
            "s1",
            "s_",
            "s1_",
            "s1_2_",
            "s1_2_0_0",
            "s-1_2",
            "s1_-2",
            "s1_2_3",
            "s01_2",
            "s+1_2",
            " s1_2",
            "S1_2",
            "t1_2",
            "1_2",
            "s99999999999999999999_1",
        ];
        for token in foreign {
            assert_eq!(token.parse::<SyncToken>(), Err(UnknownToken), "{token}");
        }
        for token in [
            "",
            "t",
            "t-",
            "t1.5",
            "t--1",
            "t+1",
            "x1",
            "t 1",
            "t99999999999999999999",
        ] {
            assert_eq!(token.parse::<TimelineToken>(), Err(UnknownToken), "{token}");
        }
    }

    proptest! {
        #[test]
        fn sync_tokens_round_trip(seq in 0..i64::MAX, ephemeral: u64, behind in 0..1000i64) {
            let to_device = Seq((seq - behind).max(0));
            let token = SyncToken { seq: Seq(seq), ephemeral, to_device };
            prop_assert_eq!(token.to_string().parse::<SyncToken>(), Ok(token));
            prop_assert_eq!(token.to_string().parse::<TimelineToken>(), Ok(TimelineToken(seq)));
        }

        #[test]
        fn timeline_tokens_round_trip(stream: i64) {
            let token = TimelineToken(stream);
            prop_assert_eq!(token.to_string().parse::<TimelineToken>(), Ok(token));
        }

        #[test]
        fn anything_else_parses_to_what_prints_the_same(text in "[st]?[-_0-9]{0,12}") {
            if let Ok(token) = text.parse::<SyncToken>() {
                // A to-device place that equals the stream's is not written, yet harmless to read.
                let start = format!("s{}_{}", token.seq.0, token.ephemeral);
                prop_assert!(text.starts_with(&start));
            }
        }
    }
}
