//! Messages of set reconciliation, from either side: whatever they say, what is answered and what is remembered is bounded.
#![no_main]

use std::{cell::RefCell, collections::BTreeMap};

use kith_engine::{EventSet, Heads, Reconciliation, SetKey, answer_reconciliation, limits::MAX_RECONCILE_MESSAGE};
use kith_fuzz::seeds;
use libfuzzer_sys::fuzz_target;
use ruma::OwnedEventId;

thread_local! {
    /// Making a set takes longer than a whole case.
    static SETS: RefCell<BTreeMap<u8, EventSet>> = const { RefCell::new(BTreeMap::new()) };
}

/// A set of four times so many events, three of a depth.
fn set(count: u8) -> EventSet {
    SETS.with_borrow_mut(|sets| sets.entry(count).or_insert_with(|| new_set(count)).clone())
}

fn new_set(count: u8) -> EventSet {
    let ids: Vec<(u64, OwnedEventId)> = (0..u64::from(count) * 4)
        .map(|number| (number / 3, format!("$event-{number}").try_into().expect("an id")))
        .collect();
    EventSet::new(&SetKey([7; 32]), ids.iter().map(|(depth, id)| (*depth, &**id))).expect("a set")
}

/// An exchange between a set of 400 events and one of 100, each message after what makes its receiver's set; and heads.
fn seeds() -> Vec<Vec<u8>> {
    let (more, less) = (100, 25);
    let mut asking = Reconciliation::new(set(more));
    let mut said = Vec::new();
    let mut next = Some(asking.first_message().expect("a message"));
    while let Some(question) = next {
        let answer = answer_reconciliation(&set(less), &question).expect("an answer");
        next = asking.handle_answer(&answer).expect("an honest answer");
        said.push([&[less][..], &question].concat());
        said.push([&[more][..], &answer].concat());
    }
    let heads = Heads::new(vec!["$a:b".try_into().expect("an id")], 3);
    said.push([&[0][..], &serde_json::to_vec(&heads).expect("JSON")].concat());
    said
}

fuzz_target!(init: seeds::plant(seeds()), |bytes: &[u8]| {
    let Some((count, message)) = bytes.split_first() else {
        return;
    };
    if let Ok(answer) = answer_reconciliation(&set(*count), message) {
        assert!(answer.len() <= MAX_RECONCILE_MESSAGE);
    }
    let mut asking = Reconciliation::new(set(*count));
    let _ = asking.first_message().expect("a message");
    // The same answer over and over: it must come to an end.
    let mut rounds = 0;
    while let Ok(Some(next)) = asking.handle_answer(message) {
        assert!(next.len() <= MAX_RECONCILE_MESSAGE);
        rounds += 1;
        assert!(rounds < 10_000, "an exchange without end");
    }
    if let Ok(heads) = serde_json::from_slice::<Heads>(message) {
        let _ = heads.is_sound();
    }
});
