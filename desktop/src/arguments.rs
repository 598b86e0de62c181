//! The command line as it is typed. It reads no file.

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use directories::ProjectDirs;
use kith_node::{Multiaddr, config::Profile};

use crate::error::CommandError;

/// A Matrix homeserver of your own, named by a key.
#[derive(Debug, Parser)]
#[command(name = "kith", version, disable_help_subcommand = true)]
pub(crate) struct Arguments {
    /// What to do; without it, `run` with the defaults.
    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the node until SIGINT or SIGTERM.
    Run(RunOptions),
    /// People on this node.
    #[command(subcommand, arg_required_else_help = false)]
    User(UserCommand),
    /// Print the ticket with which others find this node.
    Ticket {
        /// Draw it as a QR code, too.
        #[arg(long)]
        qr: bool,
        #[command(flatten)]
        data: Data,
    },
    /// Other nodes.
    #[command(subcommand, arg_required_else_help = false)]
    Peer(PeerCommand),
    /// The relays through which this node is reached.
    #[command(subcommand, arg_required_else_help = false)]
    Relay(RelayCommand),
    /// Say what the node is and does.
    Status {
        /// As one line of JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        data: Data,
    },
    /// Examine step by step whether others reach this node, and say what to do.
    Doctor {
        /// As one line of JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        data: Data,
    },
    /// The 24 words that restore the identity.
    #[command(subcommand, arg_required_else_help = false)]
    Phrase(PhraseCommand),
    /// Copy the database to a new file and the media to FILE.media, while the node runs or not.
    ///
    /// Keys are not copied: the 24 words of `kith phrase show` restore them. To restore a backup, run `kith phrase restore
    /// --data DIR` for a new folder DIR, and copy FILE to DIR/kith.db and FILE.media to DIR/media.
    Backup {
        /// The file to make.
        file: PathBuf,
        #[command(flatten)]
        data: Data,
    },
    /// Verify the node's database, or a backup of one.
    Check {
        /// The database of a backup [default: the node's].
        file: Option<PathBuf>,
        #[command(flatten)]
        data: Data,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum UserCommand {
    /// Add a person.
    Add {
        /// The name before the colon of the user id.
        name: String,
        /// Read the password from standard input instead of asking.
        #[arg(long)]
        password_stdin: bool,
        #[command(flatten)]
        data: Data,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PeerCommand {
    /// Add another node by its ticket or a `matrix:` URI, and keep in touch with it.
    Add {
        /// The ticket.
        ticket: String,
        #[command(flatten)]
        data: Data,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum RelayCommand {
    /// Use a relay from now on.
    Add {
        /// Its address, which ends in /p2p/RELAY.
        relay: Multiaddr,
        #[command(flatten)]
        data: Data,
    },
    /// Use a relay no longer.
    Remove {
        /// Its address, as `kith relay list` prints it.
        relay: Multiaddr,
        #[command(flatten)]
        data: Data,
    },
    /// Print the relays, and whether each holds a place for this node.
    List {
        /// As one line of JSON.
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        data: Data,
    },
}

/// What kind of machine it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProfileName {
    /// Few connections, long intervals.
    Phone,
    /// Many connections.
    Desktop,
}

impl From<ProfileName> for Profile {
    fn from(name: ProfileName) -> Self {
        match name {
            ProfileName::Phone => Self::Phone,
            ProfileName::Desktop => Self::Desktop,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum PhraseCommand {
    /// Print the words.
    Show {
        #[command(flatten)]
        data: Data,
    },
    /// Read the words from standard input and put their identity into an empty data folder.
    Restore {
        #[command(flatten)]
        data: Data,
    },
}

#[derive(Debug, Default, Args)]
pub(crate) struct RunOptions {
    #[command(flatten)]
    pub(crate) data: Data,
    /// Where clients connect; port 0 finds a free one [default: 127.0.0.1:8008].
    #[arg(long, value_name = "ADDR:PORT")]
    pub(crate) http: Option<SocketAddr>,
    /// A Unix socket for clients, besides DIR/kith.sock.
    #[arg(long, value_name = "PATH")]
    pub(crate) socket: Option<PathBuf>,
    /// Where other nodes connect [default: every interface].
    #[arg(long, value_name = "MULTIADDR")]
    pub(crate) listen: Vec<Multiaddr>,
    /// An address under which others reach this node though no interface has it, such as a forwarded port.
    #[arg(long, value_name = "MULTIADDR")]
    pub(crate) external: Vec<Multiaddr>,
    /// A relay that keeps a place for this node, as an address that ends in /p2p/RELAY; besides those of `kith relay list`.
    #[arg(long, value_name = "MULTIADDR")]
    pub(crate) relay: Vec<Multiaddr>,
    /// How much the network may cost this machine [default: desktop].
    #[arg(long, value_name = "PROFILE")]
    pub(crate) profile: Option<ProfileName>,
    /// Another node to know, by its ticket.
    #[arg(long, value_name = "TICKET")]
    pub(crate) peer: Vec<String>,
    /// Do not look for nodes on the local network, nor be found there.
    #[arg(long)]
    pub(crate) no_mdns: bool,
    /// Do not ask the router for a way in from outside.
    #[arg(long)]
    pub(crate) no_upnp: bool,
    /// Do not open the page in the browser.
    #[arg(long)]
    pub(crate) no_open: bool,
    /// Let anyone who reaches the HTTP address make an account. For tests.
    #[arg(long)]
    pub(crate) open_registration: bool,
    /// Print one line of JSON once the node serves.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Default, Args)]
pub(crate) struct Data {
    /// The data folder [default: the platform's].
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

impl Data {
    /// The data folder: the one given, or the platform's own for this program.
    pub(crate) fn folder(&self) -> Result<PathBuf, CommandError> {
        let folder = match &self.data {
            Some(folder) => folder.clone(),
            None => ProjectDirs::from("chat", "Kith", "kith")
                .ok_or(CommandError::NoHome)?
                .data_dir()
                .to_owned(),
        };
        std::path::absolute(&folder).map_err(|source| CommandError::Path { path: folder, source })
    }
}
