//! Gathers what HTTP/2 writes, so that a message's headers and the beginning of its body leave in one packet. Never changes what is
//! written, and holds headers back for [`PATIENCE`] at the most, other things not at all.
//!
//! HTTP/2's connection task opens a request's stream, writes the headers and flushes, and only then gets the body from another
//! task, which it wakes by that. QUIC would make two packets of the two, and the peer would acknowledge the second at once.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// Bytes that are gathered at the most: more fill packets by themselves.
const GATHERED: usize = 4 << 10;

/// How long headers wait for the body that they announce.
const PATIENCE: Duration = Duration::from_millis(2);

/// Bytes of a frame's head: length, type, flags, stream (RFC 9113, section 4.1).
const FRAME_HEAD: usize = 9;
const HEADERS: u8 = 1;
const END_STREAM: u8 = 1;

/// A stream that carries HTTP/2.
#[derive(Debug)]
pub(crate) struct Gathering<S> {
    inner: S,
    gathered: Vec<u8>,
    /// Runs while headers wait.
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S: AsyncWrite + Unpin> Gathering<S> {
    pub(crate) fn new(inner: S) -> Self {
        Self {
            inner,
            gathered: Vec::new(),
            waiting: None,
        }
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.gathered.is_empty() {
            let written = ready!(Pin::new(&mut self.inner).poll_write(cx, &self.gathered))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.gathered.drain(..written);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathering<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.gathered.len() + bytes.len() > GATHERED {
            ready!(self.poll_drain(cx))?;
            if bytes.len() > GATHERED {
                return Pin::new(&mut self.inner).poll_write(cx, bytes);
            }
        }
        self.gathered.extend_from_slice(bytes);
        self.waiting = None;
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if announces_body(&self.gathered) {
            let waiting = self.waiting.get_or_insert_with(|| Box::pin(sleep(PATIENCE)));
            ready!(waiting.as_mut().poll(cx));
        }
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(cx))?;
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathering<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buffer)
    }
}

/// Whether the last of these frames are headers after which a body comes. What begins within a frame is no headers, or looks
/// like them by accident, which costs a moment.
fn announces_body(mut frames: &[u8]) -> bool {
    while let Some((head, rest)) = frames.split_first_chunk::<FRAME_HEAD>() {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        if rest.len() == length {
            return head[3] == HEADERS && head[4] & END_STREAM == 0;
        }
        frames = rest.get(length..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        sync::{
            Arc,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::{BodyExt, Full};
    use hyper::{client::conn::http2 as client, server::conn::http2 as server, service::service_fn};
    use hyper_util::rt::{TokioExecutor, TokioIo};
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    /// Counts how often it is written to.
    struct Counted(DuplexStream, Arc<AtomicUsize>);

    impl AsyncWrite for Counted {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
            self.1.fetch_add(1, Ordering::Relaxed);
            Pin::new(&mut self.0).poll_write(cx, bytes)
        }

        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_flush(cx)
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_shutdown(cx)
        }
    }

    impl AsyncRead for Counted {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Pin::new(&mut self.0).poll_read(cx, buffer)
        }
    }

    #[tokio::test]
    async fn a_request_is_written_at_once_and_so_is_its_answer() {
        let (near, far) = duplex(1 << 20);
        let (asked, answered) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let near = TokioIo::new(Gathering::new(Counted(near, asked.clone())));
        let far = TokioIo::new(Gathering::new(Counted(far, answered.clone())));
        let echo = service_fn(|request: Request<hyper::body::Incoming>| async {
            let body = request.into_body().collect().await.unwrap().to_bytes();
            Ok::<_, Infallible>(Response::new(Full::new(body)))
        });
        tokio::spawn(server::Builder::new(TokioExecutor::new()).serve_connection(far, echo));
        let (mut sender, connection) = client::handshake(TokioExecutor::new(), near).await.unwrap();
        tokio::spawn(connection);
        let body = Bytes::from_static(&[7; 300]);
        let mut ask = async || {
            let request = Request::put("/").body(Full::new(body.clone())).unwrap();
            let answer = sender.send_request(request).await.unwrap();
            assert_eq!(answer.into_body().collect().await.unwrap().to_bytes(), body);
        };
        // Settings are exchanged beside the first.
        ask().await;
        let before = [&asked, &answered].map(|count| count.load(Ordering::Relaxed));
        for _ in 0..10 {
            ask().await;
        }
        let after = [&asked, &answered].map(|count| count.load(Ordering::Relaxed));
        assert_eq!(after, before.map(|count| count + 10));
    }

    #[tokio::test(start_paused = true)]
    async fn headers_wait_for_a_body_and_not_for_ever() {
        let frame = |kind, flags| [&[0, 0, 2, kind, flags, 0, 0, 0, 1][..], b"ab"].concat();
        let (headers, last, data) = (frame(HEADERS, 4), frame(HEADERS, 5), frame(0, 1));
        let cases = [
            (vec![&last], false),
            (vec![&headers, &data], false),
            (vec![&data], false),
            (vec![&headers], true),
            (vec![&data, &headers], true),
        ];
        for (frames, waited) in cases {
            let (near, _far) = duplex(1000);
            let mut near = Gathering::new(near);
            for frame in frames {
                near.write_all(frame).await.unwrap();
            }
            let start = tokio::time::Instant::now();
            near.flush().await.unwrap();
            assert_eq!(start.elapsed() >= PATIENCE, waited);
        }
    }

    #[tokio::test]
    async fn everything_arrives_in_order() {
        let (near, mut far) = duplex(1000);
        let mut near = Gathering::new(near);
        let pieces: Vec<Vec<u8>> = (0..60_u8)
            .map(|number| vec![number; usize::from(number).pow(3) % 9000])
            .collect();
        let expected = pieces.concat();
        let writing = async move {
            for (number, piece) in pieces.iter().enumerate() {
                near.write_all(piece).await.unwrap();
                if number % 3 == 0 {
                    near.flush().await.unwrap();
                }
            }
            near.shutdown().await.unwrap();
        };
        let mut arrived = Vec::new();
        let (_, read) = tokio::join!(writing, far.read_to_end(&mut arrived));
        assert_eq!(read.unwrap(), expected.len());
        assert!(arrived == expected);
    }
}
