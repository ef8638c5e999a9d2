//! From a record's bytes and headers to a usage event.
//!
//! The format is detected per record unless `input.format` pins it; detection looks at headers and
//! at the first bytes, and never tries one decoder after another's failure. Decoding says what the
//! record holds; whether that is valid is `UsageEvent::validate`'s. An instant that 64 bits of
//! nanoseconds cannot hold becomes the nearest that they do, which validation refuses as out of
//! range. No input panics, and none takes stack or time beyond its length.

mod account;
mod cloudevents;
mod fields;
mod json;
mod mapped;
mod openmeter;
mod pointer;
mod protobuf;
mod scalar;

use super::event::{Record, UsageEvent};
use super::invalid::Invalid;
pub use account::decode_account;
use cloudevents::Headers;
use json::{Key, Object};
pub use mapped::{Constant, FieldSource, Mapping};

/// Which format records have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    #[default]
    Auto,
    /// Bare or in a Confluent frame.
    Protobuf,
    /// An object of the event's own fields.
    Json,
    /// Structured or by headers.
    Cloudevents,
    Openmeter,
    /// Foreign JSON through `InputRules::fields`.
    Mapped,
}

impl Format {
    pub const ALL: [Self; 6] =
        [Self::Auto, Self::Protobuf, Self::Json, Self::Cloudevents, Self::Openmeter, Self::Mapped];

    /// The name in configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Protobuf => "protobuf",
            Self::Json => "json",
            Self::Cloudevents => "cloudevents",
            Self::Openmeter => "openmeter",
            Self::Mapped => "mapped",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.name() == name)
    }
}

/// Which format a record had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Detected {
    Protobuf,
    /// Protobuf in a schema registry's frame.
    Confluent,
    Json,
    CloudeventsStructured,
    CloudeventsBinary,
    Openmeter,
    Mapped,
}

impl Detected {
    pub const ALL: [Self; 7] = [
        Self::Protobuf,
        Self::Confluent,
        Self::Json,
        Self::CloudeventsStructured,
        Self::CloudeventsBinary,
        Self::Openmeter,
        Self::Mapped,
    ];

    /// The name in labels.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Protobuf => "protobuf",
            Self::Confluent => "confluent",
            Self::Json => "json",
            Self::CloudeventsStructured => "cloudevents_structured",
            Self::CloudeventsBinary => "cloudevents_binary",
            Self::Openmeter => "openmeter",
            Self::Mapped => "mapped",
        }
    }
}

/// How usage records are read.
#[derive(Debug, Clone, Default)]
pub struct InputRules {
    pub format: Format,
    /// `[input.fields]`: how foreign JSON names the event's fields.
    pub fields: Option<Mapping>,
}

/// Decodes a record; the event borrows its bytes.
pub fn decode<'a>(rules: &InputRules, record: &Record<'a>) -> Result<UsageEvent<'a>, Invalid> {
    let mut event = UsageEvent::default();
    decode_into(rules, record, &mut event)?;
    Ok(event)
}

/// Decodes a record into an event that nothing was put into, so that it need not be moved.
#[inline]
pub fn decode_into<'a>(
    rules: &InputRules,
    record: &Record<'a>,
    event: &mut UsageEvent<'a>,
) -> Result<(), Invalid> {
    if let Some(value) = record.value
        && record.headers.is_empty()
        && value.first() == Some(&b'\n')
        && matches!(rules.format, Format::Auto | Format::Protobuf)
        && !is_json(value)
    {
        // what most records are, on the shortest way
        return protobuf::decode(value, event);
    }
    *event = decode_as(rules, record)?.0;
    Ok(())
}

/// Decodes a line of a text file, which is a JSON object of some kind and never protobuf.
pub fn decode_line<'a>(rules: &InputRules, record: &Record<'a>) -> Result<UsageEvent<'a>, Invalid> {
    if !is_object_line(record.value.unwrap_or_default()) {
        return Err(Invalid::undecodable("the line is no JSON object"));
    }
    decode(rules, record)
}

/// Whether a line of text can be a JSON object.
pub fn is_object_line(line: &[u8]) -> bool {
    line.trim_ascii_start().starts_with(b"{")
}

/// Decodes a record and tells which format it had.
pub fn decode_as<'a>(
    rules: &InputRules,
    record: &Record<'a>,
) -> Result<(UsageEvent<'a>, Detected), Invalid> {
    let Some(value) = record.value else {
        return Err(Invalid::undecodable("a record without value is no usage event"));
    };
    match rules.format {
        Format::Auto if record.headers.is_empty() => plain(rules, value),
        Format::Auto => match Headers::read(record.headers)? {
            Headers::Plain => plain(rules, value),
            headers @ (Headers::Structured | Headers::Binary(..)) => {
                cloudevent(headers, value, rules.fields.as_ref())
            }
        },
        Format::Protobuf => {
            let body = Body::protobuf(value)?;
            Ok((body.event()?, body.detected()))
        }
        Format::Json => Ok((Body::json(value)?.event()?, Detected::Json)),
        Format::Cloudevents => cloudevent(Headers::read(record.headers)?, value, None),
        Format::Openmeter => {
            let event = openmeter::flat(&Object::parse(Body::json_text(value)?)?)?;
            Ok((event, Detected::Openmeter))
        }
        Format::Mapped => match &rules.fields {
            Some(mapping) => Ok((mapping.event(Body::json_text(value)?)?, Detected::Mapped)),
            None => Err(Invalid::undecodable("input.format is mapped without [input.fields]")),
        },
    }
}

/// A record whose headers say nothing.
fn plain<'a>(rules: &InputRules, value: &'a [u8]) -> Result<(UsageEvent<'a>, Detected), Invalid> {
    let body = Body::sniff(value)?;
    match body {
        Body::Json(text) => object(text, rules.fields.as_ref()),
        Body::Bare(_) | Body::Framed(_) => Ok((body.event()?, body.detected())),
    }
}

/// A JSON object of any kind.
fn object<'a>(
    text: &'a str,
    mapping: Option<&Mapping>,
) -> Result<(UsageEvent<'a>, Detected), Invalid> {
    let object = Object::parse(text)?;
    if let Some(mapping) = mapping
        && is_foreign(&object)?
    {
        Ok((mapping.event(text)?, Detected::Mapped))
    } else if cloudevents::is_structured(&object) {
        Ok((cloudevents::structured(&object)?, Detected::CloudeventsStructured))
    } else if openmeter::is_flat(&object) {
        Ok((openmeter::flat(&object)?, Detected::Openmeter))
    } else {
        Ok((object.event()?, Detected::Json))
    }
}

/// With `[input.fields]`, an object is foreign unless it is an envelope whose data is ours.
fn is_foreign(object: &Object<'_>) -> Result<bool, Invalid> {
    Ok(if cloudevents::is_structured(object) {
        object.raw(Key::Data).is_some_and(lacks_quantity)
    } else if openmeter::is_flat(object) {
        lacks_quantity(&object.text(Key::Data)?)
    } else {
        true
    })
}

/// No usage event of ours is without a quantity.
fn lacks_quantity(data: &str) -> bool {
    Object::parse(data).map_or(true, |object| object.raw(Key::Quantity).is_none())
}

/// A record that is a CloudEvent, by its headers or by configuration.
fn cloudevent<'a>(
    headers: Headers<'a>,
    value: &'a [u8],
    mapping: Option<&Mapping>,
) -> Result<(UsageEvent<'a>, Detected), Invalid> {
    let (envelope, content) = match headers {
        Headers::Binary(envelope, content) => (envelope, content),
        Headers::Plain | Headers::Structured => {
            let text = Body::json_text(value)?;
            let object = Object::parse(text)?;
            if let Some(mapping) = mapping
                && object.raw(Key::Data).is_some_and(lacks_quantity)
            {
                return Ok((mapping.event(text)?, Detected::Mapped));
            }
            return Ok((cloudevents::structured(&object)?, Detected::CloudeventsStructured));
        }
    };
    let body = content.body(value)?;
    let mut event = match (mapping, body) {
        (Some(mapping), Body::Json(text)) if lacks_quantity(text) => mapping.event(text)?,
        (Some(_) | None, Body::Json(_) | Body::Bare(_) | Body::Framed(_)) => body.event()?,
    };
    envelope.apply(&mut event);
    Ok((event, Detected::CloudeventsBinary))
}

/// The form of a value, by its first bytes.
#[derive(Debug, Clone, Copy)]
enum Body<'a> {
    Json(&'a str),
    Bare(&'a [u8]),
    /// What a Confluent frame holds.
    Framed(&'a [u8]),
}

impl<'a> Body<'a> {
    fn sniff(value: &'a [u8]) -> Result<Self, Invalid> {
        match value.first() {
            Some(0) => match frame(value)? {
                Frame::Json(rest) => Ok(Self::Json(utf8(rest)?)),
                Frame::Protobuf(rest) => Ok(Self::Framed(rest)),
            },
            Some(_) if is_json(value) => Ok(Self::Json(utf8(value)?)),
            Some(_) | None => Ok(Self::Bare(value)),
        }
    }

    fn protobuf(value: &'a [u8]) -> Result<Self, Invalid> {
        match value.first() {
            Some(0) => match frame(value)? {
                Frame::Json(_) => Err(Invalid::undecodable("expected protobuf, found framed JSON")),
                Frame::Protobuf(rest) => Ok(Self::Framed(rest)),
            },
            Some(_) | None => Ok(Self::Bare(value)),
        }
    }

    fn json(value: &'a [u8]) -> Result<Self, Invalid> {
        Self::json_text(value).map(Self::Json)
    }

    fn json_text(value: &'a [u8]) -> Result<&'a str, Invalid> {
        match value.first() {
            Some(0) => match frame(value)? {
                Frame::Json(rest) => utf8(rest),
                Frame::Protobuf(_) => {
                    Err(Invalid::undecodable("expected JSON, found a frame of protobuf"))
                }
            },
            Some(_) | None => utf8(value),
        }
    }

    /// The event of our own fields, in either encoding.
    fn event(self) -> Result<UsageEvent<'a>, Invalid> {
        match self {
            Self::Json(text) => Object::parse(text)?.event(),
            Self::Bare(bytes) | Self::Framed(bytes) => {
                let mut event = UsageEvent::default();
                protobuf::decode(bytes, &mut event)?;
                Ok(event)
            }
        }
    }

    const fn detected(self) -> Detected {
        match self {
            Self::Json(_) => Detected::Json,
            Self::Bare(_) => Detected::Protobuf,
            Self::Framed(_) => Detected::Confluent,
        }
    }
}

/// Whether a value is a JSON object rather than a bare protobuf.
///
/// No field of ours begins with `{`, a tab, a carriage return or a space. Field 1 begins with a
/// line feed, though, and its text may begin with `{`: then the keys of the other fields, control
/// characters that JSON knows nowhere, tell protobuf from JSON.
fn is_json(value: &[u8]) -> bool {
    match value.iter().position(|&byte| !is_json_space(byte)) {
        Some(0) => value[0] == b'{',
        Some(start) if value[start] == b'{' => {
            value[0] != b'\n' || !value.iter().any(|&byte| byte < b' ' && !is_json_space(byte))
        }
        Some(_) | None => false,
    }
}

const fn is_json_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r')
}

fn utf8(bytes: &[u8]) -> Result<&str, Invalid> {
    std::str::from_utf8(bytes).map_err(|_| Invalid::undecodable("json: not UTF-8"))
}

/// What a schema registry's frame holds.
enum Frame<'a> {
    Json(&'a [u8]),
    Protobuf(&'a [u8]),
}

/// Opens a Confluent frame: 0, four bytes of schema id, and for protobuf the index array that
/// names the message in its schema. Whatever the schema calls it, the message must be ours.
fn frame(value: &[u8]) -> Result<Frame<'_>, Invalid> {
    let truncated = || Invalid::undecodable("confluent frame: truncated");
    let mut rest = value.get(5..).ok_or_else(truncated)?;
    if rest.first() == Some(&b'{') {
        return Ok(Frame::Json(rest));
    }
    // the count is zigzag, where an odd number is negative: 1 can only be a plain count of one
    let count = match index(&mut rest).ok_or_else(truncated)? {
        0 => 0,
        1 => 1,
        zigzag if zigzag % 2 == 0 => zigzag / 2,
        _ => return Err(Invalid::undecodable("confluent frame: negative count of indexes")),
    };
    for _ in 0..count {
        index(&mut rest).ok_or_else(truncated)?;
    }
    Ok(Frame::Protobuf(rest))
}

/// A varint of at most five bytes, as every 32-bit number has.
fn index(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for (position, &byte) in rest.iter().take(5).enumerate() {
        value |= u64::from(byte & 0x7F) << (7 * position);
        if byte < 0x80 {
            *rest = &rest[position + 1..];
            return Some(value);
        }
    }
    None
}

/// The event on its own, for one that was decoded from a temporary buffer.
fn owned(event: UsageEvent<'_>) -> UsageEvent<'static> {
    UsageEvent {
        id: event.id.into_owned(),
        source: event.source.into_owned(),
        account_id: event.account_id.into_owned(),
        resource_id: event.resource_id.into_owned(),
        region: event.region.into_owned(),
        fabric_id: event.fabric_id.into_owned(),
        accelerator: event.accelerator.into_owned(),
        instance_type: event.instance_type.into_owned(),
        quantity: event.quantity,
        start: event.start,
        end: event.end,
        time: event.time,
        kind: event.kind,
        telemetry: event.telemetry,
        precision: event.precision.into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use prost::Message;

    use super::*;
    use crate::detector::time::Timestamp;
    use crate::proto;

    fn rules(format: Format) -> InputRules {
        InputRules { format, fields: None }
    }

    fn read(rules: &InputRules, value: &[u8]) -> Result<(UsageEvent<'static>, Detected), Invalid> {
        let record =
            Record { offset: 0, timestamp: None, key: None, value: Some(value), headers: &[] };
        decode_as(rules, &record).map(|(event, detected)| (owned(event), detected))
    }

    fn mapping() -> Mapping {
        let mut fields = BTreeMap::new();
        for (name, pointer) in [
            ("id", "/id"),
            ("source", "/source"),
            ("account_id", "/who"),
            ("quantity", "/data/gpus"),
            ("start_time", "/data/from"),
            ("end_time", "/data/to"),
        ] {
            let pointer = Some(pointer.to_owned());
            fields.insert(name.to_owned(), FieldSource { pointer, ..FieldSource::default() });
        }
        Mapping::new(fields).expect("a sound mapping")
    }

    #[test]
    fn format_names_read_back() {
        for format in Format::ALL {
            assert_eq!(Format::parse(format.name()), Some(format));
        }
        assert_eq!(Format::parse("avro"), None);
    }

    #[test]
    fn a_line_that_is_no_object_is_not_taken_for_protobuf() {
        let message = proto::UsageEvent {
            id: "1".to_owned(),
            source: "meter".to_owned(),
            account_id: "acme".to_owned(),
            ..proto::UsageEvent::default()
        };
        let protobuf = message.encode_to_vec();
        for line in [&b"[{}]"[..], b"null", b"  7", b"id,source", &protobuf] {
            let value = Some(line);
            let record = Record { offset: 1, timestamp: None, key: None, value, headers: &[] };
            let refused = decode_line(&rules(Format::Auto), &record).expect_err("no object");
            assert_eq!(refused, Invalid::undecodable("the line is no JSON object"));
        }
        assert!(read(&rules(Format::Auto), &protobuf).is_ok(), "a record may be protobuf");
    }

    #[test]
    fn an_id_that_looks_like_json_does_not_make_protobuf_json() {
        // the length of the id is a line feed, a space or `{` itself
        for id in ["{\"id\":\"0\"", "{}                              ", &"{".repeat(123)] {
            let message = proto::UsageEvent {
                id: id.to_owned(),
                source: "s".to_owned(),
                ..Default::default()
            };
            let (event, detected) =
                read(&rules(Format::Auto), &message.encode_to_vec()).expect("protobuf");
            assert_eq!((&*event.id, detected), (id, Detected::Protobuf));
        }
    }

    #[test]
    fn json_may_begin_with_any_white_space() {
        for space in ["", "\n", " ", "\r\n\t ", "\n\n"] {
            let text = format!("{space}{{\"id\": \"a\",\n\t\"source\": \"s\"}}\n");
            let (event, detected) = read(&rules(Format::Auto), text.as_bytes()).expect("JSON");
            assert_eq!((&*event.id, detected), ("a", Detected::Json));
        }
    }

    #[test]
    fn frames_open_with_every_spelling_of_the_index_array() {
        let message = proto::UsageEvent { id: "a".to_owned(), ..Default::default() };
        for (indexes, right) in [
            (&[0_u8][..], true),
            (&[1, 0], true),
            (&[2, 0], true),
            (&[4, 2, 0], true),
            (&[2, 0x80, 0x01], true),
            (&[3, 0, 0, 0], false),
            (&[2], false),
            (&[0xFE, 0xFF, 0xFF, 0xFF, 0x0F], false),
            (&[0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0x0F], false),
        ] {
            let mut value = vec![0, 0, 0, 1, 2];
            value.extend(indexes);
            if right {
                value.extend(message.encode_to_vec());
            }
            for format in [Format::Auto, Format::Protobuf] {
                let read =
                    read(&rules(format), &value).map(|(event, detected)| (event.id, detected));
                let expected = right.then_some(("a".into(), Detected::Confluent));
                assert_eq!(read.ok(), expected, "{indexes:?}");
            }
        }
        for short in [&[0_u8][..], &[0, 1, 2, 3, 4]] {
            assert!(read(&rules(Format::Auto), short).is_err());
        }
        let framed = b"\0\0\0\0\x01{\"id\":\"a\"}";
        assert!(read(&rules(Format::Auto), framed).is_ok_and(|(event, _)| event.id == "a"));
        assert!(read(&rules(Format::Json), framed).is_ok_and(|(event, _)| event.id == "a"));
        assert!(read(&rules(Format::Protobuf), framed).is_err());
    }

    #[test]
    fn a_pinned_format_takes_no_other() {
        let protobuf =
            proto::UsageEvent { id: "a".to_owned(), ..Default::default() }.encode_to_vec();
        let json = br#"{"id":"a"}"#;
        for (format, value) in [
            (Format::Protobuf, &json[..]),
            (Format::Json, &protobuf),
            (Format::Cloudevents, json),
            (Format::Openmeter, json),
            (Format::Mapped, json),
            (Format::Json, b"[{}]"),
            (Format::Json, b""),
        ] {
            let refused = read(&rules(format), value).expect_err(format.name());
            assert_eq!(refused.reason.name(), "undecodable");
        }
    }

    #[test]
    fn a_tombstone_and_text_that_is_no_object_are_undecodable() {
        let empty = Record { offset: 0, timestamp: None, key: None, value: None, headers: &[] };
        assert!(decode(&rules(Format::Auto), &empty).is_err());
        for text in ["[1]", "null", "hello", "{\"id\":", "{\"id\":\"a\"} {}", "{id:1}"] {
            assert!(read(&rules(Format::Auto), text.as_bytes()).is_err(), "{text}");
        }
        assert!(read(&rules(Format::Auto), b"{\"id\":\"\xff\"}").is_err());
    }

    #[test]
    fn with_fields_configured_only_envelopes_of_our_own_data_are_not_mapped() {
        let rules = InputRules { format: Format::Auto, fields: Some(mapping()) };
        let foreign = r#"{"gpus":2,"from":1717200000,"to":1717203600}"#;
        let ours = r#"{"quantity":2,"account_id":"w","start_time":"2024-06-01T00:00:00Z",
            "end_time":"2024-06-01T01:00:00Z"}"#;
        let quoted = |data: &str| serde_json::Value::from(data).to_string();
        let common = r#""id":"a","source":"s","who":"w""#;
        let cloudevent = r#""specversion":"1.0","type":"t""#;
        let openmeter = r#""type":"t","subject":"w","time":1717203600"#;
        for (text, expected) in [
            (format!("{{{common},\"data\":{foreign}}}"), Detected::Mapped),
            (format!("{{{common},{cloudevent},\"data\":{foreign}}}"), Detected::Mapped),
            (format!("{{{common},{openmeter},\"data\":{}}}", quoted(foreign)), Detected::Mapped),
            (format!("{{{common},{cloudevent},\"data\":{ours}}}"), Detected::CloudeventsStructured),
            (format!("{{{common},{openmeter},\"data\":{}}}", quoted(ours)), Detected::Openmeter),
        ] {
            let (event, detected) = read(&rules, text.as_bytes()).expect("an event");
            assert_eq!(detected, expected, "{text}");
            assert_eq!((&*event.id, &*event.account_id, event.quantity), ("a", "w", 2.0));
            assert_eq!(event.end.to_string(), "2024-06-01T01:00:00Z");
        }
        let protobuf = proto::UsageEvent { id: "a".to_owned(), ..Default::default() };
        let (_, detected) = read(&rules, &protobuf.encode_to_vec()).expect("protobuf");
        assert_eq!(detected, Detected::Protobuf);
    }

    /// A message as JSON, in either spelling, with numbers as such or as strings.
    fn to_json(message: &proto::UsageEvent, camel: bool, strings: bool) -> String {
        let name = |name: &str| {
            if !camel {
                return name.to_owned();
            }
            let mut words = name.split('_');
            let mut joined = words.next().unwrap_or_default().to_owned();
            for word in words {
                joined.push_str(&word[..1].to_uppercase());
                joined.push_str(&word[1..]);
            }
            joined
        };
        let number = |text: String| if strings { format!("\"{text}\"") } else { text };
        let mut fields = Vec::new();
        for (field, value) in [
            ("id", &message.id),
            ("source", &message.source),
            ("account_id", &message.account_id),
            ("resource_id", &message.resource_id),
            ("fabric_id", &message.fabric_id),
            ("instance_type", &message.instance_type),
        ] {
            fields.push(format!("\"{}\":{}", name(field), serde_json::Value::from(value.as_str())));
        }
        for (field, value) in [
            ("start_time_unix_nano", message.start_time_unix_nano),
            ("end_time_unix_nano", message.end_time_unix_nano),
            ("time_unix_nano", message.time_unix_nano),
        ] {
            fields.push(format!("\"{}\": {}", name(field), number(value.to_string())));
        }
        fields.push(format!("\"quantity\":{}", number(format!("{:?}", message.quantity))));
        fields.push(format!("\"kind\":{}", message.kind));
        if let Some(telemetry) = message.telemetry {
            let mut inner = Vec::new();
            if let Some(value) = telemetry.tensor_active {
                inner.push(format!(
                    "\"{}\":{}",
                    name("tensor_active"),
                    number(format!("{value:?}"))
                ));
            }
            if let Some(value) = telemetry.fabric_bytes {
                inner.push(format!(
                    "\"{}\":{}",
                    name("fabric_bytes"),
                    number(format!("{value:?}"))
                ));
            }
            fields.push(format!("\"telemetry\":{{{}}}", inner.join(",")));
        }
        format!("{{{}}}", fields.join(","))
    }

    fn finite() -> impl Strategy<Value = f64> {
        any::<f64>().prop_filter("finite", |value| value.is_finite())
    }

    proptest! {
        #[test]
        fn json_in_every_spelling_decodes_as_protobuf_does(
            names in proptest::array::uniform6("\\PC{0,12}"),
            times in proptest::array::uniform3(any::<u64>()),
            quantity in finite(),
            kind in 0..2_i32,
            tensor_active in proptest::option::of(
                any::<f32>().prop_filter("finite", |value| value.is_finite())
            ),
            fabric_bytes in proptest::option::of(finite()),
            camel: bool,
            strings: bool,
        ) {
            let [id, source, account_id, resource_id, fabric_id, instance_type] = names;
            let message = proto::UsageEvent {
                id, source, account_id, resource_id, fabric_id, instance_type, quantity, kind,
                start_time_unix_nano: times[0],
                end_time_unix_nano: times[1],
                time_unix_nano: times[2],
                telemetry: Some(proto::Telemetry {
                    tensor_active, fabric_bytes, ..Default::default()
                }),
                ..Default::default()
            };
            let expected = read(&rules(Format::Protobuf), &message.encode_to_vec());
            let json = read(&rules(Format::Auto), to_json(&message, camel, strings).as_bytes());
            prop_assert_eq!(
                json.map(|(event, _)| event), expected.map(|(event, _)| event)
            );
        }
    }

    #[test]
    fn a_time_before_1970_is_out_of_range_and_not_undecodable() {
        for times in [
            r#""start_time":"1969-12-31T23:00:00Z""#,
            r#""start_time_unix_nano":-1"#,
            r#""start_time_unix_nano":"99999999999999999999""#,
            r#""start_time":"2024-06-01T00:00:00Z","time_unix_nano":-1"#,
            r#""start_time":"2024-06-01T00:00:00Z","time":"1960-01-01T00:00:00Z""#,
        ] {
            let text = format!(
                r#"{{"id":"a","source":"s","account_id":"w","quantity":1,{times},
                    "end_time":"2024-06-01T01:00:00Z"}}"#
            );
            let (event, _) = read(&rules(Format::Auto), text.as_bytes()).expect(&text);
            let outside = |instant| instant < Timestamp::EARLIEST || instant >= Timestamp::LATEST;
            assert!(outside(event.start) || outside(event.time), "{text}");
        }
    }
}
