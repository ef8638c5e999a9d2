//! From a record's bytes and headers to a usage event.

use super::event::{Record, UsageEvent};
use super::invalid::Invalid;

/// Which format records have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    #[default]
    Auto,
    Protobuf,
    Json,
    Cloudevents,
    Openmeter,
    Mapped,
}

/// How usage records are read.
#[derive(Debug, Clone, Default)]
pub struct InputRules {
    pub format: Format,
}

/// Decodes a record; the event borrows its bytes.
pub fn decode<'a>(_rules: &InputRules, _record: &Record<'a>) -> Result<UsageEvent<'a>, Invalid> {
    Err(Invalid::undecodable("no decoder yet"))
}
