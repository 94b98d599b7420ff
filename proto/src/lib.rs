//! The gRPC schema `millstream.v1`, its generated types, and what turns them into the words of `millstream-types`.
//!
//! `v1` holds generated code only. Whatever comes from the wire goes through [`convert`] (parse, don't validate) or
//! [`manifest`] before anything acts on it.

pub mod convert;
pub mod limits;
pub mod manifest;

/// Generated from `schema/millstream/v1/millstream.proto`.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("millstream.v1");
}

/// The control protocol's version: an agent of another one is refused with the reason.
pub const PROTOCOL: u32 = 1;
