//! What a person types: passwords and phrases. Nothing typed is echoed or kept.

use std::io::{self, IsTerminal, Read, Write};

use zeroize::Zeroizing;

use crate::error::CommandError;

/// More than any password or phrase needs.
const MAX_INPUT: u64 = 4096;

/// A new password: the first line of standard input, or asked for twice.
pub(crate) fn new_password(from_stdin: bool) -> Result<Zeroizing<String>, CommandError> {
    let password = if from_stdin {
        let input = read_stdin()?;
        Zeroizing::new(input.lines().next().unwrap_or_default().to_owned())
    } else if io::stdin().is_terminal() {
        let ask = |prompt| {
            rpassword::prompt_password(prompt)
                .map(Zeroizing::new)
                .map_err(CommandError::Input)
        };
        let (first, second) = (ask("Password: ")?, ask("Again: ")?);
        if first != second {
            return Err(CommandError::PasswordsDiffer);
        }
        first
    } else {
        return Err(CommandError::NoTerminal);
    };
    if password.is_empty() {
        Err(CommandError::NoPassword)
    } else {
        Ok(password)
    }
}

/// The words of a phrase, on any number of lines.
pub(crate) fn phrase() -> Result<Zeroizing<String>, CommandError> {
    if io::stdin().is_terminal() {
        hint("Type the 24 words, then Enter:");
        return rpassword::read_password()
            .map(Zeroizing::new)
            .map_err(CommandError::Input);
    }
    read_stdin()
}

/// Says something to a person, never to a program.
pub(crate) fn hint(text: &str) {
    if io::stdout().is_terminal() || io::stdin().is_terminal() && io::stderr().is_terminal() {
        // A hint that cannot be shown is not missed.
        let _ = writeln!(io::stderr(), "{text}");
    }
}

fn read_stdin() -> Result<Zeroizing<String>, CommandError> {
    let mut text = Zeroizing::new(String::with_capacity(MAX_INPUT as usize));
    io::stdin()
        .take(MAX_INPUT)
        .read_to_string(&mut text)
        .map_err(CommandError::Input)?;
    Ok(text)
}
