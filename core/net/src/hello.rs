//! `/kith/hello/1` (`protocol.md` section 2): both sides of a fresh connection prove which server they belong to. Runs on
//! one stream, which the dialler opens; carries no request.
//!
//! Each side sends its hello at once. Whoever lacks the other's key document, or holds an older one than the hello names,
//! asks for it on the same stream; whoever is satisfied says so. It is over when both have said so: one round trip between
//! nodes that know each other. A dialler that cannot tell whom it reached hears the other side first, so that no relay and
//! no stranger's program learns a name from it. A frame is two bytes of length, big-endian, and a CBOR message.

use std::{io, sync::Arc};

use futures::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use kith_identity::{DocumentError, Hello, HelloError, KeyDocument, NodeKey, PublicKey, cbor};
use libp2p::PeerId;
use ruma::OwnedServerName;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::{Directory, DirectoryError};

/// Bytes of a message: the largest document, and its frame in CBOR.
const MAX_MESSAGE: usize = KeyDocument::MAX_BYTES + 64;

/// What goes over the stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Message {
    /// An encoded [`Hello`].
    Hello(ByteBuf),
    /// "I lack the key document that your hello names."
    Want,
    /// A key document, as canonical JSON.
    Document(ByteBuf),
    /// "I believe your hello."
    Accepted,
}

/// Why a hello was not believed, or not heard to the end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HelloFault {
    #[error("the stream ended before the hello did")]
    Stream(#[from] io::Error),
    #[error("a message of {0} bytes, of {MAX_MESSAGE} allowed")]
    TooLarge(usize),
    #[error("a malformed message")]
    Encoding(#[from] cbor::CborError),
    #[error("a message out of turn")]
    OutOfTurn,
    #[error("the hello does not hold")]
    Hello(#[from] HelloError),
    #[error("the key document does not hold")]
    Document(#[from] DocumentError),
    #[error("our own directory failed")]
    Directory(#[from] DirectoryError),
}

/// Who the peer proved to be.
#[derive(Debug, Clone)]
pub(crate) struct Verified {
    pub(crate) server_name: OwnedServerName,
    pub(crate) node_key: PublicKey,
}

/// When our side speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Turn {
    /// At once: the peer opened the stream, or has the PeerId that we dialled it for.
    First,
    /// Once the peer's hello is heard.
    Second,
}

/// What our side brings to every hello.
pub(crate) struct OwnSide {
    pub(crate) peer_id: PeerId,
    pub(crate) node_key: Arc<NodeKey>,
    pub(crate) directory: Arc<dyn Directory>,
}

impl OwnSide {
    /// Presents ours, and hears and checks the peer's. Both sides run this; who opened the stream makes no difference.
    pub(crate) async fn exchange<S>(&self, mut stream: S, peer: PeerId, turn: Turn) -> Result<Verified, HelloFault>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let document = self.directory.own_document().await?;
        let hello = Hello::sign(
            &document,
            &self.node_key,
            &self.peer_id.to_bytes(),
            &peer.to_bytes(),
            self.directory.now(),
        )?;
        let hello = Message::Hello(ByteBuf::from(hello.encode()?));

        let mut heard = Heard::Nothing;
        match turn {
            Turn::First => send(&mut stream, &hello).await?,
            Turn::Second => {
                // What is agreed lazily goes out with the first flush: until then the peer does not know of the stream.
                stream.flush().await?;
                let Message::Hello(bytes) = receive(&mut stream).await? else {
                    return Err(HelloFault::OutOfTurn);
                };
                heard = self.judge(&bytes, peer).await?;
                send(&mut stream, &hello).await?;
                send(&mut stream, heard.reply()).await?;
            }
        }
        let (mut believed, mut document_sent) = (false, false);
        loop {
            let next = match receive(&mut stream).await? {
                Message::Hello(bytes) if matches!(heard, Heard::Nothing) => self.judge(&bytes, peer).await?,
                Message::Document(json) => match heard {
                    Heard::Undecided(hello) => Heard::Verified(self.judge_document(&hello, &json, peer).await?),
                    _ => return Err(HelloFault::OutOfTurn),
                },
                Message::Want if !document_sent => {
                    document_sent = true;
                    let json = document.to_json().into_bytes();
                    send(&mut stream, &Message::Document(ByteBuf::from(json))).await?;
                    continue;
                }
                Message::Accepted if !believed => {
                    believed = true;
                    match heard {
                        Heard::Verified(verified) => return finish(stream, verified).await,
                        _ => continue,
                    }
                }
                _ => return Err(HelloFault::OutOfTurn),
            };
            heard = next;
            send(&mut stream, heard.reply()).await?;
            if let (true, Heard::Verified(verified)) = (believed, &heard) {
                return finish(stream, verified.clone()).await;
            }
        }
    }

    /// Judges a hello by the document that we hold, if it is new enough.
    async fn judge(&self, bytes: &[u8], peer: PeerId) -> Result<Heard, HelloFault> {
        let hello = Hello::decode(bytes)?;
        let now = self.directory.now();
        hello.verify_signature(&peer.to_bytes(), &self.peer_id.to_bytes(), now)?;
        let Some(held) = self.directory.document(&hello.server_name()).await? else {
            return Ok(Heard::Undecided(Box::new(hello)));
        };
        match hello.verify(&held, &peer.to_bytes(), &self.peer_id.to_bytes(), now) {
            Ok(()) => Ok(Heard::Verified(verified(&hello))),
            Err(HelloError::DocumentNeeded { .. }) => Ok(Heard::Undecided(Box::new(hello))),
            Err(error) => Err(error.into()),
        }
    }

    /// Judges a hello by the document that the peer supplied, and keeps the document when all is well.
    async fn judge_document(&self, hello: &Hello, json: &[u8], peer: PeerId) -> Result<Verified, HelloFault> {
        let document = KeyDocument::parse(json)?;
        let now = self.directory.now();
        hello.verify(&document, &peer.to_bytes(), &self.peer_id.to_bytes(), now)?;
        self.directory.keep_document(document).await?;
        Ok(verified(hello))
    }
}

/// How far the peer's side has come.
enum Heard {
    Nothing,
    /// The signature holds; the document to judge it by is awaited.
    Undecided(Box<Hello>),
    Verified(Verified),
}

impl Heard {
    /// What to say to the peer about it.
    fn reply(&self) -> &'static Message {
        match self {
            Self::Verified(_) => &Message::Accepted,
            Self::Nothing | Self::Undecided(_) => &Message::Want,
        }
    }
}

fn verified(hello: &Hello) -> Verified {
    Verified {
        server_name: hello.server_name(),
        node_key: hello.node_key,
    }
}

async fn finish<S: AsyncWrite + Unpin>(mut stream: S, verified: Verified) -> Result<Verified, HelloFault> {
    stream.close().await?;
    Ok(verified)
}

async fn send<S: AsyncWrite + Unpin>(stream: &mut S, message: &Message) -> Result<(), HelloFault> {
    let body = cbor::to_vec(message)?;
    let length = u16::try_from(body.len()).map_err(|_| HelloFault::TooLarge(body.len()))?;
    let mut frame = Vec::with_capacity(body.len() + 2);
    frame.extend(length.to_be_bytes());
    frame.extend(body);
    stream.write_all(&frame).await?;
    Ok(stream.flush().await?)
}

async fn receive<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Message, HelloFault> {
    let mut length = [0; 2];
    stream.read_exact(&mut length).await?;
    let length = usize::from(u16::from_be_bytes(length));
    if length > MAX_MESSAGE {
        return Err(HelloFault::TooLarge(length));
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    Ok(cbor::from_slice(&body, MAX_MESSAGE)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    use kith_identity::IdentityKey;
    use proptest::prelude::*;
    use rand::rngs::OsRng;
    use ruma::{MilliSecondsSinceUnixEpoch, UInt};
    use tokio_util::compat::TokioAsyncReadCompatExt;

    use crate::testing::MemoryDirectory;

    fn side() -> (OwnSide, OwnedServerName) {
        let identity = IdentityKey::generate(&mut OsRng);
        let node_key = Arc::new(NodeKey::generate(&mut OsRng));
        let now = MilliSecondsSinceUnixEpoch(UInt::new_saturating(1_790_000_000_000));
        let document = KeyDocument::new(&identity, &node_key.public(), now, now).unwrap();
        let name = document.server_name();
        let side = OwnSide {
            peer_id: PeerId::random(),
            node_key,
            directory: MemoryDirectory::new(Some(document), Arc::new(move || now)),
        };
        (side, name)
    }

    #[tokio::test]
    async fn two_sides_believe_each_other_with_and_without_documents_at_hand() {
        let ((alice, alice_name), (bob, bob_name)) = (side(), side());
        // The first time, each lacks the other's document; the second time it is kept.
        for turn in [Turn::First, Turn::First, Turn::Second] {
            let (here, there) = tokio::io::duplex(MAX_MESSAGE);
            let (bob_seen, alice_seen) = tokio::join!(
                alice.exchange(here.compat(), bob.peer_id, turn),
                bob.exchange(there.compat(), alice.peer_id, Turn::First),
            );
            assert_eq!(bob_seen.unwrap().server_name, bob_name);
            assert_eq!(alice_seen.unwrap().server_name, alice_name);
        }
    }

    fn messages() -> impl Strategy<Value = Message> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..KeyDocument::MAX_BYTES).prop_map(ByteBuf::from);
        prop_oneof![
            bytes().prop_map(Message::Hello),
            bytes().prop_map(Message::Document),
            Just(Message::Want),
            Just(Message::Accepted),
        ]
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.unwrap().block_on(future)
    }

    /// Runs our side against bytes that end, as a peer's that hangs up.
    fn hear(bytes: &[u8], turn: Turn) -> Result<Verified, HelloFault> {
        block_on(async {
            let (side, _) = side();
            let (here, mut there) = tokio::io::duplex(1 << 20);
            tokio::io::AsyncWriteExt::write_all(&mut there, bytes).await.unwrap();
            tokio::io::AsyncWriteExt::shutdown(&mut there).await.unwrap();
            side.exchange(here.compat(), PeerId::random(), turn).await
        })
    }

    proptest! {
        #[test]
        fn messages_survive_the_wire(message in messages()) {
            let read = block_on(async {
                let (here, there) = tokio::io::duplex(1 << 16);
                send(&mut here.compat(), &message).await.unwrap();
                receive(&mut there.compat()).await.unwrap()
            });
            prop_assert_eq!(message, read);
        }

        #[test]
        fn no_bytes_are_believed_or_make_trouble(bytes in proptest::collection::vec(any::<u8>(), 0..9000)) {
            prop_assert!(hear(&bytes, Turn::First).is_err() && hear(&bytes, Turn::Second).is_err());
        }

        #[test]
        fn no_messages_are_believed_or_make_trouble(said in proptest::collection::vec(messages(), 0..6)) {
            let bytes = block_on(async {
                let (here, mut there) = tokio::io::duplex(1 << 20);
                let mut here = here.compat();
                for message in &said {
                    send(&mut here, message).await.unwrap();
                }
                drop(here);
                let mut bytes = Vec::new();
                tokio::io::AsyncReadExt::read_to_end(&mut there, &mut bytes).await.unwrap();
                bytes
            });
            prop_assert!(hear(&bytes, Turn::First).is_err() && hear(&bytes, Turn::Second).is_err());
        }
    }
}
