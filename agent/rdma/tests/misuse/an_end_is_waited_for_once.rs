// The slot comes back once.
use millstream_rdma::{Lease, Lent};

async fn twice<T>(lease: Lease<T>) -> (Lent<T>, Lent<T>) {
    (lease.ended().await, lease.ended().await)
}

fn main() {}
