// What is being written belongs to the operation, not to the future that waits for it.
use millstream_rdma::{Queue, Source, Target};

async fn peek<T: Target, S: Source>(queue: &Queue<T, S>, source: S) {
    let written = queue.write(source, 0, 0, 0);
    source.bytes();
    drop(written);
}

fn main() {}
