// A borrow may end before the NIC has read it.
use millstream_rdma::{Queue, Source, Target};

struct Borrowed<'a>(&'a [u8]);

unsafe impl Source for Borrowed<'_> {
    fn bytes(&self) -> &[u8] {
        self.0
    }
}

fn write<T: Target>(queue: &Queue<T, Borrowed<'_>>) {
    drop(queue);
}

fn main() {}
