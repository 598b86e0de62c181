//! Which of a room's forward extremities count, where there are more than are worth their cost: some make the room's current
//! state, some a new event builds upon. It reads no room.
//!
//! The choice depends on the extremities alone, so that servers that hold the same ones choose the same. It gives every
//! server its turn, so that a server which makes thousands of them hides nobody else's; and among those of one server it
//! prefers lesser ids, which nobody can make ever lesser: of `n` forks of one server only about `log n` change the choice
//! when they arrive.

use std::{
    collections::{BTreeMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use ruma::{OwnedEventId, ServerName};

use crate::{
    StateId,
    limits::{MAX_PREV_EVENTS, MAX_RESOLVED_OF_ONE_SERVER},
};

/// Stands for the server of an event's sender, within one process. Servers that happened to share one would share their
/// turn, which does no harm.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Author(u64);

impl Author {
    /// The one that stands for this server.
    pub fn of(server: &ServerName) -> Self {
        Self::named(server.as_str())
    }

    /// [`Author::of`] a name that is known to be one.
    pub fn named(server: &str) -> Self {
        let mut hasher = DefaultHasher::new();
        server.hash(&mut hasher);
        Self(hasher.finish())
    }
}

/// A forward extremity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extremity {
    /// The event.
    pub event: OwnedEventId,
    /// The state after it; none for an event that is not kept yet and whose state is a new one.
    pub state: Option<StateId>,
    /// Whose it is.
    pub author: Author,
    /// Whether its state rests upon another server's word.
    pub told: bool,
}

/// The extremities of which the current state is made: all, as long as their states are no more than one event could join;
/// else a few of each server's.
pub(crate) fn resolved<'a>(all: &[&'a Extremity]) -> Vec<&'a Extremity> {
    let states: HashSet<Option<StateId>> = all.iter().map(|extremity| extremity.state).collect();
    if states.len() <= MAX_PREV_EVENTS {
        return all.to_vec();
    }
    in_turn(all, MAX_PREV_EVENTS, MAX_RESOLVED_OF_ONE_SERVER)
}

/// The extremities that a new event of a server builds upon, at the most so many. Its own come first, so that what a server
/// says always rests upon what it said before.
pub(crate) fn to_build_upon<'a>(all: &[&'a Extremity], own: Option<Author>, limit: usize) -> Vec<&'a Extremity> {
    if all.len() <= limit {
        return all.to_vec();
    }
    let (own, others): (Vec<_>, Vec<_>) = all.iter().partition(|extremity| Some(extremity.author) == own);
    let mut chosen = in_turn(&own, limit / 2, limit / 2);
    chosen.extend(in_turn(&others, limit - chosen.len(), limit));
    chosen
}

/// At the most `limit` of these, each author in turn, in the order of ids; of one author at the most `of_one`.
fn in_turn<'a>(all: &[&'a Extremity], limit: usize, of_one: usize) -> Vec<&'a Extremity> {
    let mut by_author: BTreeMap<Author, BTreeMap<&OwnedEventId, &'a Extremity>> = BTreeMap::new();
    for &extremity in all {
        let least = by_author.entry(extremity.author).or_default();
        if least.len() < of_one || least.last_key_value().is_some_and(|(id, _)| extremity.event < **id) {
            least.insert(&extremity.event, extremity);
            if least.len() > of_one {
                least.pop_last();
            }
        }
    }
    let lists: Vec<Vec<&'a Extremity>> = by_author
        .into_values()
        .map(|least| least.into_values().collect())
        .collect();
    let mut chosen = Vec::with_capacity(limit);
    for turn in 0..of_one.min(limit) {
        let mut round: Vec<&'a Extremity> = lists.iter().filter_map(|list| list.get(turn).copied()).collect();
        if round.is_empty() {
            break;
        }
        round.sort_by(|a, b| a.event.cmp(&b.event));
        chosen.extend(round.into_iter().take(limit - chosen.len()));
    }
    chosen
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extremity(id: &str, state: i64, server: &str) -> Extremity {
        Extremity {
            event: format!("${id}").try_into().unwrap(),
            state: Some(StateId(state)),
            author: Author::named(server),
            told: false,
        }
    }

    /// So many forks of one server, each with a state of its own, and one event each of others.
    fn flood(forks: i64, others: &[&str]) -> Vec<Extremity> {
        let forks = (0..forks).map(|number| extremity(&format!("{number:05}"), number, "evil"));
        let others = others
            .iter()
            .zip(1..)
            .map(|(server, number)| extremity(&format!("z{server}"), -number, server));
        forks.chain(others).collect()
    }

    fn servers(chosen: &[&Extremity], server: &str) -> usize {
        chosen
            .iter()
            .filter(|extremity| extremity.author == Author::named(server))
            .count()
    }

    #[test]
    fn few_states_all_count_and_of_many_each_server_has_its_turn() {
        for (forks, evil) in [(3, 3), (18, 18), (19, 5), (5_000, 5)] {
            let all = flood(forks, &["a", "b"]);
            let chosen = resolved(&all.iter().collect::<Vec<_>>());
            assert_eq!(
                (servers(&chosen, "evil"), servers(&chosen, "a"), servers(&chosen, "b")),
                (evil, 1, 1),
                "{forks}"
            );
        }
        // Many events, one state: nothing is left out.
        let alike: Vec<Extremity> = (0..100).map(|n| extremity(&n.to_string(), 7, "a")).collect();
        assert_eq!(resolved(&alike.iter().collect::<Vec<_>>()).len(), 100);
    }

    #[test]
    fn the_choice_is_the_same_in_any_order() {
        let mut all = flood(300, &["a", "b", "c"]);
        let expected: Vec<Extremity> = resolved(&all.iter().collect::<Vec<_>>()).into_iter().cloned().collect();
        all.reverse();
        let chosen: Vec<Extremity> = resolved(&all.iter().collect::<Vec<_>>()).into_iter().cloned().collect();
        assert_eq!(chosen, expected);
    }

    #[test]
    fn arriving_forks_seldom_change_the_choice() {
        let mut changes = 0;
        let mut all: Vec<Extremity> = Vec::new();
        let mut before = Vec::new();
        for number in 0..2_000_u64 {
            let id = blake3::hash(&number.to_le_bytes()).to_hex();
            all.push(extremity(id.as_str(), number as i64, "evil"));
            let chosen: Vec<OwnedEventId> = resolved(&all.iter().collect::<Vec<_>>())
                .iter()
                .map(|extremity| extremity.event.clone())
                .collect();
            changes += usize::from(chosen != before);
            before = chosen;
        }
        assert!(changes < 80, "{changes}");
    }

    #[test]
    fn what_a_server_said_before_is_always_built_upon() {
        let all = flood(5_000, &["a", "b", "me"]);
        let chosen = to_build_upon(&all.iter().collect::<Vec<_>>(), Some(Author::named("me")), 10);
        assert_eq!(
            (chosen.len(), servers(&chosen, "me"), servers(&chosen, "a")),
            (10, 1, 1)
        );
        assert_eq!(chosen[0].author, Author::named("me"));
        // Nobody's template takes turns like everybody's.
        assert_eq!(to_build_upon(&all.iter().collect::<Vec<_>>(), None, 20).len(), 20);
    }
}
