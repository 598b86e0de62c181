//! Messages of set reconciliation, from either side: whatever they say, what is answered and what is remembered is bounded.
#![no_main]

use kith_engine::{EventSet, Heads, Reconciliation, SetKey, answer_reconciliation, limits::MAX_RECONCILE_MESSAGE};
use libfuzzer_sys::fuzz_target;
use ruma::OwnedEventId;

fuzz_target!(|bytes: &[u8]| {
    let Some((count, message)) = bytes.split_first() else {
        return;
    };
    let key = SetKey([7; 32]);
    let ids: Vec<(u64, OwnedEventId)> = (0..u64::from(*count) * 4)
        .map(|number| (number / 3, format!("$event-{number}").try_into().expect("an id")))
        .collect();
    let set = || EventSet::new(&key, ids.iter().map(|(depth, id)| (*depth, &**id))).expect("a set");
    if let Ok(answer) = answer_reconciliation(&set(), message) {
        assert!(answer.len() <= MAX_RECONCILE_MESSAGE);
    }
    let mut asking = Reconciliation::new(set());
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
