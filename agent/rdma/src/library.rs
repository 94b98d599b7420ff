//! libibverbs, loaded when first needed, so that one binary starts on nodes that have none.
//!
//! rdma-sys declares the functions as linked symbols; none of those is called here (the linker then drops the
//! dependency), only its types and its inline functions, which go through the tables of an open device.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::OnceLock;

use rdma_sys::{
    ibv_async_event, ibv_comp_channel, ibv_context, ibv_cq, ibv_device, ibv_device_attr, ibv_gid, ibv_mr, ibv_pd,
    ibv_port_attr, ibv_qp, ibv_qp_attr, ibv_qp_init_attr,
};

use crate::error::RdmaError;

const NAME: &str = "libibverbs.so.1";
const FILE: &CStr = c"libibverbs.so.1";

macro_rules! library {
    ($($symbol:literal $field:ident: fn($($arg:ty),*) $(-> $ret:ty)?;)*) => {
        /// The functions of libibverbs that are not inline.
        pub(crate) struct Library {
            $(pub(crate) $field: unsafe extern "C" fn($($arg),*) $(-> $ret)?,)*
        }

        impl Library {
            fn from_handle(handle: *mut c_void) -> Result<Library, RdmaError> {
                Ok(Library {
                    $($field: {
                        // SAFETY: the handle is open and the name ends with a zero.
                        let found = unsafe { libc::dlsym(handle, $symbol.as_ptr()) };
                        if found.is_null() {
                            return Err(missing(format!("it has no {}", $symbol.to_string_lossy())));
                        }
                        // SAFETY: the symbol is this function of libibverbs's stable interface (IBVERBS_1.1),
                        // whose declaration rdma-sys takes from the same header.
                        unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($arg),*) $(-> $ret)?>(found) }
                    },)*
                })
            }
        }
    };
}

library! {
    c"ibv_get_device_list" get_device_list: fn(*mut c_int) -> *mut *mut ibv_device;
    c"ibv_free_device_list" free_device_list: fn(*mut *mut ibv_device);
    c"ibv_open_device" open_device: fn(*mut ibv_device) -> *mut ibv_context;
    c"ibv_close_device" close_device: fn(*mut ibv_context) -> c_int;
    c"ibv_query_device" query_device: fn(*mut ibv_context, *mut ibv_device_attr) -> c_int;
    c"ibv_query_port" query_port: fn(*mut ibv_context, u8, *mut ibv_port_attr) -> c_int;
    c"ibv_query_gid" query_gid: fn(*mut ibv_context, u8, c_int, *mut ibv_gid) -> c_int;
    c"ibv_alloc_pd" alloc_pd: fn(*mut ibv_context) -> *mut ibv_pd;
    c"ibv_dealloc_pd" dealloc_pd: fn(*mut ibv_pd) -> c_int;
    c"ibv_reg_mr" reg_mr: fn(*mut ibv_pd, *mut c_void, usize, c_int) -> *mut ibv_mr;
    c"ibv_dereg_mr" dereg_mr: fn(*mut ibv_mr) -> c_int;
    c"ibv_create_comp_channel" create_comp_channel: fn(*mut ibv_context) -> *mut ibv_comp_channel;
    c"ibv_destroy_comp_channel" destroy_comp_channel: fn(*mut ibv_comp_channel) -> c_int;
    c"ibv_create_cq" create_cq: fn(*mut ibv_context, c_int, *mut c_void, *mut ibv_comp_channel, c_int) -> *mut ibv_cq;
    c"ibv_destroy_cq" destroy_cq: fn(*mut ibv_cq) -> c_int;
    c"ibv_get_cq_event" get_cq_event: fn(*mut ibv_comp_channel, *mut *mut ibv_cq, *mut *mut c_void) -> c_int;
    c"ibv_ack_cq_events" ack_cq_events: fn(*mut ibv_cq, u32);
    c"ibv_create_qp" create_qp: fn(*mut ibv_pd, *mut ibv_qp_init_attr) -> *mut ibv_qp;
    c"ibv_modify_qp" modify_qp: fn(*mut ibv_qp, *mut ibv_qp_attr, c_int) -> c_int;
    c"ibv_destroy_qp" destroy_qp: fn(*mut ibv_qp) -> c_int;
    c"ibv_get_async_event" get_async_event: fn(*mut ibv_context, *mut ibv_async_event) -> c_int;
    c"ibv_ack_async_event" ack_async_event: fn(*mut ibv_async_event);
}

fn missing(detail: String) -> RdmaError {
    RdmaError::Library { library: NAME, detail }
}

/// The library, or why there is none. Found once per process.
///
/// # Errors
/// [`RdmaError::Library`].
pub(crate) fn library() -> Result<&'static Library, RdmaError> {
    static LIBRARY: OnceLock<Result<Library, RdmaError>> = OnceLock::new();
    match LIBRARY.get_or_init(load) {
        Ok(library) => Ok(library),
        Err(RdmaError::Library { detail, .. }) => Err(missing(detail.clone())),
        Err(_) => Err(missing("it cannot be used".into())),
    }
}

fn load() -> Result<Library, RdmaError> {
    // SAFETY: loading a system library runs its initialisers, as linking with it would. It is never unloaded.
    let handle = unsafe { libc::dlopen(FILE.as_ptr(), libc::RTLD_NOW) };
    if handle.is_null() {
        // SAFETY: after a failed `dlopen` on this thread the message is null or a string that lives until the next call.
        let detail = unsafe { text(libc::dlerror()) };
        return Err(missing(detail));
    }
    Library::from_handle(handle)
}

/// # Safety
/// Null, or a string that ends with a zero and stays during the call.
pub(crate) unsafe fn text(chars: *const c_char) -> String {
    if chars.is_null() {
        return String::new();
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(chars) }.to_string_lossy().into_owned()
}
