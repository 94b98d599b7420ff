//! The verbs: one module each.

use tokio::runtime::{Builder, Runtime};

use crate::args::{Cli, Shell, Verb};
use crate::failure::{Failure, Result};
use crate::signals::interruptible;

mod daemons;
mod dataset;
mod demo;
mod doctor;
mod path;
mod s3_server;
mod select;
mod simulate;
pub mod slurm;
mod stage;
mod status;
mod wait;

/// Does what was asked.
pub fn run(verb: Verb) -> Result<()> {
    if let Verb::Completions { shell } = verb {
        return completions(shell);
    }
    let runtime = match &verb {
        // Each node waits for its hooks before each job: no threads are made for them.
        Verb::Slurm { .. } => Builder::new_current_thread().enable_all().build(),
        _ => Runtime::new(),
    };
    let runtime = runtime.map_err(|e| Failure::other("runtime", e))?;
    let result = runtime.block_on(dispatch(verb));
    // Whatever still runs has been told to stop; a blocking call that hangs must not keep the process.
    runtime.shutdown_background();
    result
}

async fn dispatch(verb: Verb) -> Result<()> {
    match verb {
        Verb::Coordinator(daemon) => daemons::coordinator(daemon).await,
        Verb::Agent(daemon) => daemons::agent(*daemon).await,
        Verb::S3Server(args) => s3_server::run(args).await,
        Verb::Simulate(args) => simulate::run(args).await,
        Verb::Demo(args) => demo::run(args).await,
        client => interruptible(ask(client)).await,
    }
}

/// Verbs that ask and end: a signal simply ends them.
async fn ask(verb: Verb) -> Result<()> {
    match verb {
        Verb::Dataset { verb } => dataset::run(verb).await,
        Verb::Stage(args) => stage::run(args).await,
        Verb::Wait(args) => wait::run(args).await,
        Verb::Path(args) => path::run(args).await,
        Verb::Pin(args) => select::pin(args, true).await,
        Verb::Unpin(args) => select::pin(args, false).await,
        Verb::Evict(args) => select::evict(args).await,
        Verb::Verify(args) => select::verify(args).await,
        Verb::Status(args) => status::run(args).await,
        Verb::Doctor(args) => doctor::run(args).await,
        Verb::Slurm { verb } => slurm::run(*verb).await,
        Verb::Coordinator(_)
        | Verb::Agent(_)
        | Verb::Demo(_)
        | Verb::S3Server(_)
        | Verb::Simulate(_)
        | Verb::Completions { .. } => Ok(()),
    }
}

fn completions(shell: Shell) -> Result<()> {
    use clap::CommandFactory as _;
    use clap_complete::{generate, shells};
    let mut command = Cli::command();
    let mut script = Vec::new();
    match shell {
        Shell::Bash => generate(shells::Bash, &mut command, "millstream", &mut script),
        Shell::Zsh => generate(shells::Zsh, &mut command, "millstream", &mut script),
        Shell::Fish => generate(shells::Fish, &mut command, "millstream", &mut script),
    }
    crate::output::line(String::from_utf8_lossy(&script).trim_end())
}
