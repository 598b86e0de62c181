//! Whether an update to a remote user's device list can be applied to the copy that is held. It fetches nothing.

/// What to do with an `m.device_list_update`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceListStep {
    /// The copy already holds it: nothing to do.
    Known,
    /// It follows upon the copy: apply it.
    Next,
    /// Something before it was missed: fetch the whole list.
    Gap,
}

/// Compares an update with the copy's position, which is the `stream_id` of the last update or answer it holds.
///
/// Server-server API, "Device Management": an update names those before it; one that names an update which the receiver
/// has not seen, or none at all, cannot be applied.
pub fn device_list_step(held: i64, update: i64, before: impl IntoIterator<Item = i64>) -> DeviceListStep {
    if update == held {
        return DeviceListStep::Known;
    }
    let mut before = before.into_iter().peekable();
    if before.peek().is_some() && before.all(|id| id == held) {
        DeviceListStep::Next
    } else {
        DeviceListStep::Gap
    }
}

#[cfg(test)]
mod tests {
    use super::{DeviceListStep::*, device_list_step};

    #[test]
    fn steps() {
        for (held, update, before, expected) in [
            (5, 5, &[4][..], Known),
            (5, 6, &[5], Next),
            (5, 9, &[5], Next),
            (5, 7, &[6], Gap),
            (5, 7, &[5, 6], Gap),
            (5, 6, &[], Gap),
            // The other server lost its newest updates: its numbers start again lower.
            (5, 3, &[2], Gap),
        ] {
            let step = device_list_step(held, update, before.iter().copied());
            assert_eq!(step, expected, "{held} {update} {before:?}");
        }
    }
}
