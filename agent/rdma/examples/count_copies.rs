//! Counts what a process copies in memory: a library to be preloaded (`LD_PRELOAD`), which takes the place of libc's
//! `memcpy` and `memmove`. Every copy of more than a few words that Rust or C compilers make goes through them.
//!
//! The counts are in the file that `COUNT_COPIES` names, mapped, so that a test reads them while the process runs:
//! words of eight bytes, native order. First [`BUCKETS`] times two: copies of so many bits of length, and their bytes.
//! Then [`SITES`] times three: where copies were called from (relative to the program), how many, their bytes.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
mod counting {
    use std::arch::{asm, naked_asm};
    use std::ffi::{c_int, c_void};
    use std::ptr;
    use std::sync::atomic::{AtomicPtr, AtomicU64, AtomicUsize, Ordering::Relaxed};

    /// By the bits of the length: 0, 1, 2 to 3, 4 to 7, ...
    const BUCKETS: usize = 64;
    /// Callers that are told apart; more than any run has had. What does not fit is in the buckets only.
    const SITES: usize = 8192;
    const HEAD: usize = 2 * BUCKETS;
    const WORDS: usize = HEAD + 3 * SITES;

    /// Null until the file is mapped: what is copied before is not counted.
    static COUNTS: AtomicPtr<AtomicU64> = AtomicPtr::new(ptr::null_mut());
    /// Where the program is.
    static BASE: AtomicUsize = AtomicUsize::new(0);

    #[used]
    #[unsafe(link_section = ".init_array")]
    static BEGIN: extern "C" fn() = begin;

    extern "C" fn begin() {
        // SAFETY: libc's calls on strings that end with a zero and on a descriptor of our own. The mapping is shared,
        // never unmapped, and as long as the file was made.
        unsafe {
            let path = libc::getenv(c"COUNT_COPIES".as_ptr());
            if path.is_null() {
                return;
            }
            let file: c_int = libc::open(path, libc::O_RDWR | libc::O_CREAT | libc::O_CLOEXEC, 0o644);
            let bytes = WORDS * size_of::<u64>();
            if file < 0 || libc::ftruncate(file, bytes as i64) != 0 {
                return;
            }
            let rights = libc::PROT_READ | libc::PROT_WRITE;
            let at = libc::mmap(ptr::null_mut(), bytes, rights, libc::MAP_SHARED, file, 0);
            libc::close(file);
            // The program's headers follow its first 64 bytes.
            BASE.store((libc::getauxval(libc::AT_PHDR) as usize).wrapping_sub(64), Relaxed);
            if at != libc::MAP_FAILED {
                COUNTS.store(at.cast(), Relaxed);
            }
        }
    }

    /// # Safety
    /// As in C, and the areas may overlap.
    #[unsafe(naked)]
    #[unsafe(no_mangle)]
    pub unsafe extern "C" fn memcpy(to: *mut c_void, from: *const c_void, bytes: usize) -> *mut c_void {
        naked_asm!("mov rcx, [rsp]", "jmp {}", sym copy)
    }

    /// # Safety
    /// As in C.
    #[unsafe(naked)]
    #[unsafe(no_mangle)]
    pub unsafe extern "C" fn memmove(to: *mut c_void, from: *const c_void, bytes: usize) -> *mut c_void {
        naked_asm!("mov rcx, [rsp]", "jmp {}", sym copy)
    }

    /// # Safety
    /// As in C; `caller` is only a number.
    unsafe extern "C" fn copy(to: *mut u8, from: *const u8, bytes: usize, caller: usize) -> *mut u8 {
        let counts = COUNTS.load(Relaxed);
        if !counts.is_null() {
            // SAFETY: `begin` mapped so many words, for ever.
            count(unsafe { std::slice::from_raw_parts(counts, WORDS) }, bytes, caller);
        }
        // SAFETY: the caller's promise. Written in assembler, because a loop here could become a call of itself.
        unsafe {
            if (to as usize).wrapping_sub(from as usize) >= bytes {
                asm!("rep movsq", inout("rcx") bytes / 8 => _, inout("rdi") to => _, inout("rsi") from => _,
                    options(nostack, preserves_flags));
                let done = bytes & !7;
                asm!("rep movsb", inout("rcx") bytes - done => _, inout("rdi") to.add(done) => _,
                    inout("rsi") from.add(done) => _, options(nostack, preserves_flags));
            } else {
                // They overlap, and the target lies behind: from the end.
                asm!("std", "rep movsb", "cld", inout("rcx") bytes => _, inout("rdi") to.add(bytes).wrapping_sub(1) => _,
                    inout("rsi") from.add(bytes).wrapping_sub(1) => _, options(nostack));
            }
        }
        to
    }

    fn count(counts: &[AtomicU64], bytes: usize, caller: usize) {
        let bucket = 2 * (usize::BITS - bytes.leading_zeros()).min(BUCKETS as u32 - 1) as usize;
        counts[bucket].fetch_add(1, Relaxed);
        counts[bucket + 1].fetch_add(bytes as u64, Relaxed);
        let site = (caller.wrapping_sub(BASE.load(Relaxed)) as u64).max(1);
        // The first free place from where its number points.
        for step in 0..64 {
            let at = HEAD + 3 * ((site as usize).wrapping_mul(0x9e37_79b1).wrapping_add(step) % SITES);
            let place = &counts[at];
            let held = match place.load(Relaxed) {
                0 => place.compare_exchange(0, site, Relaxed, Relaxed).map_or_else(|now| now, |_| site),
                now => now,
            };
            if held == site {
                counts[at + 1].fetch_add(1, Relaxed);
                counts[at + 2].fetch_add(bytes as u64, Relaxed);
                return;
            }
        }
    }
}
