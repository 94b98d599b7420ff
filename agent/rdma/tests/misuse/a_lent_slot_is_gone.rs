// Who has lent a slot cannot touch it until it comes back.
use millstream_rdma::{Queue, Source, Target};

fn peek<T: Target, S: Source>(queue: &Queue<T, S>, slot: T) {
    let lease = queue.lend(slot, 1, 1);
    slot.address();
    drop(lease);
}

fn main() {}
