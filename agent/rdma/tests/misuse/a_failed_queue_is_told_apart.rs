// A write that failed is not a write: its result must be looked at.
#![deny(unused_must_use)]
use millstream_rdma::{Queue, Source, Target};

async fn write<T: Target, S: Source>(queue: &Queue<T, S>, source: S) {
    queue.write(source, 0, 0, 0).await;
}

fn main() {}
