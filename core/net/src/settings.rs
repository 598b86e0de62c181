//! Reads settings from the text of a configuration file (TOML), and says of a bad one which key and line is meant. Opens no
//! file: programs do.

use serde::de::DeserializeOwned;

/// What is wrong with a configuration file, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}{}: {message}", .key.as_ref().map(|key| format!(", key `{key}`")).unwrap_or_default())]
pub struct SettingsError {
    /// The line, counted from 1.
    pub line: usize,
    /// The key on that line, if one stands there.
    pub key: Option<String>,
    /// What is wrong with it.
    pub message: String,
}

/// Reads settings; keys that the type does not have are for the type to refuse.
pub fn parse<T: DeserializeOwned>(text: &str) -> Result<T, SettingsError> {
    toml::from_str(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start).min(text.len());
        let before = text.get(..at).unwrap_or_default();
        let start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = text
            .get(start..)
            .and_then(|rest| rest.lines().next())
            .unwrap_or_default();
        let key = line.split_once('=').map(|(key, _)| key.trim().to_owned());
        SettingsError {
            line: before.matches('\n').count() + 1,
            key: key.filter(|key| !key.is_empty()),
            message: error.message().split_whitespace().collect::<Vec<_>>().join(" "),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        #[serde(default)]
        number: u8,
        #[serde(default)]
        list: Vec<u8>,
    }

    #[test]
    fn good_settings_are_read() {
        let expected = Sample {
            number: 3,
            list: vec![1, 2],
        };
        assert_eq!(parse("# text\nlist = [1,\n 2]\nnumber = 3\n"), Ok(expected));
    }

    #[test]
    fn a_mistake_is_named_with_its_line() {
        let cases = [
            ("number = 1\nnumbre = 2\n", 2, Some("numbre"), "unknown field"),
            ("\n\nnumber = 300\n", 3, Some("number"), "invalid value"),
            ("number = \"x\"", 1, Some("number"), "invalid type"),
            ("number = 1\nnumber = 2", 2, Some("number"), "duplicate key"),
            ("list = [1,\n  \"x\"]", 2, None, "invalid type"),
            ("number", 1, None, ""),
        ];
        for (text, line, key, message) in cases {
            let error = parse::<Sample>(text).unwrap_err();
            assert_eq!((error.line, error.key.as_deref()), (line, key), "{error}");
            assert!(
                error.message.contains(message) && !error.to_string().contains('\n'),
                "{error}"
            );
        }
    }
}
