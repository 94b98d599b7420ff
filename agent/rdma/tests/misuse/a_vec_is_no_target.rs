// A Vec may be reallocated under the NIC.
use millstream_rdma::{Lease, Queue, Source};

fn lend<S: Source>(queue: &Queue<Vec<u8>, S>) -> Lease<Vec<u8>> {
    queue.lend(vec![0; 4096], 4096, 1).unwrap()
}

fn main() {}
