//! A file system for SQLite: the real one, with somebody asked before each read, write and sync of a database, its log and
//! its journal. It decides nothing about what fails. With the stand-in for getrandom(2), the only place with `unsafe`.

#![allow(unsafe_code)] // SQLite takes a file system as a table of C functions.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    mem,
    path::Path,
    ptr,
    sync::{
        OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use rusqlite::ffi::{self, sqlite3_file, sqlite3_int64, sqlite3_io_methods, sqlite3_vfs};

/// How an operation on a file fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// The bytes cannot be read.
    Read,
    /// The bytes cannot be written.
    Write,
    /// What was written may not last.
    Sync,
    /// There is no room.
    Full,
}

/// An open file, as seen by whoever decides what befalls it. What is allowed is then done to the real file.
pub(crate) trait Medium: Send {
    /// Bytes are about to be read.
    fn read(&self) -> Result<(), Failure>;

    /// So many bytes are about to be written from here on.
    fn write(&self, from: u64, length: u64) -> Result<(), Failure>;

    /// The file is about to be cut to so many bytes.
    fn truncate(&self, to: u64) -> Result<(), Failure>;

    /// Everything written so far is to last. The real file is left alone: that it lasts is for this to say.
    fn sync(&self) -> Result<(), Failure>;
}

/// Says who watches over a file.
type Opened = Box<dyn Fn(&Path) -> Option<Box<dyn Medium>> + Send + Sync>;

static OPENED: OnceLock<Opened> = OnceLock::new();
/// What is random to SQLite.
static RANDOM: AtomicU64 = AtomicU64::new(0);

/// A file of ours as SQLite holds it; the real file system's own follows it in memory.
#[repr(C)]
struct File {
    base: sqlite3_file,
    medium: Option<Box<dyn Medium>>,
}

static METHODS: sqlite3_io_methods = sqlite3_io_methods {
    // The second version: with shared memory, without mapping the file itself.
    iVersion: 2,
    xClose: Some(close),
    xRead: Some(read),
    xWrite: Some(write),
    xTruncate: Some(truncate),
    xSync: Some(sync),
    xFileSize: Some(file_size),
    xLock: Some(lock),
    xUnlock: Some(unlock),
    xCheckReservedLock: Some(check_reserved_lock),
    xFileControl: Some(file_control),
    xSectorSize: Some(sector_size),
    xDeviceCharacteristics: Some(device_characteristics),
    xShmMap: Some(shm_map),
    xShmLock: Some(shm_lock),
    xShmBarrier: Some(shm_barrier),
    xShmUnmap: Some(shm_unmap),
    xFetch: None,
    xUnfetch: None,
};

/// Makes this the file system of every database that is opened from now on, and this seed what is random to SQLite.
/// `opened` is asked for each file; those that it has nothing for are the real ones.
pub(crate) fn install(seed: u64, opened: impl Fn(&Path) -> Option<Box<dyn Medium>> + Send + Sync + 'static) {
    assert!(OPENED.set(Box::new(opened)).is_ok(), "one process runs one world");
    RANDOM.store(seed, Ordering::SeqCst);
    // SAFETY: the default file system is never unregistered, and ours is a changed copy of it that lives for ever.
    let registered = unsafe {
        let real = ffi::sqlite3_vfs_find(ptr::null());
        assert!(!real.is_null(), "SQLite has a default file system");
        let ours = Box::leak(Box::new(*real));
        ours.szOsFile = (*real).szOsFile + c_int::try_from(mem::size_of::<File>()).expect("a few bytes");
        ours.zName = c"kith-sim".as_ptr();
        ours.pNext = ptr::null_mut();
        ours.xOpen = Some(open);
        ours.xRandomness = Some(randomness);
        REAL.set(Real(real)).ok();
        ffi::sqlite3_vfs_register(ours, 1)
    };
    assert_eq!(registered, ffi::SQLITE_OK, "SQLite takes a file system");
}

/// The file system that does the work.
#[derive(Clone, Copy)]
struct Real(*mut sqlite3_vfs);

// SAFETY: SQLite calls its file systems from any thread.
unsafe impl Send for Real {}
// SAFETY: as above.
unsafe impl Sync for Real {}

static REAL: OnceLock<Real> = OnceLock::new();

/// The number by which SQLite knows a failure.
fn code(failure: Failure) -> c_int {
    match failure {
        Failure::Read => ffi::SQLITE_IOERR_READ,
        Failure::Write => ffi::SQLITE_IOERR_WRITE,
        Failure::Sync => ffi::SQLITE_IOERR_FSYNC,
        Failure::Full => ffi::SQLITE_FULL,
    }
}

/// The real file behind one of ours.
///
/// # Safety
///
/// `file` is one that [`open`] was given: with room for both.
unsafe fn real(file: *mut sqlite3_file) -> *mut sqlite3_file {
    // SAFETY: the room was asked for by `szOsFile`; `File` is a multiple of eight bytes long.
    unsafe { file.cast::<File>().add(1).cast::<sqlite3_file>() }
}

/// Who watches over one of our files.
///
/// # Safety
///
/// `file` was opened and is not closed.
unsafe fn medium<'a>(file: *mut sqlite3_file) -> Option<&'a dyn Medium> {
    // SAFETY: `open` has written a whole `File` here.
    unsafe {
        (*file.cast::<File>())
            .medium
            .as_deref()
            .map(|medium| medium as &dyn Medium)
    }
}

unsafe extern "C" fn open(
    _vfs: *mut sqlite3_vfs,
    name: *const c_char,
    file: *mut sqlite3_file,
    flags: c_int,
    out_flags: *mut c_int,
) -> c_int {
    let Some(Real(vfs)) = REAL.get().copied() else {
        return ffi::SQLITE_CANTOPEN;
    };
    // SAFETY: `file` has `szOsFile` bytes; SQLite's own file systems have `xOpen`; names end in a zero byte.
    unsafe {
        (*file).pMethods = ptr::null();
        let Some(real_open) = (*vfs).xOpen else {
            return ffi::SQLITE_CANTOPEN;
        };
        let opened = real_open(vfs, name, real(file), flags, out_flags);
        if opened != ffi::SQLITE_OK {
            return opened;
        }
        let path = (!name.is_null()).then(|| CStr::from_ptr(name).to_string_lossy());
        let medium = path.and_then(|path| OPENED.get()?(Path::new(&*path)));
        ptr::write(
            file.cast::<File>(),
            File {
                base: sqlite3_file { pMethods: &METHODS },
                medium,
            },
        );
    }
    ffi::SQLITE_OK
}

unsafe extern "C" fn close(file: *mut sqlite3_file) -> c_int {
    // SAFETY: SQLite closes what it has opened, once.
    unsafe {
        drop((*file.cast::<File>()).medium.take());
        pass(file, |methods| methods.xClose, |close, file| close(file))
    }
}

/// Has the real file system do something.
///
/// # Safety
///
/// `file` is open, and `call` passes on what SQLite has passed.
unsafe fn pass<F>(
    file: *mut sqlite3_file,
    method: impl FnOnce(&sqlite3_io_methods) -> Option<F>,
    call: impl FnOnce(F, *mut sqlite3_file) -> c_int,
) -> c_int {
    // SAFETY: an open file has methods, which are static.
    unsafe {
        let real = real(file);
        match (*real).pMethods.as_ref().and_then(method) {
            Some(method) => call(method, real),
            None => ffi::SQLITE_IOERR,
        }
    }
}

unsafe extern "C" fn read(file: *mut sqlite3_file, to: *mut c_void, length: c_int, from: sqlite3_int64) -> c_int {
    // SAFETY: all arguments are SQLite's own; the same below.
    unsafe {
        match medium(file).map_or(Ok(()), Medium::read) {
            Ok(()) => pass(file, |m| m.xRead, |read, file| read(file, to, length, from)),
            Err(failure) => code(failure),
        }
    }
}

unsafe extern "C" fn write(file: *mut sqlite3_file, bytes: *const c_void, length: c_int, from: sqlite3_int64) -> c_int {
    let (at, many) = (from.unsigned_abs(), u64::from(length.unsigned_abs()));
    // SAFETY: as above.
    unsafe {
        match medium(file).map_or(Ok(()), |medium| medium.write(at, many)) {
            Ok(()) => pass(file, |m| m.xWrite, |write, file| write(file, bytes, length, from)),
            Err(failure) => code(failure),
        }
    }
}

unsafe extern "C" fn truncate(file: *mut sqlite3_file, size: sqlite3_int64) -> c_int {
    // SAFETY: as above.
    unsafe {
        match medium(file).map_or(Ok(()), |medium| medium.truncate(size.unsigned_abs())) {
            Ok(()) => pass(file, |m| m.xTruncate, |truncate, file| truncate(file, size)),
            Err(failure) => code(failure),
        }
    }
}

unsafe extern "C" fn sync(file: *mut sqlite3_file, flags: c_int) -> c_int {
    // SAFETY: as above.
    unsafe {
        match medium(file).map(Medium::sync) {
            Some(Ok(())) => ffi::SQLITE_OK,
            Some(Err(failure)) => code(failure),
            None => pass(file, |m| m.xSync, |sync, file| sync(file, flags)),
        }
    }
}

unsafe extern "C" fn file_size(file: *mut sqlite3_file, size: *mut sqlite3_int64) -> c_int {
    // SAFETY: as above.
    unsafe { pass(file, |m| m.xFileSize, |file_size, file| file_size(file, size)) }
}

unsafe extern "C" fn lock(file: *mut sqlite3_file, level: c_int) -> c_int {
    // SAFETY: as above.
    unsafe { pass(file, |m| m.xLock, |lock, file| lock(file, level)) }
}

unsafe extern "C" fn unlock(file: *mut sqlite3_file, level: c_int) -> c_int {
    // SAFETY: as above.
    unsafe { pass(file, |m| m.xUnlock, |unlock, file| unlock(file, level)) }
}

unsafe extern "C" fn check_reserved_lock(file: *mut sqlite3_file, reserved: *mut c_int) -> c_int {
    // SAFETY: as above.
    unsafe { pass(file, |m| m.xCheckReservedLock, |check, file| check(file, reserved)) }
}

unsafe extern "C" fn file_control(file: *mut sqlite3_file, what: c_int, argument: *mut c_void) -> c_int {
    // SAFETY: as above.
    unsafe { pass(file, |m| m.xFileControl, |control, file| control(file, what, argument)) }
}

unsafe extern "C" fn sector_size(file: *mut sqlite3_file) -> c_int {
    // SAFETY: as above.
    unsafe { pass(file, |m| m.xSectorSize, |size, file| size(file)) }
}

unsafe extern "C" fn device_characteristics(file: *mut sqlite3_file) -> c_int {
    // SAFETY: as above.
    unsafe { pass(file, |m| m.xDeviceCharacteristics, |what, file| what(file)) }
}

unsafe extern "C" fn shm_map(
    file: *mut sqlite3_file,
    page: c_int,
    size: c_int,
    extend: c_int,
    to: *mut *mut c_void,
) -> c_int {
    // SAFETY: as above.
    unsafe { pass(file, |m| m.xShmMap, |map, file| map(file, page, size, extend, to)) }
}

unsafe extern "C" fn shm_lock(file: *mut sqlite3_file, offset: c_int, count: c_int, flags: c_int) -> c_int {
    // SAFETY: as above.
    unsafe { pass(file, |m| m.xShmLock, |lock, file| lock(file, offset, count, flags)) }
}

unsafe extern "C" fn shm_barrier(file: *mut sqlite3_file) {
    let barrier = |barrier: unsafe extern "C" fn(*mut sqlite3_file), file| {
        // SAFETY: as above.
        unsafe { barrier(file) };
        ffi::SQLITE_OK
    };
    // SAFETY: as above.
    unsafe {
        pass(file, |m| m.xShmBarrier, barrier);
    }
}

unsafe extern "C" fn shm_unmap(file: *mut sqlite3_file, delete: c_int) -> c_int {
    // SAFETY: as above.
    unsafe { pass(file, |m| m.xShmUnmap, |unmap, file| unmap(file, delete)) }
}

/// SQLite makes the salts of its log from these.
unsafe extern "C" fn randomness(_vfs: *mut sqlite3_vfs, length: c_int, to: *mut c_char) -> c_int {
    // SAFETY: SQLite passes so many bytes to be written.
    let bytes = unsafe { std::slice::from_raw_parts_mut(to.cast::<u8>(), usize::try_from(length).unwrap_or(0)) };
    crate::random::split_mix(&RANDOM, bytes);
    length
}
