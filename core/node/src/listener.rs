//! Serves a router on a TCP address or a Unix socket until told to stop. It knows no route.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

use axum::{
    Router,
    extract::{Request, State},
    http::StatusCode,
    middleware::{self, Next},
    response::{IntoResponse, Response},
    serve::Listener,
};
use tokio::net::{TcpListener, UnixListener, UnixStream, unix};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// What is under way when a stop comes may take this long to be answered; long polls are cut short.
const ANSWER_GRACE: Duration = Duration::from_millis(500);

/// After this, connections that still carry an answer are dropped.
const CLOSE_GRACE: Duration = Duration::from_secs(2);

/// Why an address or socket cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Another program listens there.
    #[error("{0} is in use by another program; choose another port or stop that program")]
    InUse(SocketAddr),
    /// The address cannot be bound.
    #[error("cannot listen on {address}")]
    Address {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another program listens on the socket, or something else stands at its path.
    #[error("{0} is in use, or is no socket")]
    SocketInUse(PathBuf),
    /// The socket cannot be bound.
    #[error("cannot listen on the socket {path}")]
    Socket {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Serves until `stop`; returns the bound address (of a wanted port 0, the one that was found).
pub(crate) async fn serve_tcp(
    address: SocketAddr,
    router: impl FnOnce(SocketAddr) -> Router,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) -> Result<SocketAddr, ListenError> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::AddrInUse => ListenError::InUse(address),
        _ => ListenError::Address { address, source },
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let service = until_stopped(router(bound), stop).into_make_service_with_connect_info::<SocketAddr>();
    let (stopped, stopping) = (stop.clone().cancelled_owned(), stop.clone());
    tasks.spawn(async move {
        let serving = axum::serve(listener, service).with_graceful_shutdown(stopped);
        bounded(serving.into_future(), stopping).await;
    });
    Ok(bound)
}

/// Serves on a socket that only this user may connect to, until `stop`. A socket that nobody listens on is replaced.
pub(crate) async fn serve_unix(
    path: &Path,
    router: Router,
    stop: &CancellationToken,
    tasks: &TaskTracker,
) -> Result<(), ListenError> {
    let failed = |source| ListenError::Socket {
        path: path.to_owned(),
        source,
    };
    clear(path).await?;
    let listener = UnixListener::bind(path).map_err(failed)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).map_err(failed)?;
    let owner = fs::metadata(path).map_err(failed)?.uid();
    let listener = OwnerOnly { listener, owner };
    let service = until_stopped(router, stop).into_make_service();
    let (stopped, stopping, path) = (stop.clone().cancelled_owned(), stop.clone(), path.to_owned());
    tasks.spawn(async move {
        let serving = axum::serve(listener, service).with_graceful_shutdown(stopped);
        bounded(serving.into_future(), stopping).await;
        // Best effort: a socket left behind is replaced at the next start.
        let _ = fs::remove_file(path);
    });
    Ok(())
}

/// Removes a socket that an earlier process left behind.
async fn clear(path: &Path) -> Result<(), ListenError> {
    let failed = |source| ListenError::Socket {
        path: path.to_owned(),
        source,
    };
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(failed(source)),
    };
    if !metadata.file_type().is_socket() || UnixStream::connect(path).await.is_ok() {
        return Err(ListenError::SocketInUse(path.to_owned()));
    }
    fs::remove_file(path).map_err(failed)
}

async fn bounded(serving: impl Future<Output = io::Result<()>>, stop: CancellationToken) {
    let too_long = async {
        stop.cancelled().await;
        tokio::time::sleep(CLOSE_GRACE).await;
    };
    tokio::select! {
        _ = serving => {}
        () = too_long => tracing::warn!("connections that did not end were dropped"),
    }
}

/// Ends requests that outlast a stop: clients ask again at the next start, and what they sent is kept or not at all.
fn until_stopped(router: Router, stop: &CancellationToken) -> Router {
    router.layer(middleware::from_fn_with_state(stop.clone(), end_when_stopped))
}

async fn end_when_stopped(State(stop): State<CancellationToken>, request: Request, next: Next) -> Response {
    let out_of_time = async {
        stop.cancelled().await;
        tokio::time::sleep(ANSWER_GRACE).await;
    };
    tokio::select! {
        response = next.run(request) => response,
        () = out_of_time => {
            let body = r#"{"errcode":"M_UNKNOWN","error":"this node is stopping"}"#;
            let json = [(axum::http::header::CONTENT_TYPE, "application/json")];
            (StatusCode::SERVICE_UNAVAILABLE, json, body).into_response()
        }
    }
}

/// Takes connections of one user's processes only, whatever the modes of the folders around the socket.
struct OwnerOnly {
    listener: UnixListener,
    owner: u32,
}

impl Listener for OwnerOnly {
    type Io = UnixStream;
    type Addr = unix::SocketAddr;

    async fn accept(&mut self) -> (UnixStream, unix::SocketAddr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.listener).await;
            match stream.peer_cred() {
                // The superuser reads everything anyway.
                Ok(peer) if peer.uid() == self.owner || peer.uid() == 0 => return (stream, address),
                _ => tracing::warn!("refused a connection of another user to the socket"),
            }
        }
    }

    fn local_addr(&self) -> io::Result<unix::SocketAddr> {
        Listener::local_addr(&self.listener)
    }
}
