//! Decides which connected servers stay and which are let go, from what was said with each and when. Pure: it closes nothing, and is
//! told the time.

use std::{cmp::Reverse, collections::BTreeSet, time::Duration};

use tokio::time::Instant;

use crate::Budget;

/// A connected server.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    /// Since when it has been connected.
    pub(crate) since: Instant,
    /// When anything last came from it.
    pub(crate) heard: Instant,
    /// When something was last said, by either side: a message, not what nodes have to settle among themselves.
    pub(crate) spoken: Option<Instant>,
    /// Its place among the contacts, the most important first; none for who is no contact.
    pub(crate) contact: Option<usize>,
    /// A request is under way, in either direction.
    pub(crate) busy: bool,
    /// The topics of which it is a member.
    pub(crate) topics: Vec<usize>,
}

impl Candidate {
    /// The lower, the sooner it is kept: whoever spoke last, then contacts in their order, then whoever was there first.
    fn rank(&self) -> impl Ord + use<> {
        (Reverse(self.spoken), self.contact.is_none(), self.contact, self.since)
    }

    /// Whether it may be kept for more than its visit.
    fn matters(&self) -> bool {
        self.spoken.is_some() || self.contact.is_some()
    }
}

/// What to do now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Choice {
    /// The servers to let go, by their place in the list.
    pub(crate) let_go: BTreeSet<usize>,
    /// When to decide again if nothing happens before.
    pub(crate) due: Option<Instant>,
}

/// Decides who is let go.
pub(crate) fn choose(candidates: &[Candidate], budget: &Budget, now: Instant) -> Choice {
    let mut ranked: Vec<usize> = (0..candidates.len()).collect();
    ranked.sort_by_key(|index| candidates[*index].rank());
    let needed = needed(candidates, &ranked, 2 * budget.company);
    let mut choice = Choice::default();
    let mut kept = 0;
    for index in ranked {
        if needed.contains(&index) {
            continue;
        }
        let candidate = &candidates[index];
        let stays = kept < budget.idle && candidate.matters();
        kept += usize::from(stays);
        let ends = match (candidate.busy, stays) {
            (true, _) => Some(now + budget.visit),
            (false, true) => budget.keep.map(|keep| silence_ends(candidate, keep, budget)),
            (false, false) if candidate.spoken.is_some() => Some(silence_ends(candidate, budget.linger, budget)),
            (false, false) => Some(candidate.heard + budget.visit),
        };
        match ends {
            Some(ends) if ends <= now => drop(choice.let_go.insert(index)),
            Some(ends) => choice.due = Some(choice.due.map_or(ends, |due| due.min(ends))),
            None => {}
        }
    }
    choice
}

/// When a server has been silent for long enough. What nodes settle among themselves prolongs that by a visit at the most.
fn silence_ends(candidate: &Candidate, patience: Duration, budget: &Budget) -> Instant {
    let spoken = candidate.spoken.unwrap_or(candidate.since) + patience;
    spoken.max(candidate.heard + budget.visit)
}

/// Of each topic so many members, those that are kept soonest.
fn needed(candidates: &[Candidate], ranked: &[usize], of_each: usize) -> BTreeSet<usize> {
    let topics = candidates.iter().flat_map(|candidate| &candidate.topics).max();
    let mut counts = vec![0; topics.map_or(0, |last| last + 1)];
    let mut needed = BTreeSet::new();
    for index in ranked {
        for topic in &candidates[*index].topics {
            counts[*topic] += 1;
            if counts[*topic] <= of_each {
                needed.insert(*index);
            }
        }
    }
    needed
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3600;

    /// How long a phone keeps those that stay.
    const KEEP: u64 = 1800;

    /// Times are in seconds before now.
    fn candidate(heard: u64, spoken: Option<u64>, contact: Option<usize>) -> impl Fn(Instant) -> Candidate {
        move |now| Candidate {
            since: now - Duration::from_secs(2 * HOUR),
            heard: now - Duration::from_secs(heard),
            spoken: spoken.map(|ago| now - Duration::from_secs(ago)),
            contact,
            busy: false,
            topics: Vec::new(),
        }
    }

    fn busy(such: impl Fn(Instant) -> Candidate) -> impl Fn(Instant) -> Candidate {
        move |now| Candidate {
            busy: true,
            ..such(now)
        }
    }

    fn member(topics: &[usize], such: impl Fn(Instant) -> Candidate) -> impl Fn(Instant) -> Candidate {
        move |now| Candidate {
            topics: topics.to_vec(),
            ..such(now)
        }
    }

    /// Whom a phone lets go, and in how many seconds it looks again.
    #[track_caller]
    fn check(candidates: &[&dyn Fn(Instant) -> Candidate], let_go: &[usize], due: Option<u64>) {
        // A clock that began long enough ago.
        let now = Instant::now() + Duration::from_secs(10 * HOUR);
        let candidates: Vec<_> = candidates.iter().map(|candidate| candidate(now)).collect();
        let expected = Choice {
            let_go: let_go.iter().copied().collect(),
            due: due.map(|due| now + Duration::from_secs(due)),
        };
        assert_eq!(choose(&candidates, &Budget::phone(), now), expected);
    }

    #[test]
    fn nobody_is_let_go_of_nobody() {
        check(&[], &[], None);
    }

    #[test]
    fn those_with_whom_something_was_said_last_stay() {
        let (early, late, later) = (
            candidate(700, Some(700), None),
            candidate(650, Some(650), Some(9)),
            candidate(620, Some(620), Some(5)),
        );
        check(&[&early, &late, &later], &[0], Some(KEEP - 650));
        check(&[&later, &early, &late], &[1], Some(KEEP - 650));
    }

    #[test]
    fn where_nothing_was_said_yet_the_first_contacts_stay_and_others_are_visitors() {
        let since = |such: &dyn Fn(Instant) -> Candidate, now| Candidate {
            since: now - Duration::from_secs(20),
            ..such(now)
        };
        let (third, first, second, stranger) = (
            candidate(15, None, Some(2)),
            candidate(15, None, Some(0)),
            candidate(15, None, Some(1)),
            candidate(11, None, None),
        );
        let fresh: [&dyn Fn(Instant) -> Candidate; 4] = [&third, &first, &second, &stranger];
        let fresh: Vec<_> = fresh.into_iter().map(|such| move |now| since(such, now)).collect();
        let fresh: Vec<&dyn Fn(Instant) -> Candidate> = fresh.iter().map(|such| such as _).collect();
        check(&fresh, &[0, 3], Some(KEEP - 20));
        // A stranger does not take a place that is free.
        check(&[&stranger], &[0], None);
    }

    #[test]
    fn a_visit_lasts_until_it_is_silent() {
        check(&[&candidate(4, None, None)], &[], Some(6));
        check(&[&candidate(10, None, None)], &[0], None);
    }

    #[test]
    fn one_beyond_the_budget_stays_for_a_while_after_something_was_said() {
        let (one, two, three) = (
            candidate(1, Some(1), None),
            candidate(2, Some(2), None),
            candidate(300, Some(300), None),
        );
        check(&[&one, &two, &three], &[], Some(300));
        // What nodes settle among themselves does not prolong it by more than a visit.
        let late = candidate(3, Some(600), None);
        check(&[&one, &two, &late], &[], Some(7));
    }

    #[test]
    fn on_a_phone_even_those_that_stay_go_in_the_end() {
        check(&[&candidate(KEEP, Some(KEEP), Some(0))], &[0], None);
        check(&[&candidate(KEEP, None, Some(0))], &[0], None);
    }

    #[test]
    fn whoever_is_busy_or_needed_for_a_topic_stays() {
        let old = || candidate(2 * HOUR, Some(2 * HOUR), Some(0));
        check(&[&busy(old())], &[], Some(10));
        let members: Vec<_> = (0..6).map(|_| member(&[1], old())).collect();
        let mut members: Vec<&dyn Fn(Instant) -> Candidate> = members.iter().map(|such| such as _).collect();
        // Two are wanted, and as many may come by themselves.
        check(&members, &[4, 5], None);
        let of_two = member(&[0, 1], old());
        members.push(&of_two);
        check(&members, &[4, 5], None);
    }

    #[test]
    fn a_desktop_keeps_its_share_for_ever() {
        let now = Instant::now() + Duration::from_secs(10 * HOUR);
        let budget = Budget::desktop();
        let mut candidates: Vec<_> = (0..budget.idle)
            .map(|place| candidate(9 * HOUR, None, Some(place))(now))
            .collect();
        assert_eq!(choose(&candidates, &budget, now), Choice::default());
        candidates.push(candidate(9 * HOUR, None, Some(budget.idle))(now));
        let one_too_many = choose(&candidates, &budget, now);
        assert_eq!(one_too_many.let_go, BTreeSet::from([budget.idle]));
        assert_eq!(one_too_many.due, None);
    }
}
