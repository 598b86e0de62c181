//! Runs that differ from the ordinary one: deliberately broken nodes, which the checker must find, and networks without
//! some kind of request, which healing must survive.

use std::{fmt, str::FromStr};

use bytes::Bytes;
use http::{Request, Response};

/// Parts of the paths by which nodes fetch what they were not sent.
const FETCHING: [&str; 6] = [
    "/org.kith/",
    "/get_missing_events/",
    "/backfill/",
    "/state_ids/",
    "/state/",
    "/event/",
];

/// What is different about a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    /// Nothing.
    Ordinary,
    /// No event is ever pushed: what a node holds of others it has fetched.
    NoPushes,
    /// Whatever is told over a topic is lost.
    NoGossip,
    /// Broken: no event is ever fetched.
    NoFetching,
    /// Broken: commits are acknowledged without having been synced, so that a loss of power takes them back.
    LostCommits,
    /// Broken: some nodes resolve states with the order of times turned round.
    FlippedTies,
}

impl Variant {
    /// All of them.
    pub(crate) const ALL: [Self; 6] = [
        Self::Ordinary,
        Self::NoPushes,
        Self::NoGossip,
        Self::NoFetching,
        Self::LostCommits,
        Self::FlippedTies,
    ];

    /// Those of which the checker must find out.
    pub(crate) const BROKEN: [Self; 3] = [Self::NoFetching, Self::LostCommits, Self::FlippedTies];

    fn name(self) -> &'static str {
        match self {
            Self::Ordinary => "ordinary",
            Self::NoPushes => "no-pushes",
            Self::NoGossip => "no-gossip",
            Self::NoFetching => "no-fetching",
            Self::LostCommits => "lost-commits",
            Self::FlippedTies => "flipped-ties",
        }
    }

    /// The answer to a request that this run's network never carries.
    pub(crate) fn answer_instead(self, request: &Request<Bytes>) -> Option<Response<Bytes>> {
        let path = request.uri().path();
        let (status, body) = match self {
            Self::NoPushes if path.starts_with("/_matrix/federation/v1/send/") => (200, r#"{"pdus":{}}"#),
            Self::NoFetching if FETCHING.iter().any(|part| path.contains(part)) => {
                (404, r#"{"errcode":"M_UNRECOGNIZED","error":"not in this run"}"#)
            }
            _ => return None,
        };
        let answer = Response::builder()
            .status(status)
            .body(Bytes::from_static(body.as_bytes()));
        answer.ok()
    }

    /// Whether nothing that is told over a topic arrives.
    pub(crate) fn loses_gossip(self) -> bool {
        matches!(self, Self::NoGossip | Self::NoPushes)
    }

    /// Whether syncing the log of a node's commits does nothing.
    pub(crate) fn skips_syncs(self) -> bool {
        self == Self::LostCommits
    }

    /// Whether a node resolves states its own way.
    pub(crate) fn flips(self, node: usize) -> bool {
        self == Self::FlippedTies && node % 2 == 1
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Variant {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|variant| variant.name() == name);
        found.ok_or_else(|| format!("there is no variant {name}"))
    }
}
