//! Who is told of what, when, and what is asked for again.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use kith_engine::{
    CatchUp, Compared, ExchangeFailure, Looked, Pulled, Task,
    limits::{CHECK_AFTER, JOIN_HEADS_AFTER, MAX_EXTREMITIES, TELL_AFTER, TOPIC_CHECK_AFTER},
    neighbours, whom_to_ask,
};
use ruma::{OwnedEventId, OwnedRoomId, OwnedServerName};

fn server(name: &str) -> OwnedServerName {
    name.try_into().unwrap()
}

fn event(name: &str) -> OwnedEventId {
    format!("${name}").try_into().unwrap()
}

fn room() -> OwnedRoomId {
    "!room:a".try_into().unwrap()
}

/// Node `b` in a room with others, of which some are connected and compared.
struct Node {
    catch_up: CatchUp,
    members: Vec<OwnedServerName>,
    head: Option<OwnedEventId>,
    now: Duration,
}

impl Node {
    fn new(members: &[&str], connected: &[&str]) -> Self {
        let mut node = Self {
            catch_up: CatchUp::new(server("b")),
            members: members.iter().map(|name| server(name)).collect(),
            head: None,
            now: Duration::from_secs(1_000),
        };
        for peer in connected {
            node.catch_up.handle_up(&server(peer), node.now);
        }
        node.after(TELL_AFTER, &[]);
        assert!(node.catch_up.is_idle());
        node
    }

    fn moved(&mut self, id: &str, own: bool) {
        let gone = self.head.replace(event(id));
        let gone: Vec<OwnedEventId> = gone.into_iter().collect();
        self.catch_up.handle_moved(&room(), event(id), own, &gone, self.now);
    }

    /// Lets time pass; does all that is due, with these heads, and returns who was asked for heads.
    fn after(&mut self, time: Duration, heads: &[&str]) -> Vec<String> {
        self.now += time;
        let mut asked = Vec::new();
        while let Some(task) = self.catch_up.poll_task(self.now) {
            match task {
                Task::Look(room) => {
                    let looked = Looked {
                        heads: heads.iter().map(|id| event(id)).collect(),
                        servers: self.members.clone(),
                        unheld: Vec::new(),
                    };
                    self.catch_up.handle_looked(&room, &looked, self.now, 0);
                }
                Task::Exchange { server, rooms, .. } => {
                    asked.push(server.to_string());
                    let compared = Compared {
                        room: room(),
                        told: heads.iter().map(|id| event(id)).collect(),
                        lacking: Vec::new(),
                        depth: 1,
                    };
                    self.catch_up.handle_compared(&server, &compared, self.now);
                    self.catch_up
                        .handle_exchanged(&server, rooms.as_ref(), Ok(()), self.now, 0);
                }
                Task::Pull { .. } | Task::JoinHeads(_) => panic!("{task:?}"),
            }
        }
        asked
    }
}

#[test]
fn of_two_that_meet_the_lesser_asks_at_once_and_the_other_only_what_is_left() {
    let mut node = CatchUp::new(server("b"));
    let now = Duration::from_secs(5);
    node.handle_up(&server("a"), now);
    node.handle_up(&server("c"), now);
    let asked = |task: Option<Task>| match task {
        Some(Task::Exchange { server, except, .. }) => (server.to_string(), except.len()),
        other => panic!("{other:?}"),
    };
    assert_eq!(asked(node.poll_task(now)), ("c".to_owned(), 0));
    assert_eq!(node.poll_task(now), None);
    // a asked meanwhile about one room.
    let compared = Compared {
        room: room(),
        told: Vec::new(),
        lacking: Vec::new(),
        depth: 1,
    };
    node.handle_compared(&server("a"), &compared, now);
    assert_eq!(asked(node.poll_task(now + TELL_AFTER)), ("a".to_owned(), 1));
}

#[test]
fn who_has_shown_nothing_is_told_after_a_second() {
    let mut node = Node::new(&["a", "b", "c", "d"], &["a", "c"]);
    node.moved("own", true);
    // c acknowledges the transaction, a does not, d is not there.
    node.catch_up.handle_holder(&event("own"), &server("c"), false);
    assert_eq!(node.after(Duration::ZERO, &["own"]), [""; 0]);
    // c hears too, once, that d cannot be told.
    assert_eq!(node.after(TELL_AFTER, &["own"]), ["a", "c"]);
    assert!(node.catch_up.is_idle());
    node.moved("next", true);
    for peer in ["a", "c"] {
        node.catch_up.handle_holder(&event("next"), &server(peer), false);
    }
    assert_eq!(node.after(TELL_AFTER, &["next"]), [""; 0]);
    assert!(node.catch_up.is_idle());
}

#[test]
fn an_author_is_believed_to_tell_all_but_not_for_ever() {
    let told = |node: &mut Node| {
        node.moved("a's", false);
        node.catch_up.handle_holder(&event("a's"), &server("a"), true);
    };
    let all = ["a", "b", "c", "d"];
    let mut node = Node::new(&all, &["a", "c", "d"]);
    told(&mut node);
    assert_eq!(node.after(TELL_AFTER, &["a's"]), [""; 0]);
    // One member is asked, in case that a told it something else. Then there is rest.
    assert_eq!(node.after(CHECK_AFTER, &["a's"]).len(), 1);
    assert!(node.catch_up.is_idle());

    // The author goes away: what it told only here, others must have from here.
    let mut node = Node::new(&all, &["a", "c", "d"]);
    told(&mut node);
    node.after(TELL_AFTER, &["a's"]);
    node.catch_up.handle_down(&server("a"), node.now);
    assert_eq!(node.after(TELL_AFTER, &["a's"]), ["c", "d"]);

    // The author says whom it cannot reach.
    let mut node = Node::new(&all, &["a", "c", "d"]);
    told(&mut node);
    let unreached = BTreeSet::from([server("d")]);
    node.catch_up
        .handle_unreached(&room(), &server("a"), unreached, node.now);
    assert_eq!(node.after(TELL_AFTER, &["a's"]), ["d"]);
}

#[test]
fn to_be_let_go_is_not_to_be_out_of_reach() {
    let all = ["a", "b", "c", "d"];
    let told = |node: &mut Node| {
        node.moved("a's", false);
        node.catch_up.handle_holder(&event("a's"), &server("a"), true);
    };
    // An author that is let go saw to all, and has said whom it could not reach.
    let mut node = Node::new(&all, &["a", "c", "d"]);
    told(&mut node);
    node.after(TELL_AFTER + CHECK_AFTER, &["a's"]);
    node.catch_up.handle_let_go(&server("a"));
    assert!(node.catch_up.is_idle());
    node.catch_up.handle_down(&server("a"), node.now);
    assert_eq!(
        node.after(TELL_AFTER, &["a's"]).len(),
        1,
        "the one that was not asked before"
    );
    let mut node = Node::new(&all, &["a", "c", "d"]);
    let unreached = BTreeSet::from([server("d")]);
    node.catch_up
        .handle_unreached(&room(), &server("a"), unreached, node.now);
    told(&mut node);
    node.catch_up.handle_let_go(&server("a"));
    assert_eq!(node.after(TELL_AFTER, &["a's"]), ["d"]);

    // Who may not know what nobody else tells is told, though it has to be dialled for that.
    let mut node = Node::new(&all, &["a", "c", "d"]);
    node.catch_up.handle_let_go(&server("d"));
    node.moved("own", true);
    for peer in ["a", "c"] {
        node.catch_up.handle_holder(&event("own"), &server(peer), false);
    }
    assert_eq!(node.after(TELL_AFTER, &["own"]), ["d"]);
    // Nobody was told that it cannot be reached. Once it cannot, they are.
    node.moved("next", true);
    for peer in ["a", "c"] {
        node.catch_up.handle_holder(&event("next"), &server(peer), false);
    }
    node.catch_up.handle_down(&server("d"), node.now);
    assert_eq!(node.after(TELL_AFTER, &["next"]), ["a", "c"]);

    // What is only to be made sure is worth no connection.
    let mut node = Node::new(&all, &["a", "c", "d"]);
    told(&mut node);
    for peer in ["c", "d"] {
        node.catch_up.handle_let_go(&server(peer));
    }
    assert_eq!(node.after(TELL_AFTER, &["a's"]), [""; 0]);
    assert_eq!(node.after(CHECK_AFTER, &["a's"]), [""; 0]);
    assert!(node.catch_up.is_idle());
}

#[test]
fn who_does_not_answer_is_not_connected_to_again_and_again() {
    let mut node = Node::new(&["a", "b"], &["a"]);
    node.catch_up.handle_up(&server("a"), node.now);
    node.now += TELL_AFTER;
    assert!(matches!(node.catch_up.poll_task(node.now), Some(Task::Exchange { .. })));
    node.catch_up
        .handle_exchanged(&server("a"), None, Err(ExchangeFailure::Unanswered), node.now, 0);
    assert!(!node.catch_up.is_idle());
    node.catch_up.handle_let_go(&server("a"));
    assert!(node.catch_up.is_idle());
    node.catch_up.handle_up(&server("a"), node.now);
    assert_eq!(node.after(TELL_AFTER, &[]), ["a"]);
}

#[test]
fn a_room_that_was_left_is_nobodys_business() {
    let mut node = Node::new(&["a", "b"], &["a"]);
    node.moved("own", true);
    node.members = vec![server("a")];
    assert_eq!(node.after(TELL_AFTER, &["own"]), [""; 0]);
    assert!(node.catch_up.is_idle());
}

#[test]
fn many_heads_are_joined_after_a_while() {
    let mut node = Node::new(&["a", "b"], &["a"]);
    let many: Vec<OwnedEventId> = (0..=MAX_EXTREMITIES).map(|number| event(&number.to_string())).collect();
    let looked = |heads: &[OwnedEventId]| Looked {
        heads: heads.to_vec(),
        servers: vec![server("a"), server("b")],
        unheld: Vec::new(),
    };
    node.catch_up.handle_looked(&room(), &looked(&many), node.now, 7);
    assert_eq!(node.catch_up.poll_task(node.now), None);
    let due = node.now + 2 * JOIN_HEADS_AFTER;
    assert_eq!(node.catch_up.poll_task(due), Some(Task::JoinHeads(room())));
    // Somebody else did it meanwhile.
    node.catch_up.handle_looked(&room(), &looked(&many), node.now, 7);
    node.catch_up.handle_looked(&room(), &looked(&many[1..]), node.now, 7);
    assert!(node.catch_up.is_idle());
}

/// What a server tells of and nobody has is asked for a few times, and then not until it comes up again.
#[test]
fn what_is_not_to_be_had_is_not_asked_for_for_ever() {
    let mut node = Node::new(&["a", "b", "c"], &["a", "c"]);
    let connected = BTreeSet::from([server("a"), server("c")]);
    let compared = Compared {
        room: room(),
        told: Vec::new(),
        lacking: vec![event("nowhere")],
        depth: 9,
    };
    let rounds = |node: &mut Node| {
        node.catch_up.handle_compared(&server("a"), &compared, node.now);
        let mut asked = Vec::new();
        while let Some(Task::Pull {
            room,
            tellers,
            tried,
            lacking,
            ..
        }) = node.catch_up.poll_task(node.now)
        {
            let (from, last_resort) = whom_to_ask(&tellers, &connected, &tried, &lacking).unwrap();
            asked.push((from.to_string(), last_resort));
            node.catch_up
                .handle_pulled(&room, Some(&from), Pulled::Lacking, &[], node.now, 0);
        }
        asked
    };
    let once = [("a", false), ("c", false), ("a", true)].map(|(from, last)| (from.to_owned(), last));
    assert_eq!(rounds(&mut node), once);
    assert_eq!(rounds(&mut node), []);
    assert!(node.catch_up.is_idle());
    node.catch_up.handle_up(&server("a"), node.now);
    node.after(TELL_AFTER, &[]);
    assert_eq!(rounds(&mut node), once);
}

/// Silence is no answer: it never leads to what only everybody's lack may lead to, and is asked again ever more seldom.
#[test]
fn silence_is_waited_out() {
    let mut node = Node::new(&["a", "b"], &["a"]);
    let compared = Compared {
        room: room(),
        told: Vec::new(),
        lacking: vec![event("slow")],
        depth: 9,
    };
    node.catch_up.handle_compared(&server("a"), &compared, node.now);
    let connected = BTreeSet::from([server("a")]);
    let mut waits = Vec::new();
    for _ in 0..6 {
        let due = node.catch_up.next_due().unwrap().max(node.now);
        waits.push(due - node.now);
        node.now = due;
        let Some(Task::Pull {
            room,
            tellers,
            tried,
            lacking,
            ..
        }) = node.catch_up.poll_task(node.now)
        else {
            panic!("nothing is due")
        };
        let asked = whom_to_ask(&tellers, &connected, &tried, &lacking);
        assert_eq!(asked, Some((server("a"), false)));
        node.catch_up
            .handle_pulled(&room, Some(&server("a")), Pulled::Unanswered, &[], node.now, 0);
    }
    assert!(waits.is_sorted() && waits[5] >= Duration::from_secs(8), "{waits:?}");
    let none = whom_to_ask(&BTreeMap::new(), &BTreeSet::new(), &BTreeSet::new(), &BTreeSet::new());
    assert_eq!(none, None);
}

#[test]
fn what_went_over_a_topic_is_told_to_neighbours_only() {
    let members = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l"];
    let connected: Vec<&str> = members
        .iter()
        .copied()
        .filter(|name| !["b", "d"].contains(name))
        .collect();
    for own in [true, false] {
        let mut node = Node::new(&members, &connected);
        node.moved("1", own);
        node.catch_up.handle_by_topic(&event("1"));
        assert!(node.after(TELL_AFTER, &["1"]).is_empty());
        node.catch_up.handle_holder(&event("1"), &server("c"), false);
        let mut told = node.after(TOPIC_CHECK_AFTER - TELL_AFTER, &["1"]);
        while let Some(due) = node.catch_up.next_due() {
            told.extend(node.after(due.saturating_sub(node.now), &["1"]));
        }
        told.sort();
        told.dedup();
        assert_eq!(told, ["a", "e", "l"], "own: {own}");
    }
}

#[test]
fn neighbours_are_next_in_the_ring_of_names() {
    let servers: Vec<OwnedServerName> = ["e", "a", "c", "b", "d"].map(server).into();
    for (own, count, expected) in [
        ("b", 2, "ac"),
        ("a", 2, "be"),
        ("e", 3, "abd"),
        ("b", 4, "acde"),
        ("b", 9, "acde"),
        ("bb", 2, "bc"),
        ("b", 0, ""),
        ("b", 1, "c"),
    ] {
        let found = neighbours(&server(own), &servers, count);
        let found: String = found.into_iter().map(|server| server.as_str()).collect();
        assert_eq!(found, expected, "{own} {count}");
    }
}
