//! How fast one thread reads from the S3 test server, and what each side pays for a byte.
//!
//! `cargo run --release -p millstream-origin --example read_throughput [GiB]` prints one JSON line per way of reading:
//! throughput, and CPU seconds per GiB of the client's and of the server's thread.

use std::io::Write as _;
use std::sync::mpsc;
use std::time::Instant;

use futures::StreamExt as _;
use millstream_origin::{Origin, Pin};
use millstream_sim_s3::{EtagKind, ObjectOptions, S3Server, ServerConfig, StoredChecksum};
use millstream_types::checksum::Crc64Stream;
use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, ObjectStore as _};

const GIB: u64 = 1 << 30;
const RANGE: u64 = 64 << 20;
const PIECE: usize = 4 << 20;
const SUM: usize = 256 << 10;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// CPU seconds of this thread.
fn cpu_s() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let ns = text.split(' ').next().and_then(|ns| ns.parse::<f64>().ok());
    ns.unwrap_or_default() / 1e9
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// A server on a thread of its own; whoever asks gets its CPU time.
struct Server {
    endpoint: String,
    ask: tokio::sync::mpsc::Sender<mpsc::Sender<f64>>,
}

impl Server {
    fn start(len: u64) -> Result<Server, Failure> {
        let (ask, mut asked) = tokio::sync::mpsc::channel::<mpsc::Sender<f64>>(1);
        let (ready, started) = mpsc::channel();
        std::thread::spawn(move || -> Result<(), Failure> {
            runtime()?.block_on(async move {
                let server = S3Server::start(ServerConfig::default()).await?;
                let options = ObjectOptions { checksum: StoredChecksum::None, etag: EtagKind::Multipart, kms: false };
                server.put_seeded("data", "seeded", 1, len, options)?;
                server.put_bytes("data", "memory", vec![7; RANGE as usize], options)?;
                ready.send(server.endpoint())?;
                while let Some(answer) = asked.recv().await {
                    answer.send(cpu_s())?;
                }
                Ok(())
            })
        });
        Ok(Server { endpoint: started.recv()?, ask })
    }

    async fn cpu_s(&self) -> Result<f64, Failure> {
        let (answer, answered) = mpsc::channel();
        self.ask.send(answer).await?;
        Ok(answered.recv()?)
    }
}

/// Reads `total` bytes of `key` in ranges into one slot, summing each stretch while it is in cache.
async fn read_own(origin: &Origin, pin: &Pin, key: &str, total: u64, slot: &mut [u8]) -> Result<(), Failure> {
    for at in (0..total).step_by(RANGE as usize) {
        let start = at % pin.len;
        let mut body = origin.get_range(key, start..start + RANGE, pin).await?;
        while body.left() > 0 {
            let mut sum = Crc64Stream::default();
            let mut filled = 0;
            while filled < PIECE {
                let end = PIECE.min(filled + SUM);
                let n = body.read(&mut slot[filled..end]).await?;
                sum.update(&slot[filled..filled + n]);
                filled += n;
            }
            std::hint::black_box(sum.value());
        }
    }
    Ok(())
}

async fn read_object_store(
    store: &object_store::aws::AmazonS3,
    len: u64,
    key: &str,
    total: u64,
    slot: &mut [u8],
) -> Result<(), Failure> {
    for at in (0..total).step_by(RANGE as usize) {
        let start = at % len;
        let options = GetOptions { range: Some(GetRange::Bounded(start..start + RANGE)), ..GetOptions::default() };
        let mut chunks = store.get_opts(&Path::from(key), options).await?.into_stream();
        let mut filled = 0;
        let mut sum = Crc64Stream::default();
        while let Some(chunk) = chunks.next().await {
            let mut chunk = &chunk?[..];
            while !chunk.is_empty() {
                let n = chunk.len().min(PIECE - filled);
                slot[filled..filled + n].copy_from_slice(&chunk[..n]);
                sum.update(&slot[filled..filled + n]);
                filled = (filled + n) % PIECE;
                chunk = &chunk[n..];
            }
        }
        std::hint::black_box(sum.value());
    }
    Ok(())
}

async fn run(total: u64) -> Result<(), Failure> {
    let server = Server::start(total)?;
    let vars = [("AWS_ENDPOINT_URL", server.endpoint.as_str()), ("AWS_SKIP_SIGNATURE", "true")];
    let vars = vars.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let origin = Origin::from_url_with("s3://data", vars)?;
    let store = AmazonS3Builder::new()
        .with_endpoint(&server.endpoint)
        .with_allow_http(true)
        .with_bucket_name("data")
        .with_skip_signature(true)
        .build()?;
    let mut slot = vec![1; PIECE];
    for way in ["own", "object_store", "own", "object_store"] {
        for (key, len) in [("memory", RANGE), ("seeded", total)] {
            let pin = Pin { len, ..Pin::default() };
            let (start, cpu, server_cpu) = (Instant::now(), cpu_s(), server.cpu_s().await?);
            match way {
                "own" => read_own(&origin, &pin, key, total, &mut slot).await?,
                _ => read_object_store(&store, len, key, total, &mut slot).await?,
            }
            let (elapsed, cpu, server_cpu) =
                (start.elapsed().as_secs_f64(), cpu_s() - cpu, server.cpu_s().await? - server_cpu);
            let gib = total as f64 / GIB as f64;
            writeln!(
                std::io::stdout(),
                r#"{{"way":"{way}","object":"{key}","gib_per_s":{:.2},"client_cpu_s_per_gib":{:.3},"server_cpu_s_per_gib":{:.3}}}"#,
                gib / elapsed,
                cpu / gib,
                server_cpu / gib
            )?;
        }
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    let gib = std::env::args().nth(1).map_or(Ok(2), |text| text.parse::<u64>())?;
    runtime()?.block_on(run(gib * GIB))
}
