//! Tickets (`protocol.md` section 2): what a QR code or a link carries, so that one node finds another. A ticket is a
//! hint and proves nothing; whoever answers must still present a hello.

use std::{fmt, str::FromStr};

use data_encoding::BASE32_NOPAD;
use ruma::{OwnedRoomOrAliasId, OwnedServerName, OwnedUserId, RoomOrAliasId, UserId};
use serde::{Deserialize, Serialize};
use serde_bytes::{ByteArray, ByteBuf};

use crate::{
    IdentityPublicKey, KeyError,
    cbor::{self, CborError},
};

/// What every ticket begins with.
const SCHEME: &str = "kith:";

/// Bytes of one address, PeerId or token at the most.
const MAX_PART: usize = 128;

/// Addresses and relays in one ticket at the most.
const MAX_LIST: usize = 16;

/// Why a text is not a ticket, or a ticket cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum TicketError {
    /// It does not begin with `kith:`.
    #[error("a ticket begins with `kith:`")]
    Scheme,
    /// It is as long as [`Ticket::MAX_CHARS`] or longer.
    #[error("a ticket has fewer than {limit} characters, not {0}", limit = Ticket::MAX_CHARS)]
    TooLong(usize),
    /// What follows `kith:` is not base32.
    #[error("the ticket is damaged: not base32")]
    Base32,
    /// The bytes do not decode.
    #[error("the ticket is damaged")]
    Encoding(#[from] CborError),
    /// The server name in it is no usable key.
    #[error("the ticket names an unusable key")]
    Key(#[source] KeyError),
    /// The localpart or room in it is not a Matrix identifier.
    #[error("the ticket's user or room is not valid")]
    Identifier(#[from] ruma::IdParseError),
    /// An address, PeerId or token is empty or too long, or there are too many.
    #[error("the ticket's addresses are not valid")]
    Addresses,
}

/// Where to find a node, and optionally whom or what there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ticket {
    /// The server.
    pub identity: IdentityPublicKey,
    /// The localpart of the person whose ticket it is.
    pub user: Option<String>,
    /// A room to join there.
    pub room: Option<OwnedRoomOrAliasId>,
    /// The node's libp2p PeerId, as bytes that are opaque here. Renewed weekly: the ticket finds the node on the LAN or
    /// through relays and the DHT afterwards.
    pub peer_id: Vec<u8>,
    /// Binary multiaddrs without PeerId, best first.
    pub addrs: Vec<Vec<u8>>,
    /// Binary multiaddrs of relays, with their PeerIds.
    pub relays: Vec<Vec<u8>>,
    /// To be shown by whoever uses the ticket, once, so that the node knows it was invited. Carried, and not asked for
    /// yet: no ticket made here holds one.
    pub token: Option<Vec<u8>>,
}

/// One-letter names: the whole text must stay under 300 characters with everything in it.
#[derive(Serialize, Deserialize)]
struct Wire {
    #[serde(rename = "s")]
    server_name: ByteArray<32>,
    #[serde(rename = "u", default, skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(rename = "r", default, skip_serializing_if = "Option::is_none")]
    room: Option<String>,
    #[serde(rename = "p")]
    peer_id: ByteBuf,
    #[serde(rename = "a", default, skip_serializing_if = "Vec::is_empty")]
    addrs: Vec<ByteBuf>,
    #[serde(rename = "l", default, skip_serializing_if = "Vec::is_empty")]
    relays: Vec<ByteBuf>,
    #[serde(rename = "t", default, skip_serializing_if = "Option::is_none")]
    token: Option<ByteBuf>,
}

impl Ticket {
    /// The text stays under this many characters, so that any phone scans it.
    pub const MAX_CHARS: usize = 300;

    /// A ticket that names a node and nothing else.
    pub fn new(identity: IdentityPublicKey, peer_id: Vec<u8>) -> Self {
        Self {
            identity,
            user: None,
            room: None,
            peer_id,
            addrs: Vec::new(),
            relays: Vec::new(),
            token: None,
        }
    }

    /// The server's name.
    pub fn server_name(&self) -> OwnedServerName {
        self.identity.server_name()
    }

    /// The user id of the person whose ticket it is.
    pub fn user_id(&self) -> Option<OwnedUserId> {
        UserId::parse(format!("@{}:{}", self.user.as_ref()?, self.identity)).ok()
    }

    /// The text: `kith:` and base32. Fails when the ticket holds too much, or what [`Ticket::parse`] would refuse.
    pub fn encode(&self) -> Result<String, TicketError> {
        self.check()?;
        let bytes = |parts: &[Vec<u8>]| parts.iter().cloned().map(ByteBuf::from).collect();
        let wire = Wire {
            server_name: ByteArray::new(*self.identity.as_bytes()),
            user: self.user.clone(),
            room: self.room.as_ref().map(ToString::to_string),
            peer_id: ByteBuf::from(self.peer_id.clone()),
            addrs: bytes(&self.addrs),
            relays: bytes(&self.relays),
            token: self.token.clone().map(ByteBuf::from),
        };
        let text = format!("{SCHEME}{}", BASE32_NOPAD.encode(&cbor::to_vec(&wire)?));
        if text.len() < Self::MAX_CHARS {
            Ok(text)
        } else {
            Err(TicketError::TooLong(text.len()))
        }
    }

    /// As [`Ticket::encode`], leaving out as many addresses as need be, last ones first, and relays after them.
    pub fn encode_fitting(&self) -> Result<String, TicketError> {
        let mut ticket = self.clone();
        ticket.addrs.truncate(MAX_LIST);
        ticket.relays.truncate(MAX_LIST);
        loop {
            match ticket.encode() {
                Err(TicketError::TooLong(_)) if ticket.addrs.pop().or_else(|| ticket.relays.pop()).is_some() => {}
                outcome => return outcome,
            }
        }
    }

    /// Reads a text. Letters may be of either case, since QR codes and people change it, and white space around it is
    /// ignored.
    pub fn parse(text: &str) -> Result<Self, TicketError> {
        let text = text.trim();
        let (scheme, payload) = text.split_at_checked(SCHEME.len()).ok_or(TicketError::Scheme)?;
        if !scheme.eq_ignore_ascii_case(SCHEME) {
            return Err(TicketError::Scheme);
        }
        if text.len() >= Self::MAX_CHARS {
            return Err(TicketError::TooLong(text.len()));
        }
        let bytes = BASE32_NOPAD
            .decode(payload.to_ascii_uppercase().as_bytes())
            .map_err(|_| TicketError::Base32)?;
        let wire: Wire = cbor::from_slice(&bytes, Self::MAX_CHARS)?;
        let vecs = |parts: Vec<ByteBuf>| parts.into_iter().map(ByteBuf::into_vec).collect();
        let ticket = Self {
            identity: IdentityPublicKey::from_bytes(&wire.server_name).map_err(TicketError::Key)?,
            user: wire.user,
            room: wire.room.map(RoomOrAliasId::parse).transpose()?,
            peer_id: wire.peer_id.into_vec(),
            addrs: vecs(wire.addrs),
            relays: vecs(wire.relays),
            token: wire.token.map(ByteBuf::into_vec),
        };
        ticket.check()?;
        Ok(ticket)
    }

    fn check(&self) -> Result<(), TicketError> {
        if let Some(user) = &self.user {
            UserId::parse(format!("@{user}:{}", self.identity))?;
        }
        let parts = self.addrs.iter().chain(&self.relays).chain(&self.token);
        let sizes_fit = parts
            .chain([&self.peer_id])
            .all(|part| (1..=MAX_PART).contains(&part.len()));
        if sizes_fit && self.addrs.len() <= MAX_LIST && self.relays.len() <= MAX_LIST {
            Ok(())
        } else {
            Err(TicketError::Addresses)
        }
    }
}

impl FromStr for Ticket {
    type Err = TicketError;

    fn from_str(text: &str) -> Result<Self, TicketError> {
        Self::parse(text)
    }
}

/// As [`Ticket::encode_fitting`].
impl fmt::Display for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.encode_fitting().map_err(|_| fmt::Error)?)
    }
}
