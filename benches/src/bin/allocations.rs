//! Allocations per piece on the hot path, receiving and serving, for each storage engine. Prints one JSON object.
//!
//! ```text
//! allocations [--pieces N] [--piece BYTES] [--trace]
//! ```
//!
//! `--trace` also says on standard error where allocations come from.

use std::io::Write;

use millstream_benches::allocations::{Error, Outcome, Setup, measure};
use millstream_benches::counting::{Counting, sites};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn describe(outcome: &Outcome) -> serde_json::Value {
    let rounded = |n: f64| (n * 10_000.0).round() / 10_000.0;
    serde_json::json!({
        "receiver_per_piece": rounded(outcome.per_piece(|c| c.receiver)),
        "sender_per_piece": rounded(outcome.per_piece(|c| c.sender)),
        "storage_threads_per_piece": rounded(outcome.per_piece(|c| c.storage)),
        "pieces": outcome.pieces,
    })
}

fn main() -> Result<(), Error> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |name: &str, default: u32| -> Result<u32, Error> {
        let given = args.iter().position(|a| a == name).and_then(|at| args.get(at + 1));
        given.map_or(Ok(default), |text| text.parse().map_err(|e| format!("{name}: {e}").into()))
    };
    let (piece_bytes, large) = (number("--piece", 64 * 1024)?, number("--pieces", 8192)?);
    let trace = args.iter().any(|a| a == "--trace");
    let mut engines = serde_json::Map::new();
    for (name, blocking) in [("uring", false), ("blocking", true)] {
        let outcome = measure(Setup { piece_bytes, small: large / 4, large, blocking, trace })?;
        for (n, site) in sites().into_iter().take(40) {
            writeln!(std::io::stderr(), "{name}: {n} x {site}")?;
        }
        engines.insert(name.into(), describe(&outcome));
    }
    let out = serde_json::json!({"bench": "allocations", "piece_bytes": piece_bytes, "engines": engines});
    writeln!(std::io::stdout(), "{out}")?;
    Ok(())
}
