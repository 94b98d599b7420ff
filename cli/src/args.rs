//! What a user types. Help texts are the reference; `docs/reference/cli.md` explains more.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::config::{AgentSettings, ClientSettings, CoordinatorSettings, Size, Span};

/// Millstream keeps the training data of a GPU cluster on the nodes that are about to read it.
#[derive(Parser, Debug)]
#[command(name = "millstream", version, max_term_width = 110)]
#[command(
    after_help = "Exit codes: 0 ok, 2 usage, 3 unknown dataset/version/node/key, 4 not ready in time, 5 integrity \
failure, 6 coordinator or agent unreachable, 7 no space, 8 conflict, 9 denied, 1 anything else, 130 interrupted."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub verb: Verb,
}

/// All verbs.
#[derive(Subcommand, Debug)]
pub enum Verb {
    /// Run the coordinator: catalog, nodes, and who fetches what from where
    Coordinator(Daemon<CoordinatorSettings>),
    /// Run the agent of this node
    Agent(Box<Daemon<AgentSettings>>),
    /// Register, list, show, forget datasets; write their index
    Dataset {
        /// Which.
        #[command(subcommand)]
        verb: DatasetVerb,
    },
    /// Bring a version onto nodes
    Stage(StageArgs),
    /// Return when a version is verified and visible on nodes
    Wait(WaitArgs),
    /// Print the local path of verified data; exit 4 when it is not ready here
    Path(PathArgs),
    /// Keep a version on nodes: it is never evicted
    Pin(SelectArgs),
    /// Undo `pin`
    Unpin(SelectArgs),
    /// Drop a version from nodes; pinned and leased copies stay
    Evict(SelectArgs),
    /// Re-read and re-check every byte on disk
    Verify(SelectArgs),
    /// Nodes, datasets, stages, rates and reasons
    Status(StatusArgs),
    /// Check this machine: kernel, io_uring, RDMA, limits, disk, clock, coordinator, agent, origin
    Doctor(DoctorArgs),
    /// What Slurm's hooks run (docs/slurm.md)
    Slurm {
        /// Which.
        #[command(subcommand)]
        verb: Box<crate::verbs::slurm::SlurmVerb>,
    },
    /// A whole cluster on this machine with real data, and a small training run on it
    Demo(DemoArgs),
    /// Print a completion script
    Completions {
        /// For which shell.
        shell: Shell,
    },
    /// An S3 server for tests and benchmarks; it keeps objects in memory
    #[command(hide = true)]
    S3Server(S3ServerArgs),
    /// The status page over a simulated cluster, for looking at it and measuring it
    #[command(hide = true)]
    Simulate(SimulateArgs),
}

/// Shells that completions are written for.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Shell {
    /// GNU bash
    Bash,
    /// Z shell
    Zsh,
    /// fish
    Fish,
}

/// How logs are written.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub enum LogFormat {
    /// For people
    #[default]
    Text,
    /// One JSON object a line
    Json,
}

/// What both daemons take.
#[derive(Args, Debug)]
pub struct Daemon<S: Args> {
    /// The role's own settings.
    #[command(flatten)]
    pub settings: S,
    /// TOML file with settings [default: /etc/millstream/<role>.toml, if it is there]
    #[arg(long, env = "MILLSTREAM_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What to log: a level, or targets with levels
    #[arg(long, env = "MILLSTREAM_LOG", default_value = "info", value_name = "FILTER")]
    pub log: String,
    /// How to log
    #[arg(long, env = "MILLSTREAM_LOG_FORMAT", default_value = "text", value_name = "FORMAT")]
    pub log_format: LogFormat,
    /// Stop when this parent process ends: for supervisors that may be killed
    #[arg(long, hide = true, value_name = "PID")]
    pub parent: Option<i32>,
}

/// What all client verbs take.
#[derive(Args, Debug)]
pub struct ClientArgs {
    /// Where the coordinator and the agent are.
    #[command(flatten)]
    pub settings: ClientSettings,
    /// TOML file with settings [default: /etc/millstream/client.toml, if it is there]
    #[arg(long, env = "MILLSTREAM_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// One JSON document on standard output (streams: one JSON object a line)
    #[arg(long)]
    pub json: bool,
}

/// `dataset …`.
#[derive(Subcommand, Debug)]
pub enum DatasetVerb {
    /// Register a snapshot of what is under URL now
    Add(AddArgs),
    /// Write the manifest with all piece checksums beside the data, so that registrations know them in advance
    Index(IndexArgs),
    /// List datasets
    Ls(ClientArgs),
    /// Show one version and its shards
    Show {
        /// NAME (the latest version) or NAME@VERSION
        dataset: String,
        /// Common flags.
        #[command(flatten)]
        client: ClientArgs,
    },
    /// Forget a version (NAME@VERSION) or a whole dataset (NAME); nothing at the origin is touched
    Rm {
        /// NAME or NAME@VERSION
        dataset: String,
        /// Common flags.
        #[command(flatten)]
        client: ClientArgs,
    },
}

/// `dataset add`.
#[derive(Args, Debug)]
pub struct AddArgs {
    /// The dataset's name: letters, digits, '-', '_', '.'
    pub name: String,
    /// Where it is: s3://bucket/prefix, gs://, az://, http(s)://, file:///directory
    pub url: String,
    /// The name of this version [default: chosen by the coordinator]
    #[arg(long, value_name = "V")]
    pub version: Option<String>,
    /// Data that trainers read, or a checkpoint that they wrote
    #[arg(long, default_value = "dataset")]
    pub kind: Kind,
    /// The training run that wrote the checkpoint
    #[arg(long, required_if_eq("kind", "checkpoint"), value_name = "RUN")]
    pub run: Option<String>,
    /// The checkpoint's step
    #[arg(long, required_if_eq("kind", "checkpoint"), value_name = "N")]
    pub step: Option<u64>,
    /// Common flags.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// What a version is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Data that trainers read
    Dataset,
    /// State that trainers wrote
    Checkpoint,
}

/// `dataset index`.
#[derive(Args, Debug)]
pub struct IndexArgs {
    /// The prefix to read; the index is written beside the data
    pub url: String,
    /// One JSON document on standard output
    #[arg(long)]
    pub json: bool,
}

/// `stage`.
#[derive(Args, Debug)]
pub struct StageArgs {
    /// NAME (the latest version), NAME@VERSION, ckpt/RUN@latest or ckpt/RUN@STEP (%x is this job's name)
    pub dataset: String,
    /// all, self, job (the nodes of this Slurm job), names with commas, or a host list such as node[001-016]
    #[arg(long, default_value = "all")]
    pub nodes: String,
    /// replicate (every node everything), spread=R (every shard on R nodes), or window (ahead of the readers there)
    #[arg(long, default_value = "replicate")]
    pub placement: String,
    /// Higher goes first
    #[arg(long, default_value_t = 0, value_name = "P")]
    pub priority: u32,
    /// Return when it is verified and visible there
    #[arg(long)]
    pub wait: bool,
    /// With --wait: give up after this time (exit 4), such as 30s or 2h
    #[arg(long, requires = "wait", value_name = "D")]
    pub timeout: Option<Span>,
    /// Common flags.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `wait`.
#[derive(Args, Debug)]
pub struct WaitArgs {
    /// NAME (the latest version), NAME@VERSION, ckpt/RUN@latest or ckpt/RUN@STEP (%x is this job's name)
    pub dataset: String,
    /// self, all, job (the nodes of this Slurm job), names with commas, or a host list such as node[001-016]
    #[arg(long, default_value = "self")]
    pub nodes: String,
    /// Give up after this time (exit 4), such as 30s or 2h [default: none]
    #[arg(long, value_name = "D")]
    pub timeout: Option<Span>,
    /// Common flags.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `path`.
#[derive(Args, Debug)]
pub struct PathArgs {
    /// NAME (the latest version here), NAME@VERSION, ckpt/RUN@latest or ckpt/RUN@STEP
    pub dataset: String,
    /// One shard's file instead of the directory of all
    pub key: Option<String>,
    /// Bring the shard here first when it is not (from peers, or the origin when none has it)
    #[arg(long, requires = "key")]
    pub fetch: bool,
    /// Longest wait for --fetch
    #[arg(long, value_name = "D", default_value = "60s", requires = "fetch")]
    pub timeout: Span,
    /// Common flags.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// Verbs on a version on some nodes.
#[derive(Args, Debug)]
pub struct SelectArgs {
    /// NAME (the latest version) or NAME@VERSION
    pub dataset: String,
    /// all, self, names with commas, or a host list such as node[001-016]
    #[arg(long, default_value = "all")]
    pub nodes: String,
    /// Common flags.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `status`.
#[derive(Args, Debug)]
pub struct StatusArgs {
    /// NAME or NAME@VERSION [default: everything]
    pub dataset: Option<String>,
    /// On a terminal: live views of everything, of the version or the node; elsewhere: again every second
    #[arg(long)]
    pub watch: bool,
    /// One node instead
    #[arg(long, value_name = "NODE", conflicts_with = "dataset")]
    pub node: Option<String>,
    /// Any document of the HTTP API as JSON, by its path below /api/v1/ ("events?kind=evicted")
    #[arg(long, value_name = "PATH", conflicts_with_all = ["dataset", "node"])]
    pub view: Option<String>,
    /// Common flags.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `doctor`.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Also try to list this URL with the credentials of this environment
    pub url: Option<String>,
    /// The agent's data directory
    #[arg(long, env = "MILLSTREAM_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Common flags.
    #[command(flatten)]
    pub client: ClientArgs,
}

/// `demo`.
#[derive(Args, Debug)]
pub struct DemoArgs {
    /// Where the nodes' data goes [default: a temporary directory, removed at the end]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Stop after the summary; exit 0 only if everything happened
    #[arg(long, env = "DEMO_EXIT", value_parser = clap::builder::FalseyValueParser::new(), action = clap::ArgAction::SetTrue)]
    pub exit: bool,
    /// How many agents
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=16))]
    pub nodes: u16,
    /// The status page's port on 127.0.0.1 [default: a free one]
    #[arg(long, default_value_t = 0)]
    pub http_port: u16,
    /// A Python with scikit-learn and the millstream package
    #[arg(long, env = "MILLSTREAM_PYTHON", default_value = "python3", value_name = "PROGRAM")]
    pub python: PathBuf,
}

/// `s3-server`.
#[derive(Args, Debug)]
pub struct S3ServerArgs {
    /// Where S3 is served
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDR")]
    pub listen: std::net::SocketAddr,
    /// Where faults, statistics and objects are served as JSON
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDR")]
    pub control: std::net::SocketAddr,
    /// The bucket
    #[arg(long, default_value = "data")]
    pub bucket: String,
    /// Files below this directory are the bucket's objects
    #[arg(long, value_name = "DIR")]
    pub from: Option<PathBuf>,
    /// Make objects of pseudo-random bytes, such as 4x64MiB
    #[arg(long, value_name = "COUNTxSIZE", conflicts_with = "from")]
    pub seeded: Option<SeededObjects>,
    /// The prefix of their keys
    #[arg(long, default_value = "seeded/")]
    pub prefix: String,
    /// Bytes a second that leave the server, all requests together
    #[arg(long, value_name = "SIZE")]
    pub rate: Option<Size>,
    /// Written when it listens: one JSON object with the addresses
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    /// Stop when this parent process ends
    #[arg(long, value_name = "PID")]
    pub parent: Option<i32>,
}

/// `simulate`.
#[derive(Args, Debug)]
pub struct SimulateArgs {
    /// Nodes
    #[arg(long, default_value_t = 1_000, value_parser = clap::value_parser!(u32).range(1..=16_384))]
    pub nodes: u32,
    /// Shards of the one version
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub shards: u32,
    /// Bytes of a shard
    #[arg(long, default_value = "1MiB", value_name = "SIZE")]
    pub shard_size: Size,
    /// Seconds of the simulation in a second
    #[arg(long, default_value_t = 0.2)]
    pub speed: f64,
    /// Nodes that die at some moment
    #[arg(long, default_value_t = 3)]
    pub deaths: u32,
    /// Where the page is served
    #[arg(long, default_value = "127.0.0.1:0", value_name = "ADDR")]
    pub http: std::net::SocketAddr,
    /// Written when it listens: one JSON object with the address
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    /// Stop when this parent process ends
    #[arg(long, value_name = "PID")]
    pub parent: Option<i32>,
}

/// How many objects of which size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeededObjects {
    /// How many.
    pub count: u32,
    /// Of how many bytes each.
    pub bytes: u64,
}

impl std::str::FromStr for SeededObjects {
    type Err = String;
    fn from_str(text: &str) -> Result<SeededObjects, String> {
        let wrong = || format!("{text:?} is not COUNTxSIZE, such as 4x64MiB");
        let (count, size) = text.split_once('x').ok_or_else(wrong)?;
        let size: Size = size.parse().map_err(|_| wrong())?;
        Ok(SeededObjects { count: count.parse().map_err(|_| wrong())?, bytes: size.0 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn flags_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_checkpoint_needs_run_and_step() {
        let parse =
            |extra: &[&str]| Cli::try_parse_from(["millstream", "dataset", "add", "n", "s3://b/p"].iter().chain(extra));
        assert!(parse(&[]).is_ok());
        assert!(parse(&["--kind", "checkpoint"]).is_err());
        assert!(parse(&["--kind", "checkpoint", "--run", "r", "--step", "3"]).is_ok());
    }
}
