//! The store against a reference model, crashes at every byte, damaged files, wrong wholes, full disks.
#![allow(clippy::unwrap_used)]

mod keeping;
mod model;
mod restart;
mod rig;
mod sealing;
