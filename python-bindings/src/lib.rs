//! `millstream._millstream`: what the package needs in native code. Private: the Python modules are the interface.
//!
//! Participants: `connection` (lines to and from the agent's socket), `order` (who reads which sample), `tar` (samples
//! of a tar shard), `arrow_stream` (tables without a copy). Goals: no thread, no runtime, nothing opened until used;
//! the GIL is released while anything waits; a signal is answered within a tenth of a second. Non-goals: policy and
//! words for users, which are in Python.

use pyo3::prelude::*;

mod arrow_stream;
mod connection;
mod order;
mod tar;

#[pymodule]
fn _millstream(m: &Bound<'_, PyModule>) -> PyResult<()> {
    m.add("__version__", env!("CARGO_PKG_VERSION"))?;
    m.add("ORDER_VERSION", millstream_loader_core::order::ORDER_VERSION)?;
    m.add_class::<connection::Connection>()?;
    m.add_class::<order::Order>()?;
    m.add_class::<order::Share>()?;
    m.add_class::<tar::Tar>()?;
    m.add_function(wrap_pyfunction!(arrow_stream::manifest_stream, m)?)?;
    m.add_function(wrap_pyfunction!(arrow_stream::ipc_stream, m)?)?;
    Ok(())
}
