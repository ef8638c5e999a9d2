//! Simulated usage: a seeded cloud with labelled scenarios and its ground truth, and job traces
//! turned into metering events.
//!
//! Everything here is a function of its arguments: the same seed gives the same bytes. Files,
//! Kafka and the command line are `cli::simulate`'s.

pub mod cloud;
mod dice;
pub mod encode;
pub mod hardware;
pub mod plan;
mod population;
pub mod publish;
pub mod scenario;
pub mod telemetry;
pub mod trace;
pub mod truth;

pub use cloud::{Cloud, Sent};
pub use plan::{KeyBy, Plan};
pub use scenario::Scenario;
pub use trace::Trace;
