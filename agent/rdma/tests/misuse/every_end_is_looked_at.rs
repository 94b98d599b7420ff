// A slot that the kernel would not give back is a case like the others.
use millstream_rdma::{Lease, Lent};

async fn take<T>(lease: Lease<T>) -> T {
    match lease.ended().await {
        Lent::Filled(slot) | Lent::Recalled(slot) | Lent::Failed(slot, _) => slot,
    }
}

fn main() {}
