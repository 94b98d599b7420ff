//! Whole clusters of cores on a virtual network, disk, clock and origin: seeded, replayable.
//!
//! Purpose: check the promises of the design on thousands of runs that no machine could carry, and measure how near a
//! stage comes to its lower bound T*. Participants: the real coordinator core, always; the real agent cores in the
//! piece-by-piece world ([`Fidelity::Pieces`]), a stand-in that obeys in the coarse one ([`Fidelity::Extents`], for
//! thousands of nodes). Non-goals: sockets, files, threads; a run is a pure function of its [`Scenario`].

pub mod bound;
mod checks;
mod clock;
mod coordinator;
mod extents;
mod outcome;
mod pieces;
mod rng;
mod scenario;
mod trace;

pub use coordinator::{Told, core_config};
pub use outcome::Outcome;
pub use rng::Rng;
pub use scenario::{Fault, FaultKind, Fidelity, Loaders, Scenario};

/// Runs a scenario to its end: everything that can be complete is, or the time is up.
pub fn run(scenario: Scenario) -> Outcome {
    match scenario.fidelity {
        Fidelity::Pieces => pieces::run(scenario),
        Fidelity::Extents => extents::run(scenario, None),
    }
}

/// Runs a scenario extent by extent, and passes on all that the coordinator's core is told: another core with the same
/// settings that is told the same comes to the same state. Ends early when nobody takes it any more.
pub fn tell(scenario: Scenario, tap: std::sync::mpsc::SyncSender<Told>) -> Outcome {
    extents::run(scenario, Some(tap))
}
