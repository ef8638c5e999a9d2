//! Why a process ends, sorted by what the operator does next.

use std::fmt;

/// An error that ends the process; the next start replays from the last commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fatal {
    /// Bad usage, configuration, policy or catalogue: mend it. Exit code 2.
    Config(String),
    /// An input file or record cannot be read: mend or replace it.
    Input(String),
    /// The broker or a topic is not as needed: look at Kafka.
    Broker(String),
    /// Another process took over this instance's name: nothing to do if that was meant.
    Fenced(String),
    /// Stored state cannot be read: see the message.
    State(String),
    /// A bug of ours.
    Internal(String),
}

impl Fatal {
    pub const fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => 2,
            Self::Input(_)
            | Self::Broker(_)
            | Self::Fenced(_)
            | Self::State(_)
            | Self::Internal(_) => 1,
        }
    }
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, detail) = match self {
            Self::Config(detail) => ("configuration", detail),
            Self::Input(detail) => ("input", detail),
            Self::Broker(detail) => ("kafka", detail),
            Self::Fenced(detail) => ("fenced", detail),
            Self::State(detail) => ("state", detail),
            Self::Internal(detail) => ("internal error", detail),
        };
        write!(f, "{kind}: {detail}")
    }
}

impl std::error::Error for Fatal {}
