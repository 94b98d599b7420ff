//! Reading extents from the origin into slots, piece by piece, while they arrive.
