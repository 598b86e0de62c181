//! End-to-end encryption as a homeserver keeps it: public keys, device lists, sealed backups and messages between devices.
//! Nothing here can be decrypted, and nothing is verified: what to keep is decided above.

mod cross_signing;
mod dehydrated;
mod device_keys;
mod device_lists;
mod key_backup;
mod one_time_keys;
mod remote_devices;
mod sharing;
mod to_device;

#[cfg(test)]
mod sharing_tests;
#[cfg(test)]
mod tests;

pub use cross_signing::CrossSigningRow;
pub use dehydrated::DehydratedDevice;
pub use device_keys::DeviceRow;
pub use device_lists::{DeviceListChanges, DeviceListPosition};
pub use key_backup::{BackedUpKey, KeyBackup, KeyChange};
pub use one_time_keys::OneTimeKeyState;
pub use remote_devices::RemoteDeviceList;
pub(crate) use sharing::JoinChange;
pub use to_device::ToDeviceMessage;
