//! From a record's bytes and headers to a usage event.
//!
//! The format is detected per record unless `input.format` pins it; detection looks at headers and
//! at the first bytes, and never tries one decoder after another's failure. Decoding says what the
//! record holds; whether that is valid is `UsageEvent::validate`'s. An instant that 64 bits of
//! nanoseconds cannot hold becomes the nearest that they do, which validation refuses as out of
//! range. No input panics, and none takes stack or time beyond its length.

mod account;
mod cloudevents;
mod json;
mod mapped;
mod openmeter;
mod pointer;
mod protobuf;
mod scalar;

use std::borrow::Cow;

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
    decode_as(rules, record).map(|(event, _)| event)
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
            headers => cloudevent(headers, value, rules.fields.as_ref()),
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
            Self::Bare(bytes) | Self::Framed(bytes) => protobuf::decode(bytes),
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
    let own = |text: Cow<'_, str>| Cow::Owned(text.into_owned());
    UsageEvent {
        id: own(event.id),
        source: own(event.source),
        account_id: own(event.account_id),
        resource_id: own(event.resource_id),
        region: own(event.region),
        fabric_id: own(event.fabric_id),
        accelerator: own(event.accelerator),
        instance_type: own(event.instance_type),
        quantity: event.quantity,
        start: event.start,
        end: event.end,
        time: event.time,
        kind: event.kind,
        telemetry: event.telemetry,
        precision: own(event.precision),
    }
}
