//! How much somebody may ask for in a time: so much at once, and so much again each second. It reads no clock and keeps
//! nobody waiting.

use std::{collections::HashMap, time::Duration};

use crate::limits::MAX_ALLOWED_NAMES;

/// So much at once, and one more each time that `refill` has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allowance {
    /// Units at once. One thing must never cost more.
    pub burst: u32,
    /// Until one unit more is allowed.
    pub refill: Duration,
}

/// What is left of one allowance to each of many names (a token bucket for each). Bounded: beyond
/// [`MAX_ALLOWED_NAMES`] names that have not been still for a while, further ones share one allowance.
#[derive(Debug)]
pub struct Allowances {
    allowance: Allowance,
    /// When a name's allowance is whole again; absent: it is now.
    whole_again: HashMap<String, Duration>,
}

impl Allowances {
    /// Everybody has the whole allowance.
    pub fn new(allowance: Allowance) -> Self {
        Self {
            allowance,
            whole_again: HashMap::new(),
        }
    }

    /// Takes so many units from a name's allowance; if they are not left, takes nothing and says how long to wait.
    pub fn take(&mut self, name: &str, units: u32, now: Duration) -> Result<(), Duration> {
        let Allowance { burst, refill } = self.allowance;
        if self.is_crowded(name) {
            self.whole_again.retain(|_, at| *at > now);
        }
        let name = if self.is_crowded(name) { "" } else { name };
        let before = self.whole_again.get(name).copied().unwrap_or_default().max(now);
        let after = before + refill.saturating_mul(units.min(burst));
        let most = now + refill.saturating_mul(burst);
        if after > most {
            return Err(after - most);
        }
        self.whole_again.insert(name.to_owned(), after);
        Ok(())
    }

    /// Gives a name its whole allowance back.
    pub fn restore(&mut self, name: &str) {
        self.whole_again.remove(name);
    }

    fn is_crowded(&self, name: &str) -> bool {
        self.whole_again.len() >= MAX_ALLOWED_NAMES && !self.whole_again.contains_key(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALLOWANCE: Allowance = Allowance {
        burst: 10,
        refill: Duration::from_secs(6),
    };

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(1_000 + seconds)
    }

    #[test]
    fn an_allowance_runs_out_and_refills() {
        let mut allowances = Allowances::new(ALLOWANCE);
        for (units, second, expected) in [
            (7, 0, Ok(())),
            (4, 0, Err(6)),
            (3, 0, Ok(())),
            (1, 0, Err(6)),
            (1, 5, Err(1)),
            (1, 6, Ok(())),
            (1, 6, Err(6)),
            (10, 6, Err(60)),
            (10, 66, Ok(())),
            // What costs more than there can be costs all of it, and does not wait for ever.
            (99, 67, Err(59)),
            (99, 126, Ok(())),
        ] {
            let expected = expected.map_err(Duration::from_secs);
            assert_eq!(allowances.take("a", units, at(second)), expected, "{units} at {second}");
        }
        assert_eq!(allowances.take("b", 10, at(126)), Ok(()));
        allowances.restore("a");
        assert_eq!(allowances.take("a", 10, at(126)), Ok(()));
    }

    #[test]
    fn many_names_cannot_grow_it() {
        let mut allowances = Allowances::new(ALLOWANCE);
        for name in 0..MAX_ALLOWED_NAMES {
            allowances.take(&name.to_string(), 1, at(0)).unwrap();
        }
        allowances.take("one more", 10, at(0)).unwrap();
        allowances.take("and another", 1, at(0)).unwrap_err();
        assert_eq!(allowances.whole_again.len(), MAX_ALLOWED_NAMES + 1);
        allowances.take("and another", 1, at(60)).unwrap();
        assert!(allowances.whole_again.len() < 3);
    }
}
