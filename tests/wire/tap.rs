//! Makes TAP devices: what the kernel sends out through one, the program reads, and the other way round. The only place where
//! that takes `unsafe`.

use std::{
    fs::{File, OpenOptions},
    io,
    os::fd::AsRawFd,
};

/// Where the kernel gives out such devices.
const CLONE_DEVICE: &str = "/dev/net/tun";

/// Makes the device `name` in this process's network namespace. It goes with the file. Frames come and go whole, without a header
/// before them.
#[allow(
    unsafe_code,
    reason = "naming a TAP device is an ioctl, which no safe library in the tree offers"
)]
pub(crate) fn open(name: &str) -> io::Result<File> {
    let file = OpenOptions::new().read(true).write(true).open(CLONE_DEVICE)?;
    // SAFETY: ifreq is plain data, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero, for C.
    let room = request.ifr_name.len() - 1;
    if name.is_empty() || name.len() > room {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not the name of an interface",
        ));
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *place = libc::c_char::from_ne_bytes([byte]);
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
    // SAFETY: TUNSETIFF reads and writes one ifreq, which lives as long as the call.
    match unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } {
        0 => Ok(file),
        _ => Err(io::Error::last_os_error()),
    }
}
