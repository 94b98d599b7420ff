// Whoever says that memory stays where it is says so with `unsafe`.
use std::ptr::NonNull;

use millstream_rdma::Target;

struct Mine(Box<[u8]>);

impl Target for Mine {
    fn address(&self) -> NonNull<u8> {
        NonNull::from(&self.0[0])
    }
    fn capacity(&self) -> usize {
        self.0.len()
    }
}

fn main() {}
