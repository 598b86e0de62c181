//! `kith-relay`: the program that volunteers run so that nodes behind NATs are reached. Parses the command line, keeps the
//! relay's key, and says when it is ready; what it forwards is [`kith_net::relay`]'s business, and nobody's to read.

mod key;
mod settings;

use std::{
    io::IsTerminal,
    net::UdpSocket,
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use clap::{Args, Parser, Subcommand};
use kith_net::{
    DhtServerConfig, Multiaddr, ShelfLimits, StartError, Timing,
    relay::{Relay, RelayConfig},
};
use ruma::{MilliSecondsSinceUnixEpoch, UInt};
use serde_json::json;
use settings::{Settings, SettingsFileError};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// Exit status for settings that make no sense, as for arguments.
const USAGE: u8 = 2;

/// The port that a relay listens on unless told otherwise.
const PORT: u16 = 4433;

/// A circuit relay for Kith nodes. It forwards ciphertext and can read nothing.
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the relay until it is told to stop.
    Run(Run),
}

#[derive(Args)]
struct Run {
    /// A file with settings and limits; see kith-relay.example.toml.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The folder that keeps the relay's key, and with it its address. Default: the platform's data folder.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// An address to listen on, such as /ip4/0.0.0.0/udp/4433/quic-v1. May be given several times.
    /// Default: port 4433 on every interface, QUIC and TCP.
    #[arg(long, value_name = "MULTIADDR")]
    listen: Vec<Multiaddr>,
    /// An address under which nodes reach this relay from outside. May be given several times.
    /// Default: the addresses that it listens on.
    #[arg(long, value_name = "MULTIADDR")]
    external: Vec<Multiaddr>,
    /// Another relay, as an address that ends in /p2p/RELAY, through which this one joins the DHT. May be given several
    /// times. Others find this one by the same.
    #[arg(long, value_name = "MULTIADDR")]
    peer: Vec<Multiaddr>,
    /// Print one line of JSON once the relay serves, and nothing else on standard output.
    #[arg(long)]
    json: bool,
}

/// Why the relay does not run.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("this system has no data folder for you: give one with --data")]
    NoDataFolder,
    #[error(transparent)]
    Settings(#[from] SettingsFileError),
    #[error(transparent)]
    Key(#[from] key::KeyFileError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error("the system refused: {0}")]
    System(#[from] std::io::Error),
}

fn main() -> ExitCode {
    let Command::Run(options) = Cli::parse().command;
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("warn,libp2p_kad=error,libp2p_autonat=error"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    match run(options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kith-relay: {}", one_line(&error));
            match error {
                Error::Settings(SettingsFileError::Content { .. }) => ExitCode::from(USAGE),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

#[tokio::main]
async fn run(options: Run) -> Result<(), Error> {
    let settings = options
        .config
        .as_deref()
        .map(Settings::read)
        .transpose()?
        .unwrap_or_default();
    let limits = settings.limits();
    let data = match options.data {
        Some(data) => data,
        None => directories::ProjectDirs::from("", "", "kith-relay")
            .ok_or(Error::NoDataFolder)?
            .data_dir()
            .to_owned(),
    };
    // Before anything is announced, so that a stop is never missed.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let relay = Relay::start(RelayConfig {
        transport_key: key::load_or_create(&data)?,
        listen: first_given([options.listen, settings.listen, default_listen()]),
        external: first_given([options.external, settings.external]),
        limits,
        dht: DhtServerConfig {
            clock: Arc::new(now),
            limits: ShelfLimits::default(),
            servers: first_given([options.peer, settings.peers]),
        },
        timing: Timing::relay(),
    })
    .await?;
    announce(&relay, options.json);
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    relay.shutdown().await;
    Ok(())
}

/// The command line wins over the file, and both over the defaults.
fn first_given<const N: usize>(choices: [Vec<Multiaddr>; N]) -> Vec<Multiaddr> {
    choices.into_iter().find(|given| !given.is_empty()).unwrap_or_default()
}

/// The machine's clock, by which records of the DHT are judged.
fn now() -> MilliSecondsSinceUnixEpoch {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
    MilliSecondsSinceUnixEpoch(UInt::new_saturating(
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX),
    ))
}

fn announce(relay: &Relay, json: bool) {
    if json {
        let ready = json!({
            "event": "ready",
            "peer_id": relay.peer_id().to_string(),
            "listen": relay.listen_addrs(),
            "addr": relay.addrs(),
        });
        println!("{ready}");
        return;
    }
    println!("The relay is running. Nodes use it with one of these addresses:");
    for address in relay.addrs() {
        println!("  {address}");
    }
}

/// Port 4433 on every interface; IPv6 only where the system has it.
fn default_listen() -> Vec<Multiaddr> {
    let mut hosts = vec!["/ip4/0.0.0.0"];
    if UdpSocket::bind("[::]:0").is_ok() {
        hosts.push("/ip6/::");
    }
    let addresses = hosts
        .iter()
        .flat_map(|host| [format!("{host}/udp/{PORT}/quic-v1"), format!("{host}/tcp/{PORT}")]);
    addresses.filter_map(|address| address.parse().ok()).collect()
}

/// An error and its causes, as one line.
fn one_line(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line.replace('\n', " ")
}
