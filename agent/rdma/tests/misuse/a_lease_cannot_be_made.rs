// Keys come from `lend` only.
use millstream_rdma::{Lease, Target};

fn forge<T: Target>() -> Lease<T> {
    Lease { tag: 1, address: 4096, key: 7 }
}

fn main() {}
