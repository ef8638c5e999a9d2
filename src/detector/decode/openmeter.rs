//! OpenMeter's flat Kafka JSON: a CloudEvent's attributes with `time` in whole seconds, and `data`
//! as a string that holds JSON.

use super::cloudevents::Envelope;
use super::json::{Key, Object};
use super::{owned, scalar};
use crate::detector::event::UsageEvent;
use crate::detector::invalid::Invalid;
use crate::detector::time::SECOND_NS;

/// Whether a JSON object is OpenMeter's: nothing else has a type, a subject and a string of data.
pub(super) fn is_flat(object: &Object<'_>) -> bool {
    object.raw(Key::Type).is_some()
        && object.raw(Key::Subject).is_some()
        && object.raw(Key::Specversion).is_none()
        && object.raw(Key::Data).is_some_and(|data| data.starts_with('"'))
}

/// The event in OpenMeter's flat JSON; the envelope counts as that of a CloudEvent.
pub(super) fn flat<'a>(object: &Object<'a>) -> Result<UsageEvent<'a>, Invalid> {
    object.refuse_repeated()?;
    let time = match object.raw(Key::Time) {
        Some(raw) if raw.starts_with('"') => {
            return Err(scalar::wrong_type("time", "a number of seconds", raw));
        }
        Some(raw) => Some(scalar::scaled_instant("time", raw, SECOND_NS)?),
        None => None,
    };
    let envelope = Envelope {
        id: object.text(Key::Id)?,
        source: object.text(Key::Source)?,
        subject: object.text(Key::Subject)?,
        time,
    };
    let mut event = owned(Object::parse(&object.text(Key::Data)?)?.event()?);
    envelope.apply(&mut event);
    Ok(event)
}

#[cfg(test)]
mod tests {
    use super::super::{Detected, Format, InputRules, decode_as};
    use super::*;
    use crate::detector::event::Record;
    use crate::detector::time::Span;

    fn decode(text: &str, format: Format) -> Result<(UsageEvent<'_>, Detected), Invalid> {
        let value = Some(text.as_bytes());
        let record = Record { offset: 0, timestamp: None, key: None, value, headers: &[] };
        decode_as(&InputRules { format, fields: None }, &record)
    }

    #[test]
    fn the_subject_is_the_account_and_time_counts_seconds() {
        let text = r#"{"id":"a","type":"gpu","source":"s","subject":"acme","time":1717203600,
            "data":"{\"quantity\":\"8\",\"region\":\"eu\\u002dwest\",\"start_time\":
            \"2024-06-01T00:00:00Z\",\"end_time\":\"2024-06-01T01:00:00Z\"}"}"#;
        let text = text.replace('\n', "");
        let (event, detected) = decode(&text, Format::Auto).expect("OpenMeter's form");
        assert_eq!(detected, Detected::Openmeter);
        assert_eq!((&*event.account_id, &*event.region, event.quantity), ("acme", "eu-west", 8.0));
        assert_eq!((event.time, event.end.since(event.start)), (event.end, Span::hours(1)));
    }

    #[test]
    fn data_that_is_no_object_is_refused() {
        for data in [r#""""#, r#""null""#, r#""[1]""#, r#""{}}""#, "5", "null"] {
            let text = format!(r#"{{"id":"a","type":"t","subject":"s","time":1,"data":{data}}}"#);
            assert!(decode(&text, Format::Openmeter).is_err(), "{data}");
        }
    }

    #[test]
    fn a_time_in_rfc_3339_is_not_openmeters() {
        let text = r#"{"type":"t","subject":"s","time":"2024-06-01T00:00:00Z","data":"{}"}"#;
        assert!(decode(text, Format::Auto).is_err());
    }
}
