//! Turns columns into Matrix types and back. It reads and writes no row itself.

use std::error::Error;

use ruma::{MilliSecondsSinceUnixEpoch, UInt};
use rusqlite::{Row, types::Type};
use serde::de::DeserializeOwned;

/// An identifier from its text.
pub(crate) fn id<T>(row: &Row<'_>, index: usize) -> rusqlite::Result<T>
where
    T: TryFrom<String>,
    T::Error: Error + Send + Sync + 'static,
{
    T::try_from(row.get(index)?).map_err(|error| unparsable(index, error))
}

/// A value from its JSON.
pub(crate) fn json<T: DeserializeOwned>(row: &Row<'_>, index: usize) -> rusqlite::Result<T> {
    let text = row.get_ref(index)?.as_str().map_err(|error| unparsable(index, error))?;
    serde_json::from_str(text).map_err(|error| unparsable(index, error))
}

/// A time from milliseconds since the Unix epoch; a negative one, which nothing writes, reads as the epoch.
pub(crate) fn time(row: &Row<'_>, index: usize) -> rusqlite::Result<MilliSecondsSinceUnixEpoch> {
    row.get(index).map(to_time)
}

/// As [`time`], for a column that may be null.
pub(crate) fn optional_time(row: &Row<'_>, index: usize) -> rusqlite::Result<Option<MilliSecondsSinceUnixEpoch>> {
    row.get::<_, Option<i64>>(index).map(|millis| millis.map(to_time))
}

/// A time as it is stored.
pub(crate) fn millis(time: MilliSecondsSinceUnixEpoch) -> i64 {
    i64::from(time.0)
}

fn to_time(millis: i64) -> MilliSecondsSinceUnixEpoch {
    MilliSecondsSinceUnixEpoch(UInt::try_from(millis).unwrap_or(UInt::MIN))
}

fn unparsable(index: usize, error: impl Error + Send + Sync + 'static) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(index, Type::Text, Box::new(error))
}
