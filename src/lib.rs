#![doc = include_str!("ARCHITECTURE.md")]

pub mod cli;
pub mod config;
pub mod data;
pub mod detector;
pub mod error;
pub mod geoip;
pub mod http;
pub mod kafka;
pub mod metrics;
pub mod notify;
pub mod record_file;
pub mod replay;
pub mod simulate;

/// The protos of `proto/flopwatch/v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic, reason = "generated code")]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/flopwatch.v1.rs"));
}
