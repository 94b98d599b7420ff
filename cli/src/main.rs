//! The one binary of Millstream: daemons and client verbs.
//!
//! Purpose: turn flags, environment and files into typed requests, and replies into text, JSON and exit codes.
//! Participants: `args` (what a user types), `config` (layers of settings), `client` (coordinator), `socket` (local
//! agent), `verbs` (one module each), `output` (tables, JSON, progress), `failure` (errors and exit codes).
//! Non-goals: no policy. What may be staged, evicted or read is decided by the coordinator and the agents.

use std::process::ExitCode;

use clap::Parser as _;

mod args;
mod client;
mod config;
mod failure;
mod limits;
mod logging;
mod output;
mod signals;
mod socket;
mod systemd;
mod verbs;

fn main() -> ExitCode {
    let cli = match args::Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // clap knows which of its "errors" are --help and --version. A closed pipe is nobody's concern here.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { failure::Code::Usage as u8 } else { 0 });
        }
    };
    match verbs::run(cli.verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            failure.report();
            ExitCode::from(failure.code as u8)
        }
    }
}
