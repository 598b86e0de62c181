//! The relay's configuration file: every limit by name, and where to listen. Refuses what it does not know; changes nothing.

use std::{
    fs, io,
    num::{NonZeroU32, NonZeroU64},
    path::{Path, PathBuf},
    time::Duration,
};

use kith_net::{
    Multiaddr,
    relay::RelayLimits,
    settings::{self, SettingsError},
};
use serde::Deserialize;

const MIB: u64 = 1 << 20;

/// Why there are no settings.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SettingsFileError {
    #[error("{path} cannot be read: {source}")]
    Io {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path}: {source}")]
    Content {
        path: PathBuf,
        #[source]
        source: SettingsError,
    },
}

/// The file. Further services get tables of their own beside `limits`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Settings {
    /// As `--listen`.
    pub(crate) listen: Vec<Multiaddr>,
    /// As `--external`.
    pub(crate) external: Vec<Multiaddr>,
    /// As `--peer`.
    pub(crate) peers: Vec<Multiaddr>,
    limits: Limits,
}

/// What [`RelayLimits`] holds, as a volunteer writes it.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Limits {
    connections: Option<NonZeroU32>,
    connections_per_peer: Option<NonZeroU32>,
    memory_mib: Option<NonZeroU64>,
    reservations: Option<u32>,
    reservation_minutes: Option<NonZeroU32>,
    circuits: Option<u32>,
    circuits_per_peer: Option<u32>,
    circuit_minutes: Option<NonZeroU32>,
    circuit_mib: Option<NonZeroU64>,
    per_ip_minute: Option<NonZeroU32>,
    per_peer_minute: Option<NonZeroU32>,
}

impl Settings {
    /// The settings in a file.
    pub(crate) fn read(path: &Path) -> Result<Self, SettingsFileError> {
        let text = fs::read_to_string(path).map_err(|source| SettingsFileError::Io {
            path: path.to_owned(),
            source,
        })?;
        settings::parse(&text).map_err(|source| SettingsFileError::Content {
            path: path.to_owned(),
            source,
        })
    }

    /// The limits: those in the file, and the defaults of the others.
    pub(crate) fn limits(&self) -> RelayLimits {
        let (given, default) = (&self.limits, RelayLimits::default());
        let minutes = |given: Option<NonZeroU32>, default| {
            given.map_or(default, |minutes| Duration::from_secs(60 * u64::from(minutes.get())))
        };
        let bytes = |mib: NonZeroU64| mib.get().saturating_mul(MIB);
        let count = |given: Option<u32>, default| given.map_or(default, |count| count as usize);
        RelayLimits {
            connections: given.connections.map_or(default.connections, NonZeroU32::get),
            connections_per_peer: given
                .connections_per_peer
                .map_or(default.connections_per_peer, NonZeroU32::get),
            memory: given
                .memory_mib
                .map_or(default.memory, |mib| usize::try_from(bytes(mib)).unwrap_or(usize::MAX)),
            reservations: count(given.reservations, default.reservations),
            reservation: minutes(given.reservation_minutes, default.reservation),
            circuits: count(given.circuits, default.circuits),
            circuits_per_peer: count(given.circuits_per_peer, default.circuits_per_peer),
            circuit: minutes(given.circuit_minutes, default.circuit),
            circuit_bytes: given.circuit_mib.map_or(default.circuit_bytes, bytes),
            per_ip_minute: given.per_ip_minute.unwrap_or(default.per_ip_minute),
            per_peer_minute: given.per_peer_minute.unwrap_or(default.per_peer_minute),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_says_the_defaults() {
        let example = include_str!("../kith-relay.example.toml");
        // What is commented out there is what holds without it.
        let uncommented: String = example
            .lines()
            .map(|line| {
                line.strip_prefix("# ")
                    .filter(|line| line.contains(" = "))
                    .unwrap_or(line)
            })
            .map(|line| format!("{line}\n"))
            .collect();
        for text in [example, &uncommented] {
            let settings: Settings = settings::parse(text).unwrap();
            assert_eq!(
                format!("{:?}", settings.limits()),
                format!("{:?}", RelayLimits::default())
            );
        }
        let set: Settings = settings::parse(&uncommented).unwrap();
        let all = format!("{:?}", set.limits);
        assert!(!all.contains("None"), "the example names every limit: {all}");
    }

    #[test]
    fn what_is_set_holds() {
        let settings: Settings =
            settings::parse("[limits]\nreservations = 0\ncircuit_minutes = 2\nmemory_mib = 1\nper_ip_minute = 7")
                .unwrap();
        let limits = settings.limits();
        assert_eq!(
            (
                limits.reservations,
                limits.circuit,
                limits.memory,
                limits.per_ip_minute.get()
            ),
            (0, Duration::from_secs(120), 1 << 20, 7)
        );
        assert_eq!(limits.circuits, RelayLimits::default().circuits);
    }
}
