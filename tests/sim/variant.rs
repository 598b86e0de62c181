//! Runs that differ from the ordinary one: deliberately broken nodes, which the checker must find, and networks without
//! some kind of request, which healing must survive.

use std::{fmt, str::FromStr};

use bytes::Bytes;
use http::{Request, Response};

/// What is different about a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    /// Nothing.
    Ordinary,
}

impl Variant {
    /// The answer to a request that this run's network never carries.
    pub(crate) fn answer_instead(self, _request: &Request<Bytes>) -> Option<Response<Bytes>> {
        None
    }
}

impl fmt::Display for Variant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ordinary => "ordinary",
        })
    }
}

impl FromStr for Variant {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        match name {
            "ordinary" => Ok(Self::Ordinary),
            other => Err(format!("there is no variant {other}")),
        }
    }
}
