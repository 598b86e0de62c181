//! Which of two uploads of one room key a backup keeps. It never looks into the encrypted part.

/// How good a backed-up room key is: the least is the best.
///
/// Client-server API, "Server-side key backups": a verified key beats an unverified one, then the lower first message
/// index wins, then the lower count of forwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct RoomKeyRank {
    unverified: bool,
    first_message_index: u64,
    forwarded_count: u64,
}

impl RoomKeyRank {
    /// The rank of a key with this metadata.
    pub fn new(is_verified: bool, first_message_index: u64, forwarded_count: u64) -> Self {
        Self {
            unverified: !is_verified,
            first_message_index,
            forwarded_count,
        }
    }

    /// Whether a key of this rank takes the place of one that the backup has.
    pub fn replaces(self, kept: Self) -> bool {
        self < kept
    }
}

#[cfg(test)]
mod tests {
    use super::RoomKeyRank;

    #[test]
    fn better_keys_replace_worse_ones() {
        let kept = RoomKeyRank::new(false, 10, 5);
        for (upload, replaces) in [
            ((false, 10, 5), false),
            ((true, 99, 99), true),
            ((false, 9, 99), true),
            ((false, 11, 0), false),
            ((false, 10, 4), true),
            ((false, 10, 6), false),
        ] {
            let (verified, index, forwards) = upload;
            let rank = RoomKeyRank::new(verified, index, forwards);
            assert_eq!(rank.replaces(kept), replaces, "{upload:?}");
        }
        let verified = RoomKeyRank::new(true, 10, 5);
        assert!(!RoomKeyRank::new(false, 0, 0).replaces(verified));
    }
}
