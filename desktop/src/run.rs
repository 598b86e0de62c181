//! `kith run`: a node that serves until it is told to stop.

use std::{
    io::IsTerminal,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::{Arc, OnceLock},
};

use kith_node::{
    Node,
    clock::World,
    config::Config,
    contacts::{AddPeerError, Introduction},
    data_folder::DataFolder,
    store::StoreError,
};
use ruma::OwnedServerName;
use serde::Serialize;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing_subscriber::EnvFilter;

use crate::{
    arguments::RunOptions,
    control::{self, Report, Surface},
    error::CommandError,
    operations::OperationError,
    page, say, say_json,
    settings::Settings,
};

/// Where Matrix clients look by default.
const DEFAULT_HTTP: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8008);

/// The environment variable that says what to log, in `tracing`'s syntax.
const LOG: &str = "KITH_LOG";

/// What `--json` prints, once.
#[derive(Serialize)]
struct Ready {
    event: &'static str,
    server_name: OwnedServerName,
    http: Option<String>,
    socket: Option<PathBuf>,
    peer_id: String,
    listen: Vec<String>,
    ticket: String,
}

/// Runs a node until SIGINT or SIGTERM.
pub(crate) async fn run(options: RunOptions) -> Result<(), CommandError> {
    start_log();
    let mut stop = Stop::listen()?;
    let parse = |text: &String| text.parse::<Introduction>().map_err(CommandError::Introduction);
    let peers = options.peer.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    let data = options.data.folder()?;
    let settings = Settings::read(&data)?;
    let config = configure(&settings, &options, &data);

    let node = Node::open(config, World::system()).await?;
    let serving = serve(&node, &data, &settings, &options, &peers);
    // A signal that comes while starting ends the start.
    let outcome = tokio::select! {
        served = serving => match served {
            Ok(()) => { stop.wait().await; Ok(()) }
            Err(error) => Err(error),
        },
        () = stop.wait() => Ok(()),
    };
    tokio::select! {
        () = node.shutdown() => {}
        // Whoever insists does not want to wait; commits are safe, they are only told to fewer.
        () = stop.wait() => {}
    }
    outcome
}

/// What the file says, and over it what the command line says.
fn configure(settings: &Settings, options: &RunOptions, data: &Path) -> Config {
    let mut config = settings.config(data);
    if let Some(profile) = options.profile {
        config = config.with_profile(profile.into());
    }
    if !options.listen.is_empty() {
        config.listen.clone_from(&options.listen);
    }
    if !options.external.is_empty() {
        config.external.clone_from(&options.external);
    }
    config.relays.extend(options.relay.iter().cloned());
    config.mdns &= !options.no_mdns;
    config.upnp &= !options.no_upnp;
    config.open_registration = options.open_registration;
    config
}

/// Brings everything up, and says so.
async fn serve(
    node: &Node,
    data: &Path,
    settings: &Settings,
    options: &RunOptions,
    peers: &[Introduction],
) -> Result<(), CommandError> {
    let control_socket = DataFolder::socket(data);
    let socket = options.socket.as_ref().or(settings.socket.as_ref());
    let socket = socket.map(absolute).transpose()?;
    let surface = Surface {
        node: node.clone(),
        http: Arc::new(OnceLock::new()),
        socket: socket.clone().unwrap_or_else(|| control_socket.clone()),
    };
    let routes = page::routes(surface.clone());
    let http = options.http.or(settings.http).unwrap_or(DEFAULT_HTTP);
    let address = node.serve_http(http, routes).await?;
    let http = surface.http.get_or_init(|| format!("http://{address}")).clone();
    if let Some(socket) = socket
        && socket != control_socket
    {
        node.serve_socket(&socket, axum::Router::new()).await?;
    }
    node.go_online().await?;
    for peer in peers {
        match node.add_peer(peer).await {
            Ok(_) => {}
            // A node that can be read is worth more than none.
            Err(AddPeerError::Store(StoreError::Full)) => {
                tracing::warn!("the disk is full; a node named with --peer is not kept");
            }
            Err(error) => return Err(OperationError::from(error).into()),
        }
    }
    node.serve_socket(&control_socket, control::routes(surface.clone()))
        .await?;
    announce(surface.report().await?, options.json)?;
    if !options.no_open {
        open_page(&http);
    }
    Ok(())
}

/// Others who read the path may stand in another folder.
fn absolute(path: &PathBuf) -> Result<PathBuf, CommandError> {
    std::path::absolute(path).map_err(|source| CommandError::Path {
        path: path.clone(),
        source,
    })
}

fn announce(report: Report, json: bool) -> Result<(), CommandError> {
    let Report { http, socket, node, .. } = report;
    if json {
        return say_json(&Ready {
            event: "ready",
            server_name: node.server_name,
            http,
            socket,
            peer_id: node.peer_id,
            listen: node.listen,
            ticket: node.ticket,
        });
    }
    let http = http.unwrap_or_default();
    say(&format!("This node is {}", node.server_name))?;
    say(&format!("Its page, and the address for Matrix clients: {http}"))?;
    if node.users.is_empty() {
        say("Nobody has an account yet; add one with: kith user add NAME")?;
    }
    say("Press Ctrl-C to stop.")
}

/// Opening is a favour: on a machine without a screen, or without a browser, the address was printed all the same.
fn open_page(http: &str) {
    let has = |name| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    let screen = cfg!(any(target_os = "macos", windows)) || has("DISPLAY") || has("WAYLAND_DISPLAY");
    if screen && let Err(error) = open::that_detached(http) {
        tracing::warn!(%error, "the page could not be opened");
    }
}

fn start_log() {
    let filter =
        EnvFilter::try_from_env(LOG).unwrap_or_else(|_| EnvFilter::new("warn,libp2p_kad=error,quinn_udp=error"));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    // Only a test runs this twice in a process.
    let _ = log.try_init();
}

/// The two signals that ask a program to end.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    fn listen() -> Result<Self, CommandError> {
        let listen = |kind| signal(kind).map_err(CommandError::Signals);
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
