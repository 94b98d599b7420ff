//! The option `--stage` of srun, sbatch, salloc and `#SBATCH`, as a SPANK plugin.
//!
//! It checks what was written, in the user's own process, and hands it to the hooks as `SPANK_MILLSTREAM_STAGE`.
//! Goals: a mistake is told before the job is submitted; nothing here can end the process that loaded it: no panic
//! leaves a function, and with `optional` in plugstack.conf a plugin of another release is passed over. Non-goals:
//! any network, anything on compute nodes. The few names of Slurm's C interface that spank(8) documents are declared by
//! hand: no header of Slurm is needed or copied (docs/adr/0010); they have been the same since Slurm 2.

// The wall to Slurm's C interface; each block says why it is sound.
#![allow(unsafe_code, non_upper_case_globals)]

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, PoisonError};

use millstream_slurm::want;

/// What Slurm looks for before anything else.
#[unsafe(no_mangle)]
pub static plugin_name: [u8; 11] = *b"millstream\0";
/// Its kind.
#[unsafe(no_mangle)]
pub static plugin_type: [u8; 6] = *b"spank\0";
/// The release that it was built for.
#[unsafe(no_mangle)]
pub static plugin_version: c_uint = parse(env!("MILLSTREAM_SLURM_VERSION_NUMBER"));
/// Of this plugin.
#[unsafe(no_mangle)]
pub static spank_plugin_version: c_uint = 1;

const fn parse(text: &str) -> c_uint {
    let (bytes, mut at, mut number) = (text.as_bytes(), 0, 0);
    while at < bytes.len() {
        number = number * 10 + (bytes[at] - b'0') as c_uint;
        at += 1;
    }
    number
}

type Callback = extern "C" fn(c_int, *const c_char, c_int) -> c_int;

/// What `spank_option_register` takes.
#[repr(C)]
struct SpankOption {
    name: *const c_char,
    arginfo: *const c_char,
    usage: *const c_char,
    has_arg: c_int,
    val: c_int,
    cb: Callback,
}

unsafe extern "C" {
    fn spank_option_register(spank: *mut c_void, option: *mut SpankOption) -> c_int;
    fn spank_remote(spank: *mut c_void) -> c_int;
    fn spank_job_control_setenv(
        spank: *mut c_void,
        name: *const c_char,
        value: *const c_char,
        overwrite: c_int,
    ) -> c_int;
    fn slurm_error(format: *const c_char, ...);
}

/// Zero is success, to Slurm and from it.
const FINE: c_int = 0;
const BAD: c_int = -1;

/// What was written so far: `--stage` may come several times, and from `#SBATCH` lines as well.
static STAGE: Mutex<String> = Mutex::new(String::new());

fn complain(text: &str) {
    if let Ok(text) = CString::new(format!("millstream: {text}")) {
        // SAFETY: both are C strings that live through the call, and the format takes exactly one of them.
        unsafe { slurm_error(c"%s".as_ptr(), text.as_ptr()) };
    }
}

/// Runs `work`; a panic is a complaint and `otherwise`.
fn guarded(otherwise: c_int, work: impl FnOnce() -> c_int) -> c_int {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        complain("an error in the plugin; --stage may not have been seen");
        otherwise
    })
}

/// Takes one `--stage=VALUE`.
extern "C" fn take(_val: c_int, value: *const c_char, remote: c_int) -> c_int {
    guarded(BAD, || {
        // On compute nodes it was checked already.
        if remote != 0 || value.is_null() {
            return FINE;
        }
        // SAFETY: not null, and Slurm passes a C string that lives through the call.
        let Ok(value) = unsafe { CStr::from_ptr(value) }.to_str() else {
            complain("--stage is not UTF-8");
            return BAD;
        };
        let mut stage = STAGE.lock().unwrap_or_else(PoisonError::into_inner);
        // sbatch reads the command line twice.
        if stage.split_whitespace().any(|known| value == known) {
            return FINE;
        }
        let both = format!("{stage} {value}");
        match want::of_stage(&both) {
            Ok(_) => *stage = both,
            Err(error) => {
                complain(&error.to_string());
                return BAD;
            }
        }
        FINE
    })
}

/// Slurm calls this when it has loaded the plugin.
///
/// # Safety
/// `spank` is the handle that Slurm gave, valid for this call.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slurm_spank_init(spank: *mut c_void, _argc: c_int, _argv: *const *const c_char) -> c_int {
    guarded(FINE, || {
        let mut option = SpankOption {
            name: c"stage".as_ptr(),
            arginfo: c"NAME[@VERSION][,...]".as_ptr(),
            usage: c"data that the job's nodes have before it starts; ckpt/RUN@latest for checkpoints".as_ptr(),
            has_arg: 1,
            val: 0,
            cb: take,
        };
        // SAFETY: the handle is Slurm's; Slurm copies the option, and its strings are static.
        if unsafe { spank_option_register(spank, &mut option) } != FINE {
            complain("cannot register --stage");
        }
        FINE
    })
}

/// Slurm calls this when all options are read: leaves the value for the hooks.
///
/// # Safety
/// As of [`slurm_spank_init`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn slurm_spank_init_post_opt(
    spank: *mut c_void,
    _argc: c_int,
    _argv: *const *const c_char,
) -> c_int {
    guarded(FINE, || {
        // SAFETY: the handle is Slurm's.
        let remote = unsafe { spank_remote(spank) } != 0;
        let stage = STAGE.lock().unwrap_or_else(PoisonError::into_inner);
        let value = stage.trim();
        if remote || value.is_empty() {
            return FINE;
        }
        let Ok(value) = CString::new(value) else { return BAD };
        // SAFETY: the handle is Slurm's; both are C strings that live through the call, and Slurm copies them.
        let left = unsafe { spank_job_control_setenv(spank, c"MILLSTREAM_STAGE".as_ptr(), value.as_ptr(), 1) };
        if left != FINE {
            complain("cannot hand --stage over; write it into --comment=\"millstream:...\" instead");
            return BAD;
        }
        FINE
    })
}
