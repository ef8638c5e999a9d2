//! The fields that `[input.fields]` can give, with the units that each takes.

use crate::detector::time::SECOND_NS;

/// A field of ours that a foreign record can give.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field {
    Id,
    Source,
    AccountId,
    ResourceId,
    Region,
    FabricId,
    Accelerator,
    InstanceType,
    Quantity,
    StartTime,
    EndTime,
    Time,
    Duration,
    Kind,
    Precision,
    Utilization,
    TensorActive,
    DramActive,
    MemoryUsed,
    PowerWatts,
    FabricBytes,
    ExternalBytes,
}

pub(super) const FIELDS: usize = Field::ExternalBytes as usize + 1;

impl Field {
    pub(super) const ALL: [Self; FIELDS] = [
        Self::Id,
        Self::Source,
        Self::AccountId,
        Self::ResourceId,
        Self::Region,
        Self::FabricId,
        Self::Accelerator,
        Self::InstanceType,
        Self::Quantity,
        Self::StartTime,
        Self::EndTime,
        Self::Time,
        Self::Duration,
        Self::Kind,
        Self::Precision,
        Self::Utilization,
        Self::TensorActive,
        Self::DramActive,
        Self::MemoryUsed,
        Self::PowerWatts,
        Self::FabricBytes,
        Self::ExternalBytes,
    ];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Id => "id",
            Self::Source => "source",
            Self::AccountId => "account_id",
            Self::ResourceId => "resource_id",
            Self::Region => "region",
            Self::FabricId => "fabric_id",
            Self::Accelerator => "accelerator",
            Self::InstanceType => "instance_type",
            Self::Quantity => "quantity",
            Self::StartTime => "start_time",
            Self::EndTime => "end_time",
            Self::Time => "time",
            Self::Duration => "duration",
            Self::Kind => "kind",
            Self::Precision => "precision",
            Self::Utilization => "telemetry.utilization",
            Self::TensorActive => "telemetry.tensor_active",
            Self::DramActive => "telemetry.dram_active",
            Self::MemoryUsed => "telemetry.memory_used",
            Self::PowerWatts => "telemetry.power_watts",
            Self::FabricBytes => "telemetry.fabric_bytes",
            Self::ExternalBytes => "telemetry.external_bytes",
        }
    }

    /// The field of a name, and its unit when none is given.
    pub(super) fn parse(name: &str) -> Result<(Self, Unit), String> {
        let (base, unit) = match name {
            "start_time_unix_nano" => ("start_time", Unit::Nanoseconds(1)),
            "end_time_unix_nano" => ("end_time", Unit::Nanoseconds(1)),
            "time_unix_nano" => ("time", Unit::Nanoseconds(1)),
            _ => (name, Unit::Plain),
        };
        match Self::ALL.into_iter().find(|field| field.name() == base) {
            Some(field) => Ok((field, unit)),
            None => {
                let names = Self::ALL.map(Self::name).join(", ");
                Err(format!("unknown field: one of {names}"))
            }
        }
    }

    /// The units that the field takes.
    const fn units(self) -> &'static [(&'static str, Unit)] {
        match self {
            Self::StartTime | Self::EndTime | Self::Time => &[
                ("rfc3339", Unit::Rfc3339),
                ("s", Unit::Nanoseconds(SECOND_NS)),
                ("ms", Unit::Nanoseconds(1_000_000)),
                ("us", Unit::Nanoseconds(1_000)),
                ("ns", Unit::Nanoseconds(1)),
            ],
            Self::Duration => &[
                ("ns", Unit::Nanoseconds(1)),
                ("us", Unit::Nanoseconds(1_000)),
                ("ms", Unit::Nanoseconds(1_000_000)),
                ("s", Unit::Nanoseconds(SECOND_NS)),
                ("m", Unit::Nanoseconds(60 * SECOND_NS)),
                ("h", Unit::Nanoseconds(3600 * SECOND_NS)),
            ],
            Self::Quantity => &[
                ("h", Unit::SecondsUsed(3600.0)),
                ("accelerator_hours", Unit::SecondsUsed(3600.0)),
                ("m", Unit::SecondsUsed(60.0)),
                ("s", Unit::SecondsUsed(1.0)),
            ],
            Self::Utilization | Self::TensorActive | Self::DramActive | Self::MemoryUsed => {
                &[("%", Unit::Percent)]
            }
            Self::Id
            | Self::Source
            | Self::AccountId
            | Self::ResourceId
            | Self::Region
            | Self::FabricId
            | Self::Accelerator
            | Self::InstanceType
            | Self::Kind
            | Self::Precision
            | Self::PowerWatts
            | Self::FabricBytes
            | Self::ExternalBytes => &[],
        }
    }

    /// The unit of a name, or `default` without one.
    pub(super) fn unit(self, default: Unit, name: Option<&str>) -> Result<Unit, String> {
        let units = self.units();
        let names = || units.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        match name {
            None if self == Self::Duration => Err(format!("needs a unit: one of {}", names())),
            None => Ok(default),
            Some(name) => match units.iter().find(|(known, _)| *known == name) {
                Some((_, unit)) => Ok(*unit),
                None if units.is_empty() => Err(format!("unit `{name}`: this field takes none")),
                None => Err(format!("unknown unit `{name}`: one of {}", names())),
            },
        }
    }
}

/// What a number means.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Unit {
    /// No unit given.
    Plain,
    Rfc3339,
    /// A time in units of this many nanoseconds.
    Nanoseconds(u64),
    /// Accelerator-time in units of this many seconds.
    SecondsUsed(f64),
    Percent,
}
