//! The configuration file: `kith.toml` in the data folder. What the command line says wins over it; lists of relays are
//! joined. Refuses what it does not know.

use std::{fs, io, net::SocketAddr, path::Path, path::PathBuf};

use kith_node::{
    Multiaddr,
    config::{Config, Profile},
    settings::{self, SettingsError},
};
use serde::Deserialize;

/// Its name in the data folder.
const FILE: &str = "kith.toml";

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsFileError {
    #[error("{path} cannot be read")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path}")]
    Content {
        path: PathBuf,
        #[source]
        source: SettingsError,
    },
}

/// The file's keys, each of them optional.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// As `--http`.
    pub(crate) http: Option<SocketAddr>,
    /// As `--socket`; a path from the folder in which `kith run` is started.
    pub(crate) socket: Option<PathBuf>,
    /// As `--listen`.
    pub(crate) listen: Vec<Multiaddr>,
    /// As `--external`.
    pub(crate) external: Vec<Multiaddr>,
    /// As `--relay`.
    pub(crate) relays: Vec<Multiaddr>,
    /// As `--profile`.
    pub(crate) profile: Option<Profile>,
    /// `false` as `--no-mdns`.
    pub(crate) mdns: Option<bool>,
    /// `false` as `--no-upnp`.
    pub(crate) upnp: Option<bool>,
    /// From so many other servers in a room on, its events are passed on among them.
    pub(crate) gossip_from: Option<usize>,
}

impl Settings {
    /// The settings in a data folder; the defaults if it has no file.
    pub(crate) fn read(data: &Path) -> Result<Self, SettingsFileError> {
        let path = data.join(FILE);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            // `NotADirectory` is said better by whoever opens the folder.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                return Ok(Self::default());
            }
            Err(source) => return Err(SettingsFileError::Io { path, source }),
        };
        settings::parse(&text).map_err(|source| SettingsFileError::Content { path, source })
    }

    /// How a node over that folder is started.
    pub(crate) fn config(&self, data: &Path) -> Config {
        let mut config = Config::new(data).with_profile(self.profile.unwrap_or_default());
        config.listen.clone_from(&self.listen);
        config.external.clone_from(&self.external);
        config.relays.clone_from(&self.relays);
        config.mdns = self.mdns.unwrap_or(true);
        config.upnp = self.upnp.unwrap_or(true);
        config.gossip_from = self.gossip_from.unwrap_or(config.gossip_from);
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_says_what_the_command_line_can() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Settings::read(folder.path()).unwrap(), Settings::default());
        let relay = "/ip4/192.0.2.1/udp/4433/quic-v1/p2p/12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA";
        let text = format!(
            "http = \"127.0.0.1:1\"\nprofile = \"phone\"\nmdns = false\ngossip_from = 9\nlisten = [\"/ip4/0.0.0.0/tcp/1\"]\nrelays = [\"{relay}\"]\n"
        );
        fs::write(folder.path().join(FILE), text).unwrap();
        let settings = Settings::read(folder.path()).unwrap();
        let config = settings.config(folder.path());
        assert_eq!(settings.http, Some("127.0.0.1:1".parse().unwrap()));
        assert_eq!(config.limits.connections, 64);
        assert_eq!((config.mdns, config.upnp, config.gossip_from), (false, true, 9));
        assert_eq!(config.relays, [relay.parse().unwrap()]);
    }
}
