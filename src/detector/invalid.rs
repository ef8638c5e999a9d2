//! Every way a usage record is refused: the reason is at once the dead letter's header, the key in
//! `--summary` and the label of the series.

/// Why a record was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// The bytes are no usage event in any accepted format, or a field has the wrong type.
    Undecodable,
    /// `id` is empty or longer than 256 bytes.
    Id,
    /// `source` is empty or longer than 256 bytes.
    Source,
    /// `account_id` is empty or longer than 256 bytes.
    AccountId,
    /// Another name (region, fabric, accelerator, ...) is longer than 256 bytes.
    NameTooLong,
    /// `time`, start or end lies before 2000 or after 2499.
    TimeOutOfRange,
    /// The interval is empty or reversed.
    EmptyInterval,
    /// The interval is longer than `time.max_interval`.
    IntervalTooLong,
    /// The interval ends later than `time` + `time.max_future`.
    EndInFuture,
    /// `time` is later than the Kafka record's timestamp + `time.max_future`.
    TimeInFuture,
    /// The quantity is zero, not finite, over 1e7, or negative for usage.
    Quantity,
    /// The interval ended before every tier's retention.
    BeyondRetention,
    /// `time` lies before the dedup horizon.
    BeyondHorizon,
}

impl Reason {
    pub const ALL: [Self; 13] = [
        Self::Undecodable,
        Self::Id,
        Self::Source,
        Self::AccountId,
        Self::NameTooLong,
        Self::TimeOutOfRange,
        Self::EmptyInterval,
        Self::IntervalTooLong,
        Self::EndInFuture,
        Self::TimeInFuture,
        Self::Quantity,
        Self::BeyondRetention,
        Self::BeyondHorizon,
    ];

    /// The name in headers, labels and summaries.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Undecodable => "undecodable",
            Self::Id => "invalid_id",
            Self::Source => "invalid_source",
            Self::AccountId => "invalid_account_id",
            Self::NameTooLong => "name_too_long",
            Self::TimeOutOfRange => "time_out_of_range",
            Self::EmptyInterval => "empty_interval",
            Self::IntervalTooLong => "interval_too_long",
            Self::EndInFuture => "end_in_future",
            Self::TimeInFuture => "time_in_future",
            Self::Quantity => "invalid_quantity",
            Self::BeyondRetention => "beyond_retention",
            Self::BeyondHorizon => "beyond_horizon",
        }
    }

    /// A sound record that came too late: it does not count towards `dead_letter.max_consecutive`.
    pub const fn is_late(self) -> bool {
        matches!(self, Self::BeyondRetention | Self::BeyondHorizon)
    }
}

/// A refused record: the reason, and what was found and would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    pub reason: Reason,
    pub detail: String,
}

impl Invalid {
    pub fn new(reason: Reason, detail: impl Into<String>) -> Self {
        Self { reason, detail: detail.into() }
    }

    pub fn undecodable(detail: impl Into<String>) -> Self {
        Self::new(Reason::Undecodable, detail)
    }
}
