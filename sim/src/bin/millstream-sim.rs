//! Simulates one stage and prints what it came to, with T/T*.

use std::io::Write;
use std::time::Instant;

use anyhow::{Context, Result};
use clap::Parser;
use millstream_sim::{FaultKind, Fidelity, Scenario, run};
use millstream_types::size::{format_size, parse_size};

/// Simulate a stage of a dataset on a cluster that starts cold.
#[derive(Debug, Parser)]
#[command(name = "millstream-sim")]
struct Args {
    /// Nodes.
    #[arg(long, default_value_t = 64)]
    nodes: u32,
    /// Bytes of the dataset.
    #[arg(long, default_value = "4GiB")]
    bytes: String,
    /// Shards; default: of about 1 GiB each, at least 16.
    #[arg(long)]
    shards: Option<u64>,
    /// Bytes per second of a node's link.
    #[arg(long, default_value = "12.5GB")]
    link: String,
    /// Bytes per second of the origin; default: as the link.
    #[arg(long)]
    origin: Option<String>,
    /// Bytes per second of a node's disk; default: twice the link.
    #[arg(long)]
    disk: Option<String>,
    /// Decides all that is random.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Nodes that die at random moments, and return 10 s later.
    #[arg(long, default_value_t = 0)]
    faults: u32,
    /// Piece by piece with real agent cores (default up to 256 nodes), or extent by extent.
    #[arg(long, value_parser = ["pieces", "extents"])]
    fidelity: Option<String>,
    /// Print one JSON document.
    #[arg(long)]
    json: bool,
}

fn main() -> Result<()> {
    let args = Args::parse();
    let scenario = scenario(&args)?;
    let begun = Instant::now();
    let mut outcome = run(scenario);
    outcome.wall_s = begun.elapsed().as_secs_f64();
    let mut out = std::io::stdout().lock();
    if args.json {
        serde_json::to_writer_pretty(&mut out, &outcome)?;
        writeln!(out)?;
    } else {
        let o = &outcome;
        writeln!(out, "{} nodes, {}, seed {}", o.nodes, format_size(o.bytes), o.seed)?;
        writeln!(out, "T {:.3} s, T* {:.3} s (by {}), T/T* {:.4}", o.elapsed_s, o.bound_s, o.bound_by, o.ratio)?;
        if o.elapsed_unharmed_s < o.elapsed_s {
            writeln!(out, "nodes that nothing happened to: {:.3} s", o.elapsed_unharmed_s)?;
        }
        writeln!(out, "origin bytes / dataset bytes {:.4}, the last at {:.3} s", o.origin_ratio, o.origin_done_s)?;
        writeln!(
            out,
            "{} assignments ({:.0}/s simulated), {} messages, {} events in {:.1} s",
            o.assignments, o.assignments_per_s, o.messages, o.events, o.wall_s
        )?;
        writeln!(out, "coordinator memory {}", format_size(o.coordinator_memory_bytes))?;
        for violation in &o.violations {
            writeln!(out, "VIOLATION: {violation}")?;
        }
    }
    anyhow::ensure!(outcome.violations.is_empty(), "{} promises broken", outcome.violations.len());
    Ok(())
}

fn scenario(args: &Args) -> Result<Scenario> {
    let rate = |text: &str| parse_size(text).map(|bytes| bytes as f64);
    let bytes = parse_size(&args.bytes).context("--bytes")?;
    let link = rate(&args.link).context("--link")?;
    let origin = args.origin.as_deref().map_or(Ok(link), rate).context("--origin")?;
    let disk = args.disk.as_deref().map_or(Ok(2.0 * link), rate).context("--disk")?;
    let shards = args.shards.unwrap_or((bytes >> 30).max(16));
    let mut scenario = Scenario::new(args.seed, args.nodes, bytes, shards).rates(link, origin, disk);
    scenario.fidelity = match args.fidelity.as_deref() {
        Some("pieces") => Fidelity::Pieces,
        Some("extents") => Fidelity::Extents,
        _ if args.nodes <= 256 => Fidelity::Pieces,
        _ => Fidelity::Extents,
    };
    scenario.indexed = scenario.fidelity == Fidelity::Extents;
    let horizon_us = (scenario.bound().0 * 1e6) as u64;
    let mut rng = millstream_sim::Rng::new(args.seed, 3);
    for _ in 0..args.faults {
        let (node, at_us) = (rng.below(u64::from(args.nodes)) as u32, rng.below(horizon_us));
        if scenario.faults.iter().all(|f| f.kind.node() != Some(node)) {
            scenario = scenario.with(at_us, FaultKind::Dies(node)).with(at_us + 10_000_000, FaultKind::Returns(node));
        }
    }
    Ok(scenario)
}
