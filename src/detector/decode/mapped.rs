//! Foreign JSON through `[input.fields]`: for each of our fields a pointer into theirs or a
//! constant, and its unit.
//!
//! Everything that can be wrong with a mapping is found when it is made; a record then fails only
//! by its own values. Names may be strings or numbers (a foreign account id often is one).
//! - `start_time`, `end_time`, `time`: unit `rfc3339`, `s`, `ms`, `us` or `ns`; without a unit,
//!   RFC 3339 or seconds: a guess at the scale that is wrong lies outside the accepted years.
//!   `*_unix_nano` are the same fields with unit `ns`.
//! - `duration`: unit `ns`, `us`, `ms`, `s`, `m` or `h`, required; stands for the start or the end.
//! - `quantity`: accelerators or instances; with unit `h`, `m` or `s` it is accelerator- (or
//!   instance-) hours, minutes or seconds used in the interval, and the event's quantity is that
//!   divided by the interval's length in the same unit.
//! - `telemetry.*`: ratios 0..1, or 0..100 with unit `%`; the others take no unit.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::fields::{FIELDS, Field, Unit};
use super::pointer::{Found, Pointers};
use super::{json, scalar};
use crate::detector::event::{Kind, Telemetry, UsageEvent};
use crate::detector::invalid::Invalid;
use crate::detector::time::{SECOND_NS, Span, Timestamp};

/// Where one field comes from: a pointer or a constant.
#[derive(Debug, Clone, PartialEq, Default, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FieldSource {
    /// RFC 6901, such as `/data/gpu_hours`; may step into a string that holds JSON.
    pub pointer: Option<String>,
    pub constant: Option<Constant>,
    pub unit: Option<String>,
}

/// The same value for every record.
#[derive(Debug, Clone, PartialEq, serde::Deserialize)]
#[serde(untagged)]
pub enum Constant {
    Boolean(bool),
    Integer(i64),
    Float(f64),
    Text(String),
}

impl Constant {
    /// As the JSON that a record could hold.
    fn to_json(&self) -> String {
        match self {
            Self::Boolean(value) => value.to_string(),
            Self::Integer(value) => value.to_string(),
            Self::Float(value) => value.to_string(),
            Self::Text(value) => serde_json::Value::from(value.as_str()).to_string(),
        }
    }
}

/// `[input.fields]`, checked: how to make an event of a foreign record.
#[derive(Debug, Clone)]
pub struct Mapping {
    pointers: Pointers,
    units: [Unit; FIELDS],
    /// Raw JSON by field.
    constants: Found<'static, FIELDS>,
}

impl Mapping {
    /// The mapping of `fields`, by our names; the error says which field is wrong and what would
    /// be right.
    pub fn new(fields: BTreeMap<String, FieldSource>) -> Result<Self, String> {
        let mut mapping = Self {
            pointers: Pointers::default(),
            units: [Unit::Plain; FIELDS],
            constants: [const { None }; FIELDS],
        };
        let mut given = [false; FIELDS];
        for (name, source) in &fields {
            let at = |error| format!("input.fields.{name}: {error}");
            let (field, unit) = Field::parse(name).map_err(at)?;
            if std::mem::replace(&mut given[field as usize], true) {
                return Err(at(format!("{} is given twice", field.name())));
            }
            mapping.add(field, unit, source).map_err(at)?;
        }
        check_complete(|field| given[field as usize])?;
        Ok(mapping)
    }

    fn add(&mut self, field: Field, unit: Unit, source: &FieldSource) -> Result<(), String> {
        self.units[field as usize] = field.unit(unit, source.unit.as_deref())?;
        match (&source.pointer, &source.constant) {
            (Some(pointer), None) => self.pointers.add(pointer, field as usize),
            (None, Some(constant)) => {
                let raw = constant.to_json();
                self.check_constant(field, &raw).map_err(|invalid| {
                    let detail = invalid.detail;
                    let detail = detail.strip_prefix("json: ").unwrap_or(&detail);
                    format!("constant: {detail}")
                })?;
                self.constants[field as usize] = Some(Cow::Owned(raw));
                Ok(())
            }
            (Some(_), Some(_)) => Err("give a pointer or a constant, not both".to_owned()),
            (None, None) => Err("give a pointer, as in { pointer = \"/data/x\" }, or a constant, \
                                 as in { constant = \"x\" }"
                .to_owned()),
        }
    }

    /// Reads a constant as a record's value would be.
    fn check_constant(&self, field: Field, raw: &str) -> Result<(), Invalid> {
        let mut found: Found<'_, FIELDS> = [const { None }; FIELDS];
        found[field as usize] = Some(Cow::Borrowed(raw));
        let values = Values { found, units: &self.units };
        match field {
            // on its own, a duration gives neither start nor end
            Field::Duration => values.duration().map(drop),
            Field::Id
            | Field::Source
            | Field::AccountId
            | Field::ResourceId
            | Field::Region
            | Field::FabricId
            | Field::Accelerator
            | Field::InstanceType
            | Field::Quantity
            | Field::StartTime
            | Field::EndTime
            | Field::Time
            | Field::Kind
            | Field::Precision
            | Field::Utilization
            | Field::TensorActive
            | Field::DramActive
            | Field::MemoryUsed
            | Field::PowerWatts
            | Field::FabricBytes
            | Field::ExternalBytes => values.event().map(drop),
        }
    }

    /// The event that a foreign record means.
    pub(super) fn event<'a>(&self, text: &'a str) -> Result<UsageEvent<'a>, Invalid> {
        let mut found: Found<'a, FIELDS> = self.pointers.find(text)?;
        for (value, constant) in found.iter_mut().zip(&self.constants) {
            if constant.is_some() {
                value.clone_from(constant);
            }
        }
        Values { found, units: &self.units }.event()
    }
}

/// Whether every record could be valid by what is mapped.
fn check_complete(is_given: impl Fn(Field) -> bool) -> Result<(), String> {
    for field in [Field::Id, Field::Source, Field::AccountId, Field::Quantity] {
        if !is_given(field) {
            let name = field.name();
            return Err(format!("input.fields lacks {name}: give it a pointer or a constant"));
        }
    }
    let bounds = [Field::StartTime, Field::EndTime, Field::Duration];
    match bounds.map(&is_given) {
        [true, true, false] | [true, false, true] | [false, true, true] => Ok(()),
        [true, true, true] => {
            Err("input.fields.duration: start_time and end_time say it already; drop one of the \
                 three"
                .to_owned())
        }
        [false, false, _] | [true, false, false] | [false, true, false] => {
            Err("input.fields must give the interval: two of start_time, end_time and duration"
                .to_owned())
        }
    }
}

/// The values of one record.
struct Values<'a, 'u> {
    found: Found<'a, FIELDS>,
    units: &'u [Unit; FIELDS],
}

impl<'a> Values<'a, '_> {
    fn event(&self) -> Result<UsageEvent<'a>, Invalid> {
        let (start, end) = self.interval()?;
        Ok(UsageEvent {
            id: self.name(Field::Id)?.into(),
            source: self.name(Field::Source)?.into(),
            account_id: self.name(Field::AccountId)?.into(),
            resource_id: self.name(Field::ResourceId)?.into(),
            region: self.name(Field::Region)?.into(),
            fabric_id: self.name(Field::FabricId)?.into(),
            accelerator: self.name(Field::Accelerator)?.into(),
            instance_type: self.name(Field::InstanceType)?.into(),
            quantity: self.quantity(end.since(start))?,
            start,
            end,
            time: self.instant(Field::Time)?.unwrap_or(end),
            kind: self.raw(Field::Kind).map_or(Ok(Kind::Usage), json::kind)?,
            telemetry: self.telemetry()?,
            precision: self.name(Field::Precision)?.into(),
        })
    }

    /// What is not given is the instant 0, as in protobuf.
    fn interval(&self) -> Result<(Timestamp, Timestamp), Invalid> {
        let (start, end) = (self.instant(Field::StartTime)?, self.instant(Field::EndTime)?);
        let length = self.duration()?;
        Ok(match (start, end, length) {
            // what overflows or falls before 1970 is refused as out of range
            (Some(start), None, Some(length)) => {
                (start, Timestamp(start.0.saturating_add(length.0)))
            }
            (None, Some(end), Some(length)) => (end.minus(length), end),
            (start, end, _) => (start.unwrap_or_default(), end.unwrap_or_default()),
        })
    }

    fn duration(&self) -> Result<Option<Span>, Invalid> {
        let name = Field::Duration.name();
        match (self.raw(Field::Duration), self.units[Field::Duration as usize]) {
            (None, _) => Ok(None),
            (Some(raw), Unit::Nanoseconds(unit)) => {
                scalar::scaled_span(name, raw, unit).map(|length| Some(Span(length)))
            }
            (Some(_), Unit::Plain | Unit::Rfc3339 | Unit::SecondsUsed(_) | Unit::Percent) => {
                unreachable!("a mapping without a unit of duration is refused")
            }
        }
    }

    fn instant(&self, field: Field) -> Result<Option<Timestamp>, Invalid> {
        let Some(raw) = self.raw(field) else { return Ok(None) };
        let name = field.name();
        let instant = match self.units[field as usize] {
            Unit::Nanoseconds(unit) => scalar::scaled_instant(name, raw, unit)?,
            Unit::Plain if scalar::is_numeral(raw.trim_matches('"')) => {
                scalar::scaled_instant(name, raw, SECOND_NS)?
            }
            Unit::Plain | Unit::Rfc3339 | Unit::SecondsUsed(_) | Unit::Percent => {
                scalar::date_time(name, raw)?
            }
        };
        Ok(Some(instant))
    }

    fn quantity(&self, interval: Span) -> Result<f64, Invalid> {
        let quantity = self.number(Field::Quantity)?.unwrap_or_default();
        Ok(match self.units[Field::Quantity as usize] {
            // an empty interval is refused for itself
            Unit::SecondsUsed(unit) if interval > Span(0) => {
                quantity / (interval.as_seconds() / unit)
            }
            Unit::SecondsUsed(_)
            | Unit::Plain
            | Unit::Rfc3339
            | Unit::Nanoseconds(_)
            | Unit::Percent => quantity,
        })
    }

    fn telemetry(&self) -> Result<Telemetry, Invalid> {
        let ratio = |field| {
            let value = self.number(field)?;
            let is_percent = self.units[field as usize] == Unit::Percent;
            let value = value.map(|value| if is_percent { value / 100.0 } else { value });
            Ok::<_, Invalid>(value.map(scalar::narrow))
        };
        Ok(Telemetry {
            utilization: ratio(Field::Utilization)?,
            tensor_active: ratio(Field::TensorActive)?,
            dram_active: ratio(Field::DramActive)?,
            memory_used: ratio(Field::MemoryUsed)?,
            power_watts: self.number(Field::PowerWatts)?.map(scalar::narrow),
            fabric_bytes: self.number(Field::FabricBytes)?,
            external_bytes: self.number(Field::ExternalBytes)?,
        })
    }

    fn raw(&self, field: Field) -> Option<&str> {
        self.found[field as usize].as_deref()
    }

    fn number(&self, field: Field) -> Result<Option<f64>, Invalid> {
        self.raw(field).map(|raw| scalar::number(field.name(), raw)).transpose()
    }

    /// A string, or a number as it is written.
    fn name(&self, field: Field) -> Result<Cow<'a, str>, Invalid> {
        match &self.found[field as usize] {
            None => Ok(Cow::Borrowed("")),
            Some(raw) if scalar::is_numeral(raw) => Ok(raw.clone()),
            Some(Cow::Borrowed(raw)) => scalar::text(field.name(), raw),
            Some(Cow::Owned(raw)) => Ok(Cow::Owned(scalar::text(field.name(), raw)?.into_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAGO: &str = r#"
        id = { pointer = "/transaction_id" }
        source = { constant = "lago" }
        account_id = { pointer = "/external_customer_id" }
        accelerator = { pointer = "/properties/gpu" }
        quantity = { pointer = "/properties/gpu_hours", unit = "h" }
        end_time = { pointer = "/timestamp", unit = "s" }
        duration = { pointer = "/properties/minutes", unit = "m" }
        "telemetry.utilization" = { pointer = "/properties/util", unit = "%" }
    "#;

    fn mapping(toml: &str) -> Result<Mapping, String> {
        Mapping::new(toml::from_str(toml).expect("valid TOML"))
    }

    fn with(line: &str) -> Result<Mapping, String> {
        let field = line.split(' ').next().expect("a name");
        let kept = LAGO.lines().filter(|kept| !kept.trim().starts_with(&format!("{field} =")));
        mapping(&format!("{}\n{line}", kept.collect::<Vec<_>>().join("\n")))
    }

    #[test]
    fn hours_used_become_accelerators_over_the_interval() {
        let text = r#"{"transaction_id":4711,"external_customer_id":"acme",
            "timestamp":"1717200000.123456789",
            "properties":{"gpu":"H100","gpu_hours":"4","minutes":30,"util":93}}"#;
        let event = mapping(LAGO).expect("a sound mapping").event(text).expect("a sound record");
        assert_eq!((&*event.id, &*event.source, &*event.account_id), ("4711", "lago", "acme"));
        assert_eq!(event.end, Timestamp(1_717_200_000_123_456_789));
        assert_eq!(event.end.since(event.start), Span::seconds(1800));
        assert_eq!((event.quantity, event.time), (8.0, event.end));
        assert_eq!(event.telemetry.utilization, Some(0.93));
        assert!(event.account_id.is_borrowed());
    }

    #[test]
    fn a_start_and_a_duration_give_the_end() {
        let mapping = mapping(&LAGO.replace("end_time", "start_time")).expect("a sound mapping");
        let text = r#"{"timestamp":1717200000,"properties":{"minutes":0.5}}"#;
        let event = mapping.event(text).expect("a decodable record");
        assert_eq!(event.end.since(event.start), Span::seconds(30));
        let far = r#"{"timestamp":1e30,"properties":{"minutes":1e30}}"#;
        assert_eq!(mapping.event(far).map(|event| event.end), Ok(Timestamp(u64::MAX)));
    }

    #[test]
    fn times_without_a_unit_are_rfc_3339_or_seconds() {
        let mapping = with("end_time = { pointer = \"/timestamp\" }").expect("a sound mapping");
        let end = |value: &str| {
            let text = format!(r#"{{"timestamp":{value},"properties":{{"minutes":1}}}}"#);
            mapping.event(&text).map(|event| event.end.to_string())
        };
        let expected = Ok("2024-06-01T00:00:00Z".to_owned());
        assert_eq!(end("1717200000"), expected);
        assert_eq!(end("\"1717200000.0\""), expected);
        assert_eq!(end("\"2024-06-01T02:00:00+02:00\""), expected);
        assert!(end("\"yesterday\"").is_err());
        assert!(end("true").is_err());
        let nano = with("end_time_unix_nano = { pointer = \"/timestamp\" }");
        assert!(nano.expect_err("twice").contains("end_time is given twice"));
    }

    #[test]
    fn wrong_mappings_say_what_would_be_right() {
        for (line, expected) in [
            (
                "quantity = { pointer = \"/x\", unit = \"hours\" }",
                "one of h, accelerator_hours, m, s",
            ),
            ("end_time = { pointer = \"/x\", unit = \"h\" }", "one of rfc3339, s, ms, us, ns"),
            ("duration = { pointer = \"/x\" }", "needs a unit: one of ns, us, ms, s, m, h"),
            ("region = { pointer = \"/x\", unit = \"s\" }", "this field takes none"),
            ("region = { pointer = \"x\" }", "must begin with `/`"),
            ("region = {}", "give a pointer"),
            ("region = { pointer = \"/x\", constant = \"y\" }", "not both"),
            ("region = { constant = true }", "region must be a string"),
            ("kind = { constant = \"refund\" }", "\"USAGE\" (0) or \"CORRECTION\" (1)"),
            ("duration = { constant = \"1h\", unit = \"s\" }", "must be a number"),
            ("zone = { pointer = \"/x\" }", "unknown field: one of id, source"),
            ("start_time = { pointer = \"/x\" }", "drop one of the three"),
        ] {
            let error = with(line).expect_err(line);
            let field = line.split(' ').next().expect("a name");
            assert!(error.contains(expected) && error.contains(field), "{line}: {error}");
        }
        let lacking = mapping(&LAGO.replace("id = { pointer = \"/transaction_id\" }", ""));
        assert!(lacking.expect_err("no id").contains("lacks id"));
        let half = mapping(&LAGO.replace("end_time", "time"));
        assert!(half.expect_err("no end").contains("two of start_time, end_time and duration"));
    }

    #[test]
    fn values_of_the_wrong_type_are_refused() {
        let mapping = mapping(LAGO).expect("a sound mapping");
        for text in [
            r#"{"transaction_id":true}"#,
            r#"{"external_customer_id":["a"]}"#,
            r#"{"properties":{"gpu_hours":"four"}}"#,
            r#"{"properties":{"minutes":"NaN"}}"#,
            r#"{"timestamp":{}}"#,
            r#"{"timestamp":1"#,
        ] {
            assert!(mapping.event(text).is_err(), "{text}");
        }
    }
}
