//! JSON objects of the event's own fields, and the names that envelopes add to them.
//!
//! One pass finds the raw text of every known name; a field is read when its value is needed. A
//! name in both spellings, or twice, is refused: neither value can be told to be the right one.
//! `null` is not given, as in the protobuf JSON mapping; unknown names are ignored.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::scalar;
use crate::detector::event::{Kind, Telemetry, UsageEvent};
use crate::detector::invalid::Invalid;
use crate::detector::time::Timestamp;

/// How deep ignored values may nest: parsing them needs no stack, but nobody means them.
const NESTING_LIMIT: usize = 128;

/// A known name: a field of the event or its telemetry, or an attribute of an envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    Id,
    Source,
    AccountId,
    ResourceId,
    Region,
    FabricId,
    Accelerator,
    InstanceType,
    Quantity,
    StartTimeUnixNano,
    EndTimeUnixNano,
    TimeUnixNano,
    StartTime,
    EndTime,
    Time,
    Kind,
    Telemetry,
    Precision,
    Utilization,
    TensorActive,
    DramActive,
    MemoryUsed,
    PowerWatts,
    FabricBytes,
    ExternalBytes,
    Specversion,
    Type,
    Subject,
    Data,
    DataBase64,
    Datacontenttype,
}

impl Key {
    const COUNT: usize = Self::Datacontenttype as usize + 1;

    fn of(name: &str) -> Option<Self> {
        Some(match name {
            "id" => Self::Id,
            "source" => Self::Source,
            "account_id" | "accountId" => Self::AccountId,
            "resource_id" | "resourceId" => Self::ResourceId,
            "region" => Self::Region,
            "fabric_id" | "fabricId" => Self::FabricId,
            "accelerator" => Self::Accelerator,
            "instance_type" | "instanceType" => Self::InstanceType,
            "quantity" => Self::Quantity,
            "start_time_unix_nano" | "startTimeUnixNano" => Self::StartTimeUnixNano,
            "end_time_unix_nano" | "endTimeUnixNano" => Self::EndTimeUnixNano,
            "time_unix_nano" | "timeUnixNano" => Self::TimeUnixNano,
            "start_time" | "startTime" => Self::StartTime,
            "end_time" | "endTime" => Self::EndTime,
            "time" => Self::Time,
            "kind" => Self::Kind,
            "telemetry" => Self::Telemetry,
            "precision" => Self::Precision,
            "utilization" => Self::Utilization,
            "tensor_active" | "tensorActive" => Self::TensorActive,
            "dram_active" | "dramActive" => Self::DramActive,
            "memory_used" | "memoryUsed" => Self::MemoryUsed,
            "power_watts" | "powerWatts" => Self::PowerWatts,
            "fabric_bytes" | "fabricBytes" => Self::FabricBytes,
            "external_bytes" | "externalBytes" => Self::ExternalBytes,
            "specversion" => Self::Specversion,
            "type" => Self::Type,
            "subject" => Self::Subject,
            "data" => Self::Data,
            "data_base64" => Self::DataBase64,
            "datacontenttype" => Self::Datacontenttype,
            _ => return None,
        })
    }

    /// The snake_case name, for details.
    const fn name(self) -> &'static str {
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
            Self::StartTimeUnixNano => "start_time_unix_nano",
            Self::EndTimeUnixNano => "end_time_unix_nano",
            Self::TimeUnixNano => "time_unix_nano",
            Self::StartTime => "start_time",
            Self::EndTime => "end_time",
            Self::Time => "time",
            Self::Kind => "kind",
            Self::Telemetry => "telemetry",
            Self::Precision => "precision",
            Self::Utilization => "telemetry.utilization",
            Self::TensorActive => "telemetry.tensor_active",
            Self::DramActive => "telemetry.dram_active",
            Self::MemoryUsed => "telemetry.memory_used",
            Self::PowerWatts => "telemetry.power_watts",
            Self::FabricBytes => "telemetry.fabric_bytes",
            Self::ExternalBytes => "telemetry.external_bytes",
            Self::Specversion => "specversion",
            Self::Type => "type",
            Self::Subject => "subject",
            Self::Data => "data",
            Self::DataBase64 => "data_base64",
            Self::Datacontenttype => "datacontenttype",
        }
    }
}

/// A JSON object: the raw text of every known name's value.
pub(super) struct Object<'a> {
    values: [Option<&'a RawValue>; Key::COUNT],
    /// Kept, not raised: in a foreign JSON the name may mean something else.
    repeated: Option<Key>,
}

impl<'a> Object<'a> {
    pub(super) fn parse(text: &'a str) -> Result<Self, Invalid> {
        serde_json::from_str(text).map_err(|error| Invalid::undecodable(format!("json: {error}")))
    }

    /// The raw text of a value; `null` is not given.
    pub(super) fn raw(&self, key: Key) -> Option<&'a str> {
        self.values[key as usize].map(RawValue::get).filter(|raw| *raw != "null")
    }

    /// A string, empty when not given.
    pub(super) fn text(&self, key: Key) -> Result<Cow<'a, str>, Invalid> {
        self.raw(key).map_or(Ok("".into()), |raw| scalar::text(key.name(), raw))
    }

    /// The RFC 3339 instant under a name.
    pub(super) fn date_time(&self, key: Key) -> Result<Option<Timestamp>, Invalid> {
        self.raw(key).map(|raw| scalar::date_time(key.name(), raw)).transpose()
    }

    pub(super) fn refuse_repeated(&self) -> Result<(), Invalid> {
        match self.repeated {
            Some(key) => Err(Invalid::undecodable(format!("json: {} is given twice", key.name()))),
            None => Ok(()),
        }
    }

    /// The object as a usage event of our own fields.
    pub(super) fn event(&self) -> Result<UsageEvent<'a>, Invalid> {
        self.refuse_repeated()?;
        let end = self.instant(Key::EndTimeUnixNano, Key::EndTime)?.unwrap_or_default();
        Ok(UsageEvent {
            id: self.text(Key::Id)?.into(),
            source: self.text(Key::Source)?.into(),
            account_id: self.text(Key::AccountId)?.into(),
            resource_id: self.text(Key::ResourceId)?.into(),
            region: self.text(Key::Region)?.into(),
            fabric_id: self.text(Key::FabricId)?.into(),
            accelerator: self.text(Key::Accelerator)?.into(),
            instance_type: self.text(Key::InstanceType)?.into(),
            quantity: self.number(Key::Quantity)?.unwrap_or_default(),
            start: self.instant(Key::StartTimeUnixNano, Key::StartTime)?.unwrap_or_default(),
            end,
            time: self.instant(Key::TimeUnixNano, Key::Time)?.unwrap_or(end),
            kind: self.raw(Key::Kind).map_or(Ok(Kind::Usage), kind)?,
            telemetry: match self.raw(Key::Telemetry) {
                Some(raw) if raw.starts_with('{') => Object::parse(raw)?.telemetry()?,
                Some(raw) => return Err(scalar::wrong_type("telemetry", "an object", raw)),
                None => Telemetry::default(),
            },
            precision: self.text(Key::Precision)?.into(),
        })
    }

    fn telemetry(&self) -> Result<Telemetry, Invalid> {
        self.refuse_repeated()?;
        let narrow = |key| Ok::<_, Invalid>(self.number(key)?.map(scalar::narrow));
        Ok(Telemetry {
            utilization: narrow(Key::Utilization)?,
            tensor_active: narrow(Key::TensorActive)?,
            dram_active: narrow(Key::DramActive)?,
            memory_used: narrow(Key::MemoryUsed)?,
            power_watts: narrow(Key::PowerWatts)?,
            fabric_bytes: self.number(Key::FabricBytes)?,
            external_bytes: self.number(Key::ExternalBytes)?,
        })
    }

    fn number(&self, key: Key) -> Result<Option<f64>, Invalid> {
        self.raw(key).map(|raw| scalar::number(key.name(), raw)).transpose()
    }

    /// An instant in nanoseconds or, under another name, in RFC 3339; both must mean the same.
    fn instant(&self, nano: Key, date_time: Key) -> Result<Option<Timestamp>, Invalid> {
        let date_time = self.date_time(date_time)?;
        let nanoseconds = match self.raw(nano) {
            Some(raw) => scalar::unix_nano(nano.name(), raw)?,
            None => None,
        };
        match (nanoseconds, date_time) {
            (Some(nanoseconds), Some(date_time)) if nanoseconds != date_time => {
                let detail = format!("json: {} is not the RFC 3339 {date_time}", nano.name());
                Err(Invalid::undecodable(detail))
            }
            (Some(instant), _) | (None, Some(instant)) => Ok(Some(instant)),
            (None, None) => Ok(None),
        }
    }
}

/// The enum's name in any case, or its number.
pub(super) fn kind(raw: &str) -> Result<Kind, Invalid> {
    let name = if raw.starts_with('"') { scalar::text("kind", raw)? } else { raw.into() };
    match name.as_ref() {
        "0" if name == raw => Ok(Kind::Usage),
        "1" if name == raw => Ok(Kind::Correction),
        name if name.eq_ignore_ascii_case("USAGE") => Ok(Kind::Usage),
        name if name.eq_ignore_ascii_case("CORRECTION") => Ok(Kind::Correction),
        _ => Err(scalar::wrong_type("kind", "\"USAGE\" (0) or \"CORRECTION\" (1)", raw)),
    }
}

/// Refuses values that nest deeper than anybody means; needs no stack.
pub(super) fn check_nesting(raw: &str) -> Result<(), &'static str> {
    let (mut depth, mut in_string, mut is_escaped) = (0_usize, false, false);
    for byte in raw.bytes() {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_string => is_escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        if depth > NESTING_LIMIT {
            return Err("values are nested deeper than 128 levels");
        }
    }
    Ok(())
}

impl<'de> Deserialize<'de> for Object<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(ObjectVisitor)
    }
}

struct ObjectVisitor;

impl<'de> Visitor<'de> for ObjectVisitor {
    type Value = Object<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut object = Object { values: [None; Key::COUNT], repeated: None };
        while let Some(Name(name)) = map.next_key()? {
            let value: &RawValue = map.next_value()?;
            let Some(key) = name else {
                if value.get().starts_with(['{', '[']) {
                    check_nesting(value.get()).map_err(A::Error::custom)?;
                }
                continue;
            };
            if object.values[key as usize].replace(value).is_some() {
                object.repeated.get_or_insert(key);
            }
        }
        Ok(object)
    }
}

/// A name, known or not.
struct Name(Option<Key>);

impl<'de> Deserialize<'de> for Name {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_identifier(NameVisitor)
    }
}

struct NameVisitor;

impl Visitor<'_> for NameVisitor {
    type Value = Name;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a name")
    }

    fn visit_str<E: Error>(self, name: &str) -> Result<Name, E> {
        Ok(Name(Key::of(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(text: &str) -> Result<UsageEvent<'_>, Invalid> {
        Object::parse(text)?.event()
    }

    #[test]
    fn names_are_borrowed_unless_escapes_forbid_it() {
        let event = event(r#"{"id":"plain","source":"a\u0062\n","unknown":[{"x":1}]}"#);
        let event = event.expect("an event");
        assert!(event.id.is_borrowed() && event.id == "plain");
        assert_eq!(event.source, "ab\n");
    }

    #[test]
    fn null_is_not_given() {
        let text = r#"{"id":null,"quantity":null,"start_time":null,"time_unix_nano":null,
            "end_time_unix_nano":7,"kind":null,"telemetry":null}"#;
        let expected =
            UsageEvent { end: Timestamp(7), time: Timestamp(7), ..UsageEvent::default() };
        assert_eq!(event(text), Ok(expected));
        let telemetry = event(r#"{"telemetry":{"utilization":null}}"#).map(|event| event.telemetry);
        assert_eq!(telemetry, Ok(Telemetry::default()));
    }

    #[test]
    fn a_field_of_the_wrong_type_is_undecodable() {
        for text in [
            r#"{"id":5}"#,
            r#"{"account_id":["a"]}"#,
            r#"{"region":true}"#,
            r#"{"quantity":"eight"}"#,
            r#"{"quantity":true}"#,
            r#"{"quantity":{}}"#,
            r#"{"start_time":1717200000}"#,
            r#"{"start_time":"2024-06-01"}"#,
            r#"{"time":1717200000}"#,
            r#"{"end_time_unix_nano":1.5}"#,
            r#"{"end_time_unix_nano":"2024-06-01T00:00:00Z"}"#,
            r#"{"kind":"REFUND"}"#,
            r#"{"kind":2}"#,
            r#"{"kind":"1"}"#,
            r#"{"telemetry":[]}"#,
            r#"{"telemetry":"{}"}"#,
            r#"{"telemetry":{"utilization":"high"}}"#,
            r#"{"id":"\ud800"}"#,
        ] {
            let refused = event(text).expect_err(text);
            assert_eq!(refused.reason.name(), "undecodable", "{text}");
        }
    }

    #[test]
    fn kinds_are_names_in_any_case_or_numbers() {
        for (raw, expected) in [
            ("\"USAGE\"", Kind::Usage),
            ("\"correction\"", Kind::Correction),
            ("\"\\u0043orrection\"", Kind::Correction),
            ("0", Kind::Usage),
            ("1", Kind::Correction),
        ] {
            assert_eq!(kind(raw), Ok(expected), "{raw}");
        }
    }

    #[test]
    fn a_name_given_twice_is_refused_in_either_spelling() {
        for text in [
            r#"{"id":"a","id":"a"}"#,
            r#"{"account_id":"a","accountId":"b"}"#,
            r#"{"telemetry":{"dram_active":0.1,"dramActive":0.1}}"#,
        ] {
            let refused = event(text).expect_err(text);
            assert!(refused.detail.contains("given twice"), "{}", refused.detail);
        }
    }

    #[test]
    fn an_instant_in_two_forms_must_be_one_instant() {
        let both = r#"{"end_time":"1970-01-01T00:00:01Z","end_time_unix_nano":1000000000}"#;
        assert_eq!(event(both).map(|event| event.end), Ok(Timestamp(1_000_000_000)));
        let unlike = r#"{"end_time":"1970-01-01T00:00:02Z","end_time_unix_nano":1000000000}"#;
        assert!(event(unlike).is_err());
    }

    #[test]
    fn hostile_nesting_is_refused_without_stack() {
        for (open, close) in [("[", "]"), ("{\"x\":", "}")] {
            for key in ["unknown", "id", "telemetry", "data"] {
                let value = format!("{}1{}", open.repeat(300_000), close.repeat(300_000));
                let text = format!("{{\"{key}\":{value}}}");
                let decoded = event(&text);
                assert!(decoded.is_err() || key == "data", "{key} {open}");
                assert!(event(&text[..text.len() / 2]).is_err());
            }
        }
        let braces = format!("{{\"unknown\":[\"{}\\\"{}\"]}}", "[".repeat(500), "{".repeat(500));
        assert!(event(&braces).is_ok());
    }
}
