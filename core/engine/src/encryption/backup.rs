//! Which of two uploads of one room key a backup keeps. It never looks into the encrypted part.

/// What decides how good a backed-up room key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RoomKeyRank {
    /// Whether the device that backed the key up had verified the device that it is from.
    pub is_verified: bool,
    /// The first message that the key decrypts.
    pub first_message_index: u64,
    /// How many times devices passed the key on.
    pub forwarded_count: u64,
}

impl RoomKeyRank {
    /// Whether a key of this rank takes the place of one that the backup has.
    ///
    /// Client-server API, "Server-side key backups": a verified key beats an unverified one, then the lower first message
    /// index wins, then the lower count of forwards.
    pub fn replaces(self, kept: Self) -> bool {
        let order = |rank: Self| (!rank.is_verified, rank.first_message_index, rank.forwarded_count);
        order(self) < order(kept)
    }
}

#[cfg(test)]
mod tests {
    use super::RoomKeyRank;

    #[test]
    fn better_keys_replace_worse_ones() {
        let rank = |(is_verified, first_message_index, forwarded_count)| RoomKeyRank {
            is_verified,
            first_message_index,
            forwarded_count,
        };
        let kept = rank((false, 10, 5));
        for (upload, replaces) in [
            ((false, 10, 5), false),
            ((true, 99, 99), true),
            ((false, 9, 99), true),
            ((false, 11, 0), false),
            ((false, 10, 4), true),
            ((false, 10, 6), false),
        ] {
            assert_eq!(rank(upload).replaces(kept), replaces, "{upload:?}");
        }
        assert!(!rank((false, 0, 0)).replaces(rank((true, 10, 5))));
    }
}
