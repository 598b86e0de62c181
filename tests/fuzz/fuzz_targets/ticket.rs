//! Tickets from strangers' screens: what parses must be told again in the same words.
#![no_main]

use kith_fuzz::seeds;
use kith_identity::Ticket;
use libfuzzer_sys::fuzz_target;

fn seeds() -> Vec<String> {
    let mut ticket = Ticket::new(seeds::keys().0.public(), vec![0, 36, 8, 1, 18, 32]);
    let bare = ticket.clone();
    ticket.user = Some("a".to_owned());
    ticket.addrs = vec![vec![4, 127, 0, 0, 1, 145, 2, 15, 161, 204, 3]];
    ticket.relays = ticket.addrs.clone();
    ticket.token = Some(vec![7; 8]);
    let invitation = ticket.clone();
    ticket.room = Some("#room:one".try_into().expect("an alias"));
    [bare, invitation, ticket]
        .iter()
        .map(|ticket| ticket.encode().expect("it fits"))
        .collect()
}

fuzz_target!(init: seeds::plant(seeds()), |text: &str| {
    if let Ok(ticket) = Ticket::parse(text) {
        let told = ticket.encode().expect("a ticket that parsed fits");
        assert_eq!(Ticket::parse(&told).expect("our own words parse"), ticket);
    }
});
