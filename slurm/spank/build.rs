//! Slurm loads a plugin only when it was built for the same release: MILLSTREAM_SLURM_VERSION (22.05.8) says which.

use std::process::Command;

fn main() {
    println!("cargo::rerun-if-env-changed=MILLSTREAM_SLURM_VERSION");
    println!("cargo::rerun-if-changed=build.rs");
    let version = std::env::var("MILLSTREAM_SLURM_VERSION").ok().or_else(installed).unwrap_or_else(|| "22.05.0".into());
    let Some(number) = number(&version) else {
        println!(
            "cargo::error=MILLSTREAM_SLURM_VERSION is {version:?}, which is not MAJOR.MINOR.MICRO such as 22.05.8"
        );
        return;
    };
    println!("cargo::rustc-env=MILLSTREAM_SLURM_VERSION_NUMBER={number}");
}

/// As `slurm-wlm 22.05.8` or `slurm 23.11.4`.
fn installed() -> Option<String> {
    let output = Command::new("srun").arg("--version").output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.split_whitespace().nth(1).map(str::to_owned)
}

/// Slurm's own arithmetic: a byte each, most significant first.
fn number(version: &str) -> Option<u32> {
    let parts: Vec<u8> = version.trim().splitn(3, '.').map(|p| p.parse().ok()).collect::<Option<_>>()?;
    let [major, minor, micro] = parts[..] else { return None };
    Some(u32::from(major) << 16 | u32::from(minor) << 8 | u32::from(micro))
}
