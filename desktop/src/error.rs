//! Why a command failed, in words for whoever typed it.

use std::{error::Error, io, path::PathBuf};

use kith_node::{
    StartError,
    contacts::IntroductionError,
    data_folder::DataFolderError,
    identity::{PhraseError, QrError},
    keystore::KeystoreError,
    status::StatusError,
    store::OpenError,
};

use crate::{control::ControlError, operations::OperationError, settings::SettingsFileError};

/// A command's failure. Each makes one line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error("cannot start")]
    Runtime(#[source] io::Error),
    #[error("cannot find the home folder; name a data folder with --data")]
    NoHome,
    #[error("cannot use the path {path}")]
    Path {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("there is no node in {0}; `kith run` makes one")]
    NoNode(PathBuf),
    #[error("the configuration cannot be used")]
    Settings(#[from] SettingsFileError),
    #[error(transparent)]
    Start(#[from] StartError),
    #[error(transparent)]
    DataFolder(#[from] DataFolderError),
    #[error(transparent)]
    Keys(#[from] KeystoreError),
    #[error(transparent)]
    Operation(#[from] OperationError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error("the node is just starting or stopping; try again")]
    Changing,
    #[error("this is no ticket")]
    Introduction(#[source] IntroductionError),
    #[error("this is not the phrase")]
    Phrase(#[from] PhraseError),
    #[error(transparent)]
    Qr(#[from] QrError),
    #[error(transparent)]
    Status(#[from] StatusError),
    #[error(transparent)]
    Database(#[from] OpenError),
    #[error("{path} is damaged ({count} problems), first: {first}")]
    Unsound { path: PathBuf, count: usize, first: String },
    #[error("cannot read standard input")]
    Input(#[source] io::Error),
    #[error("the password is empty")]
    NoPassword,
    #[error("the two passwords differ")]
    PasswordsDiffer,
    #[error("there is no terminal to ask for the password; use --password-stdin")]
    NoTerminal,
    #[error("cannot write to standard output")]
    Output(#[source] io::Error),
    #[error("cannot write JSON")]
    Json(#[source] serde_json::Error),
    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
    #[error("the command was interrupted")]
    Interrupted,
}

/// An error and its causes, the outermost first, without line ends and without saying anything twice.
pub(crate) fn one_line(error: &dyn Error) -> String {
    let mut line = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        if line.is_empty() {
            line = text;
        } else if !line.contains(&text) {
            line = format!("{line}: {text}");
        }
        next = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_follow_on_one_line() {
        let io = || io::Error::other("disk\non fire");
        let cases = [
            (CommandError::NoPassword, "the password is empty"),
            (
                CommandError::Output(io()),
                "cannot write to standard output: disk on fire",
            ),
        ];
        for (error, expected) in cases {
            assert_eq!(one_line(&error), expected);
        }
    }
}
