//! Tickets and their QR codes.

use data_encoding::BASE32_NOPAD;
use kith_identity::{Ticket, TicketError, cbor, qr_png, qr_svg, qr_text};
use proptest::prelude::*;
use ruma::RoomOrAliasId;

use crate::identity;

/// A multiaddr of 11 bytes, as `/ip4/../udp/../quic-v1` has.
fn addr(last: u8) -> Vec<u8> {
    vec![4, 192, 168, 1, last, 0x91, 2, 0x1f, 0x90, 0xcd, 3]
}

/// Everything that a ticket can hold, at realistic sizes.
fn full() -> Ticket {
    Ticket {
        user: Some("alice".into()),
        room: Some(RoomOrAliasId::parse("!31hneApxJ_1o-63DmFrpeqnkFfWppnzWso1JvH3ogLM").unwrap()),
        addrs: vec![addr(1), addr(2)],
        token: Some(vec![7; 16]),
        ..Ticket::new(identity(1).public(), vec![9; 38])
    }
}

#[test]
fn a_full_ticket_fits() {
    let ticket = full();
    let text = ticket.encode().unwrap();
    assert!(
        text.starts_with("kith:") && text.len() < Ticket::MAX_CHARS,
        "{}",
        text.len()
    );
    assert_eq!(Ticket::parse(&text).unwrap(), ticket);
    assert_eq!(ticket.user_id().unwrap(), format!("@alice:{}", ticket.server_name()));
}

#[test]
fn case_and_white_space_do_not_matter() {
    let text = full().encode().unwrap();
    for written in [text.to_uppercase(), text.to_lowercase(), format!("\n {text} \n")] {
        assert_eq!(Ticket::parse(&written).unwrap(), full(), "{written}");
    }
}

#[test]
fn addresses_are_left_out_rather_than_the_rest() {
    let mut ticket = full();
    ticket.addrs = (0..200).map(addr).collect();
    assert!(matches!(ticket.encode(), Err(TicketError::Addresses)));
    let fitted = Ticket::parse(&ticket.encode_fitting().unwrap()).unwrap();
    assert!(!fitted.addrs.is_empty());
    assert_eq!(fitted.addrs[..], ticket.addrs[..fitted.addrs.len()]);
    assert_eq!((&fitted.room, &fitted.token), (&ticket.room, &ticket.token));

    ticket.user = Some("x".repeat(180));
    assert!(
        matches!(ticket.encode_fitting(), Err(TicketError::TooLong(_))),
        "nothing left to leave out"
    );
}

#[test]
fn what_cannot_be_read_cannot_be_written() {
    type Change = fn(&mut Ticket);
    let cases: [(&str, Change); 5] = [
        ("an empty address", |t| t.addrs.push(Vec::new())),
        ("an endless address", |t| t.addrs.push(vec![0; 129])),
        ("no PeerId", |t| t.peer_id.clear()),
        ("an empty token", |t| t.token = Some(Vec::new())),
        ("a localpart that is none", |t| t.user = Some("a:b".into())),
    ];
    for (what, change) in cases {
        let mut ticket = full();
        change(&mut ticket);
        assert!(ticket.encode().is_err(), "{what}");
    }
}

#[test]
fn damaged_tickets_are_refused() {
    let good = full().encode().unwrap();
    let bytes = BASE32_NOPAD.decode(&good.as_bytes()["kith:".len()..]).unwrap();
    let raw = |bytes: &[u8]| format!("kith:{}", BASE32_NOPAD.encode(bytes));
    let with_key = |key: [u8; 32]| {
        let entries = [("s", serde_bytes::ByteArray::new(key))];
        raw(&cbor::to_vec(&std::collections::BTreeMap::from(entries)).unwrap())
    };
    let cases = [
        ("", "scheme"),
        ("kith", "scheme"),
        ("https://example.org/", "scheme"),
        ("🦀🦀", "scheme"),
        ("kith:", "encoding"),
        ("kith:0000", "base32"),
        ("kith:é", "base32"),
        (&raw(&bytes[..bytes.len() - 1]), "encoding"),
        (&raw(&[&bytes[..], &[0]].concat()), "encoding"),
        (&good.replacen("kith:U", "kith:V", 1), "encoding"),
        (&format!("kith:{}", "A".repeat(Ticket::MAX_CHARS)), "long"),
        (&with_key([0; 32]), "encoding"),
        (
            &raw(&[0xa2, 0x61, b'p', 0x41, 1, 0x61, b's', 0x58, 0x20]
                .iter()
                .copied()
                .chain([0; 32])
                .collect::<Vec<_>>()),
            "key",
        ),
    ];
    for (text, expected) in cases {
        let found = match Ticket::parse(text) {
            Ok(_) => "accepted",
            Err(TicketError::Scheme) => "scheme",
            Err(TicketError::Base32) => "base32",
            Err(TicketError::Encoding(_)) => "encoding",
            Err(TicketError::TooLong(_)) => "long",
            Err(TicketError::Key(_)) => "key",
            Err(error) => panic!("{text}: {error}"),
        };
        assert_eq!(found, expected, "{text}");
    }
}

/// What an independent reader sees in an image.
fn scanned(image: &image::GrayImage) -> String {
    let mut prepared =
        rqrr::PreparedImage::prepare_from_greyscale(image.width() as usize, image.height() as usize, |x, y| {
            image.get_pixel(x as u32, y as u32).0[0]
        });
    let grids = prepared.detect_grids();
    assert_eq!(grids.len(), 1);
    grids[0].decode().unwrap().1
}

#[test]
fn qr_codes_come_in_three_forms() {
    let text = full().encode().unwrap();
    let terminal = qr_text(&text).unwrap();
    let widths: Vec<usize> = terminal.lines().map(|line| line.chars().count()).collect();
    assert!(
        widths.iter().all(|width| *width == widths[0]) && widths[0] <= 80,
        "{widths:?}"
    );
    assert!(terminal.chars().all(|c| " \n▄▀█".contains(c)));

    let svg = qr_svg(&text).unwrap();
    assert!(svg.contains("<svg") && svg.ends_with("</svg>"), "{svg:.80}");

    let png = qr_png(&text).unwrap();
    let image = image::load_from_memory(&png).unwrap();
    assert!(image.width() >= 512 && image.width() == image.height());
    assert_eq!(scanned(&image.into_luma8()), text);

    // Half blocks of light on a dark terminal, as a camera would see them: two rows to a line, eight pixels to a module.
    let lines: Vec<Vec<char>> = terminal.lines().map(|line| line.chars().collect()).collect();
    let (width, height) = (lines[0].len() as u32 * 8, lines.len() as u32 * 16);
    let seen = image::GrayImage::from_fn(width, height, |x, y| {
        let lit = match lines[y as usize / 16][x as usize / 8] {
            '█' => true,
            '▀' => y % 16 < 8,
            '▄' => y % 16 >= 8,
            _ => false,
        };
        image::Luma([if lit { 255 } else { 0 }])
    });
    assert_eq!(scanned(&seen), text);

    assert!(qr_text(&"x".repeat(5000)).is_err());
}

prop_compose! {
    fn any_ticket()(
        seed: [u8; 32],
        user in prop::option::of("[a-z0-9._=/-]{1,20}"),
        room in prop::option::of("[!#][a-zA-Z0-9]{1,20}:[a-z0-9]{1,20}"),
        peer_id in prop::collection::vec(any::<u8>(), 1..40),
        addrs in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..3),
        relays in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..20), 0..2),
        token in prop::option::of(prop::collection::vec(any::<u8>(), 1..16)),
    ) -> Ticket {
        Ticket {
            identity: kith_identity::IdentityKey::from_bytes(&seed).public(),
            user,
            room: room.map(|room| RoomOrAliasId::parse(room).unwrap()),
            peer_id,
            addrs,
            relays,
            token,
        }
    }
}

proptest! {
    #[test]
    fn tickets_round_trip(ticket in any_ticket()) {
        match ticket.encode() {
            Ok(text) => prop_assert_eq!(Ticket::parse(&text).unwrap(), ticket),
            Err(error) => prop_assert!(matches!(error, TicketError::TooLong(_)), "{}", error),
        }
    }

    #[test]
    fn strangers_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..180)) {
        let text = format!("kith:{}", BASE32_NOPAD.encode(&bytes));
        prop_assert!(Ticket::parse(&text).is_err());
    }

    #[test]
    fn strangers_text_does_no_harm(text: String) {
        prop_assert!(Ticket::parse(&text).is_err());
    }
}
