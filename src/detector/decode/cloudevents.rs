//! CloudEvents 1.0 around a usage event: structured JSON, or attributes in Kafka headers.
//!
//! The envelope's `id`, `source` and `time` win over the data's: they are what every other
//! consumer of the record sees. `subject` is the account when the data names none. An empty
//! attribute is not given.

use std::borrow::Cow;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::json::{Key, Object};
use super::{Body, owned, scalar};
use crate::detector::event::{Header, UsageEvent};
use crate::detector::invalid::Invalid;
use crate::detector::time::Timestamp;

/// The attributes that concern a usage event.
#[derive(Debug, Default)]
pub(super) struct Envelope<'a> {
    pub(super) id: Cow<'a, str>,
    pub(super) source: Cow<'a, str>,
    pub(super) subject: Cow<'a, str>,
    pub(super) time: Option<Timestamp>,
}

impl<'a> Envelope<'a> {
    pub(super) fn apply(self, event: &mut UsageEvent<'a>) {
        if !self.id.is_empty() {
            event.id = self.id.into();
        }
        if !self.source.is_empty() {
            event.source = self.source.into();
        }
        if event.account_id.is_empty() {
            event.account_id = self.subject.into();
        }
        if let Some(time) = self.time {
            event.time = time;
        }
    }
}

/// What a content type says of the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Content {
    Json,
    Protobuf,
    #[default]
    Unknown,
}

impl Content {
    fn of(content_type: &str) -> Self {
        let content_type = content_type.to_ascii_lowercase();
        if content_type.contains("protobuf") {
            Self::Protobuf
        } else if content_type.contains("json") {
            Self::Json
        } else {
            Self::Unknown
        }
    }

    /// The data in the form that the content type says, or else that its bytes show.
    pub(super) fn body(self, bytes: &[u8]) -> Result<Body<'_>, Invalid> {
        match self {
            Self::Json => Body::json(bytes),
            Self::Protobuf => Body::protobuf(bytes),
            Self::Unknown => Body::sniff(bytes),
        }
    }
}

/// Begins the content type of a structured CloudEvent.
const STRUCTURED: &str = "application/cloudevents";

/// What a record's headers make of it.
#[derive(Debug)]
pub(super) enum Headers<'a> {
    /// No CloudEvents attributes.
    Plain,
    /// The value is a CloudEvent in JSON.
    Structured,
    /// The value is the data of a CloudEvent.
    Binary(Envelope<'a>, Content),
}

impl<'a> Headers<'a> {
    pub(super) fn read(headers: &'a [Header<'a>]) -> Result<Self, Invalid> {
        let mut envelope = Envelope::default();
        let (mut is_binary, mut content_type) = (false, "");
        for header in headers {
            match header.name {
                "ce_id" => envelope.id = attribute(header)?.into(),
                "ce_source" => envelope.source = attribute(header)?.into(),
                "ce_subject" => envelope.subject = attribute(header)?.into(),
                "ce_time" => envelope.time = instant(attribute(header)?)?,
                "ce_specversion" => check_version(attribute(header)?)?,
                name if name.eq_ignore_ascii_case("content-type") => {
                    content_type = attribute(header)?;
                    continue;
                }
                _ => continue,
            }
            is_binary |= matches!(header.name, "ce_id" | "ce_specversion");
        }
        let is_structured = content_type
            .get(..STRUCTURED.len())
            .is_some_and(|prefix| prefix.eq_ignore_ascii_case(STRUCTURED));
        Ok(if is_structured {
            Self::Structured
        } else if is_binary {
            Self::Binary(envelope, Content::of(content_type))
        } else {
            Self::Plain
        })
    }
}

fn attribute<'a>(header: &Header<'a>) -> Result<&'a str, Invalid> {
    std::str::from_utf8(header.value.unwrap_or_default())
        .map_err(|_| Invalid::undecodable(format!("header {} is not UTF-8", header.name)))
}

fn instant(text: &str) -> Result<Option<Timestamp>, Invalid> {
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = || Invalid::undecodable(format!("header ce_time must be RFC 3339, found {text}"));
    scalar::rfc3339(text).map(Some).ok_or_else(wrong)
}

fn check_version(version: &str) -> Result<(), Invalid> {
    if version.starts_with("1.") {
        return Ok(());
    }
    let detail = format!("cloudevents: specversion must be 1.0, found {version}");
    Err(Invalid::undecodable(detail))
}

/// Whether a JSON object is a structured CloudEvent.
pub(super) fn is_structured(object: &Object<'_>) -> bool {
    object.raw(Key::Specversion).is_some() && object.raw(Key::Type).is_some()
}

/// The event in a structured CloudEvent.
pub(super) fn structured<'a>(object: &Object<'a>) -> Result<UsageEvent<'a>, Invalid> {
    object.refuse_repeated()?;
    check_version(&object.text(Key::Specversion)?)?;
    let envelope = Envelope {
        id: object.text(Key::Id)?,
        source: object.text(Key::Source)?,
        subject: object.text(Key::Subject)?,
        time: object.date_time(Key::Time)?,
    };
    let mut event = match (object.raw(Key::Data), object.raw(Key::DataBase64)) {
        (Some(data), None) => Object::parse(data)?.event()?,
        (None, Some(_)) => encoded(object)?,
        (Some(_), Some(_)) => {
            return Err(Invalid::undecodable("cloudevents: data and data_base64 are both given"));
        }
        (None, None) => return Err(Invalid::undecodable("cloudevents: no data")),
    };
    envelope.apply(&mut event);
    Ok(event)
}

fn encoded(object: &Object<'_>) -> Result<UsageEvent<'static>, Invalid> {
    let bytes = STANDARD
        .decode(object.text(Key::DataBase64)?.as_bytes())
        .map_err(|error| Invalid::undecodable(format!("cloudevents: data_base64: {error}")))?;
    let content = Content::of(&object.text(Key::Datacontenttype)?);
    content.body(&bytes)?.event().map(owned)
}

#[cfg(test)]
mod tests {
    use super::super::{Detected, Format, InputRules, decode_as};
    use super::*;
    use crate::detector::event::Record;

    const DATA: &str = r#"{"account_id":"acme","id":"inner","source":"inner","quantity":8,
        "start_time":"2024-06-01T00:00:00Z","end_time":"2024-06-01T01:00:00Z"}"#;

    fn header<'a>(name: &'a str, value: &'a str) -> Header<'a> {
        Header { name, value: Some(value.as_bytes()) }
    }

    fn with_headers<'a>(
        value: &'a [u8],
        headers: &'a [Header<'a>],
    ) -> Result<(UsageEvent<'a>, Detected), Invalid> {
        let record = Record { offset: 0, timestamp: None, key: None, value: Some(value), headers };
        decode_as(&InputRules { format: Format::Auto, fields: None }, &record)
    }

    #[test]
    fn the_envelope_wins_over_the_data_but_the_datas_account_over_the_subject() {
        let text = format!(
            r#"{{"specversion":"1.0","type":"t","id":"outer","source":"/outer","subject":"other",
                "time":"2024-06-01T01:00:05Z","data":{DATA}}}"#
        );
        let (event, detected) = with_headers(text.as_bytes(), &[]).expect("a CloudEvent");
        assert_eq!(detected, Detected::CloudeventsStructured);
        assert_eq!((&*event.id, &*event.source, &*event.account_id), ("outer", "/outer", "acme"));
        assert_eq!(event.time.to_string(), "2024-06-01T01:00:05Z");
    }

    #[test]
    fn binary_headers_are_the_envelope_of_any_body() {
        let headers = [
            header("ce_specversion", "1.0"),
            header("ce_id", "outer"),
            header("ce_source", "/outer"),
            header("ce_time", "2024-06-01T01:00:05Z"),
            header("ce_subject", "other"),
        ];
        let (event, detected) = with_headers(DATA.as_bytes(), &headers).expect("a CloudEvent");
        assert_eq!(detected, Detected::CloudeventsBinary);
        assert_eq!((&*event.id, &*event.source, &*event.account_id), ("outer", "/outer", "acme"));
        // an empty message is valid protobuf: the subject is all that names the account
        let typed = [headers[1], headers[4], header("content-type", "application/protobuf")];
        let (event, _) = with_headers(b"", &typed).expect("an empty message");
        assert_eq!(event.account_id, "other");
    }

    #[test]
    fn the_content_type_tells_structured_from_binary() {
        let headers = [
            header("content-type", "Application/CloudEvents+JSON; charset=UTF-8"),
            header("ce_id", "ignored"),
        ];
        let refused = with_headers(DATA.as_bytes(), &headers).expect_err("no envelope");
        assert!(refused.detail.contains("specversion"), "{}", refused.detail);
    }

    #[test]
    fn a_content_type_that_lies_is_refused() {
        let headers = [header("ce_id", "a"), header("content-type", "application/json")];
        assert!(with_headers(&[0x0A, 1, b'x'], &headers).is_err());
        let headers = [header("ce_id", "a"), header("content-type", "application/x-protobuf")];
        assert!(with_headers(DATA.as_bytes(), &headers).is_err());
    }

    #[test]
    fn wrong_versions_times_and_encodings_are_refused() {
        for attributes in [
            r#""specversion":"0.3","data":{}"#,
            r#""specversion":1.0,"data":{}"#,
            r#""specversion":"1.0""#,
            r#""specversion":"1.0","data":[]"#,
            r#""specversion":"1.0","data":"{}""#,
            r#""specversion":"1.0","data_base64":"?""#,
            r#""specversion":"1.0","data":{},"data_base64":"""#,
            r#""specversion":"1.0","data":{},"time":1717200000"#,
        ] {
            let text = format!(r#"{{"type":"t","id":"a","source":"s",{attributes}}}"#);
            let refused = with_headers(text.as_bytes(), &[]).expect_err(attributes);
            assert_eq!(refused.reason.name(), "undecodable");
        }
        for (name, value) in [("ce_time", "yesterday"), ("ce_specversion", "2.0")] {
            assert!(with_headers(DATA.as_bytes(), &[header(name, value)]).is_err(), "{name}");
        }
    }
}
