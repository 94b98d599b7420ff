//! `s3-server`: the project's own S3 test server as a process, for the demo, benches and tests in other languages.

use millstream_sim_s3::{BucketConfig, ObjectOptions, S3Server, ServerConfig, ServerHandle};
use serde_json::json;

use crate::args::S3ServerArgs;
use crate::failure::{Failure, Result};
use crate::output;
use crate::signals::{shutdown_token, tie_to_parent};

/// Serves until a signal comes.
pub async fn run(args: S3ServerArgs) -> Result<()> {
    tie_to_parent(args.parent)?;
    let shutdown = shutdown_token()?;
    let config = ServerConfig {
        listen: args.listen,
        control: args.control,
        buckets: vec![BucketConfig { name: args.bucket.clone(), directory: args.from.clone() }],
        rate_bytes_per_s: args.rate.map(|r| r.0),
        ..ServerConfig::default()
    };
    let server = S3Server::start(config)
        .await
        .map_err(|e| Failure::other("s3-server", e).next("choose another --listen, or correct --from"))?;
    seed(&server, &args)?;
    let ready = json!({
        "role": "s3-server", "endpoint": server.endpoint(), "addr": server.addr().to_string(),
        "control": format!("http://{}", server.control_addr()), "bucket": args.bucket,
    });
    if let Some(path) = &args.ready_file {
        write_ready(path, &ready)?;
    }
    output::json_line(&ready)?;
    shutdown.cancelled().await;
    Ok(())
}

fn seed(server: &ServerHandle, args: &S3ServerArgs) -> Result<()> {
    let Some(objects) = args.seeded else { return Ok(()) };
    for i in 0..objects.count {
        let key = format!("{}shard-{i:05}.bin", args.prefix);
        server
            .put_seeded(&args.bucket, &key, u64::from(i) + 1, objects.bytes, ObjectOptions::default())
            .map_err(|e| Failure::other(key, e))?;
    }
    Ok(())
}

/// Whoever sees the file sees all of it.
pub fn write_ready(path: &std::path::Path, ready: &serde_json::Value) -> Result<()> {
    let partial = path.with_extension("partial");
    std::fs::write(&partial, ready.to_string())
        .and_then(|()| std::fs::rename(&partial, path))
        .map_err(|e| Failure::other(path.display().to_string(), e).next("choose another --ready-file"))
}
