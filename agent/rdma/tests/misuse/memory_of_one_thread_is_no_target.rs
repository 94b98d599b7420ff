// The device's thread gives buffers back, so they can change threads.
use std::ptr::NonNull;
use std::rc::Rc;

use millstream_rdma::Target;

struct Shared(Rc<[u8]>);

unsafe impl Target for Shared {
    fn address(&self) -> NonNull<u8> {
        NonNull::from(&self.0[0])
    }
    fn capacity(&self) -> usize {
        self.0.len()
    }
}

fn main() {}
