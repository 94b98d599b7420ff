//! What a loader must get right, without Python and without I/O: the order of samples and the headers of tar files.
//!
//! The order of an epoch is one list, fixed by seed, epoch, sample counts and lanes: nothing about ranks or workers
//! enters it. Readers take their share of that list by arithmetic ([`share`]); a resumed run drops what was consumed
//! and shares out the rest.

pub mod order;
pub mod share;
pub mod tar;
