//! The arena: one mapping, cut into aligned slots, that every piece passes through on its way in.
//!
//! A slot is owned by whoever holds it: the network fills it, the checksum reads it, the disk writes from it, peers
//! are served from it; nothing is copied in between. RDMA registers the same arena once.
