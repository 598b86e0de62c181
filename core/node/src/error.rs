//! Why a service refused or failed, in Matrix's terms. Rendering it as HTTP is the edge's job.

use std::convert::Infallible;

use kith_engine::RoomError;
use kith_store::StoreError;
use ruma::{
    api::{client::uiaa::UiaaInfo, error::ErrorKind},
    exports::http::StatusCode,
};

use crate::network::NetworkError;

/// The outcome of a service call that did not do what was asked. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request is refused for a reason that its sender can understand.
    #[error("{message}")]
    Refused {
        /// The HTTP status that the specification gives the refusal.
        status: StatusCode,
        /// The Matrix error code with its fields. Boxed: it is large, and errors travel far.
        kind: Box<ErrorKind>,
        /// A sentence for a person.
        message: String,
    },
    /// The user has to prove who they are (user-interactive authentication) before this is done.
    #[error("authentication is needed")]
    AuthenticationNeeded(Box<UiaaInfo>),
    /// Another server could not be reached, or answered with garbage.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The database failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Something that should not happen did; `0` says what, for the log.
    #[error("internal error: {0}")]
    Internal(&'static str, #[source] Option<Box<dyn std::error::Error + Send + Sync>>),
}

impl Error {
    /// A refusal with a status and error code.
    pub fn refused(status: StatusCode, kind: ErrorKind, message: impl Into<String>) -> Self {
        Self::Refused {
            status,
            kind: Box::new(kind),
            message: message.into(),
        }
    }

    /// 403 `M_FORBIDDEN`.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::refused(StatusCode::FORBIDDEN, ErrorKind::Forbidden, message)
    }

    /// 404 `M_NOT_FOUND`.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::refused(StatusCode::NOT_FOUND, ErrorKind::NotFound, message)
    }

    /// 400 `M_INVALID_PARAM`.
    pub fn invalid_param(message: impl Into<String>) -> Self {
        Self::refused(StatusCode::BAD_REQUEST, ErrorKind::InvalidParam, message)
    }

    /// 400 `M_BAD_JSON`.
    pub fn bad_json(message: impl Into<String>) -> Self {
        Self::refused(StatusCode::BAD_REQUEST, ErrorKind::BadJson, message)
    }

    /// Another server's refusal as this node's own, for a client whose request was passed on to it. Complaints about the
    /// request itself stay what they are, a failure between servers: the client's request was not the one refused.
    ///
    /// Server-server API, `send_join` and `invite`, response 400.
    #[must_use]
    pub fn passed_on(self) -> Self {
        match self {
            Self::Network(NetworkError::Refused {
                status, kind, message, ..
            }) if (400..500).contains(&status)
                && !matches!(
                    *kind,
                    ErrorKind::MissingParam
                        | ErrorKind::InvalidParam
                        | ErrorKind::BadJson
                        | ErrorKind::NotJson
                        | ErrorKind::Unrecognized
                        | ErrorKind::Unauthorized
                        | ErrorKind::Unknown
                ) =>
            {
                let status = StatusCode::from_u16(status).unwrap_or(StatusCode::FORBIDDEN);
                Self::Refused { status, kind, message }
            }
            other => other,
        }
    }
}

impl From<RoomError<StoreError>> for Error {
    fn from(error: RoomError<StoreError>) -> Self {
        room_error(error, Error::from)
    }
}

impl From<RoomError<Infallible>> for Error {
    fn from(error: RoomError<Infallible>) -> Self {
        room_error(error, |never| match never {})
    }
}

fn room_error<E>(error: RoomError<E>, read: impl FnOnce(E) -> Error) -> Error
where
    E: std::error::Error + Send + Sync + 'static,
{
    match error {
        RoomError::Read(error) => read(error),
        RoomError::UnknownRoom(_) => Error::not_found(error.to_string()),
        RoomError::WrongVersion { .. } | RoomError::Pdu(_) => Error::invalid_param(error.to_string()),
        RoomError::Lost(_) | RoomError::Resolution(_) => {
            Error::Internal("a room could not be judged", Some(Box::new(error)))
        }
    }
}
