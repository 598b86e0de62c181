//! What libraries ask the operating system for as randomness, from the seed `KITH_SEED` (1 without it), so that a simulation
//! is the same in every run. Preloaded into a simulation (`LD_PRELOAD`), and fit for nothing else: keys made under it are
//! known to everybody. It takes no lock and allocates nothing, since locks and allocators may call it.

use std::{
    ffi::{CStr, c_long, c_uint, c_void},
    ptr,
    sync::atomic::{AtomicPtr, AtomicU64, Ordering::SeqCst},
};

/// The state of SplitMix64 (Steele, Lea, Flood 2014).
static STATE: AtomicU64 = AtomicU64::new(UNSEEDED);
const UNSEEDED: u64 = 0;

fn seed() -> u64 {
    // SAFETY: the name ends in a zero, and nothing sets the environment while a simulation runs.
    let value = unsafe { libc::getenv(c"KITH_SEED".as_ptr()) };
    if value.is_null() {
        return 1;
    }
    // SAFETY: what getenv(3) gives ends in a zero.
    let value = unsafe { CStr::from_ptr(value) };
    let digits = value.to_bytes().iter().map(|digit| u64::from(digit.wrapping_sub(b'0')));
    digits.fold(0, |seed: u64, digit| seed.wrapping_mul(10).wrapping_add(digit)).max(1)
}

fn fill(bytes: &mut [u8]) {
    let _ = STATE.compare_exchange(UNSEEDED, seed(), SeqCst, SeqCst);
    for chunk in bytes.chunks_mut(8) {
        let mut number = STATE.fetch_add(0x9E37_79B9_7F4A_7C15, SeqCst);
        number = (number ^ (number >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        number = (number ^ (number >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        number ^= number >> 31;
        chunk.copy_from_slice(&number.to_le_bytes()[..chunk.len()]);
    }
}

/// Stands in for the C library's.
///
/// # Safety
///
/// As for getrandom(2): `buffer` points to `length` bytes that may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, _flags: c_uint) -> isize {
    if length > 0 {
        // SAFETY: the caller owns these bytes, as the contract of getrandom(2) says.
        fill(unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) });
    }
    isize::try_from(length).unwrap_or(isize::MAX)
}

type Syscall = unsafe extern "C" fn(c_long, c_long, c_long, c_long, c_long, c_long, c_long) -> c_long;

/// The C library's own `syscall`, once it was looked for.
static NEXT: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// Stands in for the C library's: the crate getrandom 0.2 asks the kernel by number. Every other call goes through.
///
/// # Safety
///
/// As for syscall(2). The C function takes a variable number of arguments; on the machines that this runs on, all of them
/// travel as these seven do.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall(
    number: c_long,
    a: c_long,
    b: c_long,
    c: c_long,
    d: c_long,
    e: c_long,
    f: c_long,
) -> c_long {
    if number == libc::SYS_getrandom {
        // SAFETY: the caller's contract with the kernel is that of getrandom(2).
        return unsafe { getrandom(a as *mut c_void, b as usize, c as c_uint) } as c_long;
    }
    let mut next = NEXT.load(SeqCst);
    if next.is_null() {
        // SAFETY: the name ends in a zero.
        next = unsafe { libc::dlsym(libc::RTLD_NEXT, c"syscall".as_ptr()) };
        if next.is_null() {
            // SAFETY: errno is this thread's own.
            unsafe { *libc::__errno_location() = libc::ENOSYS };
            return -1;
        }
        NEXT.store(next, SeqCst);
    }
    // SAFETY: what the C library has under this name is its `syscall`; the rest is the caller's contract.
    unsafe { std::mem::transmute::<*mut c_void, Syscall>(next)(number, a, b, c, d, e, f) }
}
