//! Tickets from strangers' screens: what parses must be told again in the same words.
#![no_main]

use kith_identity::Ticket;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(ticket) = Ticket::parse(text) {
        let told = ticket.encode().expect("a ticket that parsed fits");
        assert_eq!(Ticket::parse(&told).expect("our own words parse"), ticket);
    }
});
