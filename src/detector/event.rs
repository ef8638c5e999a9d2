//! A usage event as decoded from a record, whose bytes it borrows, and what makes it valid.

use super::invalid::{Invalid, Reason};
use super::rules::TimeRules;
use super::text::Text;
use super::time::{Span, Timestamp};

/// Longest name in bytes: ids, regions, fabrics, accelerators.
pub const NAME_LIMIT: usize = 256;
/// Largest quantity of accelerators or instances in one event.
pub const QUANTITY_LIMIT: f64 = 1e7;

/// One input record as Kafka or a file gives it.
#[derive(Debug, Clone, Copy)]
pub struct Record<'a> {
    pub offset: u64,
    /// The record's own timestamp; files have none.
    pub timestamp: Option<Timestamp>,
    pub key: Option<&'a [u8]>,
    /// `None` is a tombstone.
    pub value: Option<&'a [u8]>,
    pub headers: &'a [Header<'a>],
}

#[derive(Debug, Clone, Copy)]
pub struct Header<'a> {
    pub name: &'a str,
    pub value: Option<&'a [u8]>,
}

/// What took place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    #[default]
    Usage,
    Correction,
}

/// Means over the interval, as far as the meter knows them; ratios are 0..1.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Telemetry {
    pub utilization: Option<f32>,
    pub tensor_active: Option<f32>,
    pub dram_active: Option<f32>,
    pub memory_used: Option<f32>,
    pub power_watts: Option<f32>,
    pub fabric_bytes: Option<f64>,
    pub external_bytes: Option<f64>,
}

impl Telemetry {
    /// Drops ratios outside 0..1 (DCGM prints values near 2^63 for fields it lacks) and says how
    /// many were dropped.
    pub fn drop_impossible(&mut self) -> u64 {
        let mut dropped = 0;
        let ratios = [
            &mut self.utilization,
            &mut self.tensor_active,
            &mut self.dram_active,
            &mut self.memory_used,
        ];
        for ratio in ratios {
            if ratio.is_some_and(|value| !(0.0..=1.0).contains(&value)) {
                *ratio = None;
                dropped += 1;
            }
        }
        dropped
    }
}

/// One decoded metering fact. Names are borrowed from the record unless JSON escapes forbid it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct UsageEvent<'a> {
    pub id: Text<'a>,
    pub source: Text<'a>,
    pub account_id: Text<'a>,
    pub resource_id: Text<'a>,
    pub region: Text<'a>,
    pub fabric_id: Text<'a>,
    pub accelerator: Text<'a>,
    pub instance_type: Text<'a>,
    /// Accelerators, or instances when only `instance_type` is given.
    pub quantity: f64,
    pub start: Timestamp,
    pub end: Timestamp,
    /// When the meter emitted the event; decoders put the end here when it is not given.
    pub time: Timestamp,
    pub kind: Kind,
    pub telemetry: Telemetry,
    pub precision: Text<'a>,
}

impl UsageEvent<'_> {
    /// Refuses what no meter can mean; `recorded` is the Kafka record's timestamp.
    pub fn validate(&self, rules: &TimeRules, recorded: Option<Timestamp>) -> Result<(), Invalid> {
        self.validate_names()?;
        self.validate_times(rules, recorded)?;
        let quantity = self.quantity;
        let wrong = if !quantity.is_finite() {
            "is not finite"
        } else if quantity == 0.0 {
            "is zero"
        } else if quantity < 0.0 && self.kind == Kind::Usage {
            "is negative: only a CORRECTION takes usage back"
        } else if quantity.abs() > QUANTITY_LIMIT {
            "is over 1e7"
        } else {
            return Ok(());
        };
        Err(Invalid::new(Reason::Quantity, format!("quantity {quantity} {wrong}")))
    }

    fn validate_names(&self) -> Result<(), Invalid> {
        let required = [&self.id, &self.source, &self.account_id];
        let others = [
            &self.resource_id,
            &self.region,
            &self.fabric_id,
            &self.accelerator,
            &self.instance_type,
            &self.precision,
        ];
        let longest =
            required.iter().chain(&others).fold(0, |longest, name| longest.max(name.len()));
        if longest <= NAME_LIMIT && required.iter().all(|name| !name.is_empty()) {
            return Ok(());
        }
        self.refuse_names()
    }

    #[cold]
    fn refuse_names(&self) -> Result<(), Invalid> {
        let required = [
            (&self.id, Reason::Id, "id"),
            (&self.source, Reason::Source, "source"),
            (&self.account_id, Reason::AccountId, "account_id"),
        ];
        for (value, reason, name) in required {
            if value.is_empty() {
                return Err(Invalid::new(reason, format!("{name} is empty")));
            }
            if value.len() > NAME_LIMIT {
                let detail = format!("{name} has {} bytes, at most {NAME_LIMIT}", value.len());
                return Err(Invalid::new(reason, detail));
            }
        }
        let others = [
            (&self.resource_id, "resource_id"),
            (&self.region, "region"),
            (&self.fabric_id, "fabric_id"),
            (&self.accelerator, "accelerator"),
            (&self.instance_type, "instance_type"),
            (&self.precision, "precision"),
        ];
        for (value, name) in others {
            if value.len() > NAME_LIMIT {
                let detail = format!("{name} has {} bytes, at most {NAME_LIMIT}", value.len());
                return Err(Invalid::new(Reason::NameTooLong, detail));
            }
        }
        Ok(())
    }

    fn validate_times(
        &self,
        rules: &TimeRules,
        recorded: Option<Timestamp>,
    ) -> Result<(), Invalid> {
        let (start, end, time) = (self.start, self.end, self.time);
        for (name, value) in [("time", time), ("start", start), ("end", end)] {
            if value < Timestamp::EARLIEST || value >= Timestamp::LATEST {
                let detail = format!("{name} {value} lies outside the years 2000 to 2499");
                return Err(Invalid::new(Reason::TimeOutOfRange, detail));
            }
        }
        if end <= start {
            let detail = format!("end {end} is not after start {start}");
            return Err(Invalid::new(Reason::EmptyInterval, detail));
        }
        let length: Span = end.since(start);
        if length > rules.max_interval {
            let detail = format!(
                "interval of {length} is longer than time.max_interval {}",
                rules.max_interval
            );
            return Err(Invalid::new(Reason::IntervalTooLong, detail));
        }
        // spans are taken from the later instant: a producer may stamp a record with any instant
        if end.minus(rules.max_future) > time {
            let detail = format!(
                "end {end} is later than time {time} + time.max_future {}",
                rules.max_future
            );
            return Err(Invalid::new(Reason::EndInFuture, detail));
        }
        if let Some(recorded) = recorded
            && time.minus(rules.max_future) > recorded
        {
            let detail = format!(
                "time {time} is later than the record's timestamp {recorded} + time.max_future {}",
                rules.max_future
            );
            return Err(Invalid::new(Reason::TimeInFuture, detail));
        }
        Ok(())
    }
}
