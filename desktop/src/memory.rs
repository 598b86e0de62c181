//! Keeps the system's allocator from holding on to what a busy moment needed. Allocates nothing itself.

/// Bytes of free memory at the end of an arena from which it is given back, and of a piece that is given back by itself.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const SPARE: libc::c_int = 128 << 10;

/// Sets the allocator's limits. Call it before there is a second thread.
///
/// glibc gives each thread an arena of its own, up to eight a processor, and raises its thresholds for giving memory back
/// by what it sees: a node that sent 100,000 events then holds 18 MB that it does not use.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "mallopt(3) is a C function")]
pub(crate) fn economise() {
    for (parameter, value) in [
        (libc::M_ARENA_MAX, 2),
        (libc::M_TRIM_THRESHOLD, SPARE),
        (libc::M_MMAP_THRESHOLD, SPARE),
    ] {
        // SAFETY: mallopt reads and writes the allocator's own parameters, and no other thread allocates yet. A parameter
        // that it does not know it refuses, which costs memory and nothing else.
        unsafe { libc::mallopt(parameter, value) };
    }
}

/// Other systems' allocators give back by themselves.
#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
pub(crate) fn economise() {}
