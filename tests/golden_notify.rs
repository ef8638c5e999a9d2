//! What `notify` says, from the golden alerts in both forms: the bytes of `tests/golden/notify`.
//!
//! `UPDATE_GOLDEN=1 cargo test --test golden_notify` writes them anew; review the difference.

use std::path::Path;

use flopwatch::detector::event::{Header, Record};
use flopwatch::detector::time::{Span, Timestamp};
use flopwatch::notify::alertmanager::posted;
use flopwatch::notify::notice::{Form, Notice};
use flopwatch::notify::ocsf::finding;
use serde_json::Value;

/// After everything that the golden alerts speak of: 2026-03-03T00:00:00Z.
const NOW: Timestamp = Timestamp(1_772_496_000_000_000_000);

const NAMES: [&str; 3] = ["firing", "resolved", "withdrawn"];

fn read(path: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn record<'a>(value: &'a [u8], headers: &'a [Header<'a>]) -> Record<'a> {
    Record { offset: 0, timestamp: None, key: None, value: Some(value), headers }
}

/// The alert as published with `alerts.format = "json"`.
fn structured(name: &str) -> Notice {
    let value = read(&format!("alert/{name}.json"));
    let content_type = b"application/cloudevents+json; charset=UTF-8";
    let headers = [Header { name: "content-type", value: Some(content_type) }];
    let (notice, form) = Notice::read(&record(&value, &headers)).expect("an alert");
    assert_eq!(form, Form::Structured);
    notice
}

/// The alert as published with `alerts.format = "protobuf"`.
fn binary(name: &str) -> Notice {
    let text = String::from_utf8(read(&format!("alert/{name}.hex"))).expect("text");
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| {
        let pair = std::str::from_utf8(pair).expect("ASCII");
        u8::from_str_radix(pair, 16).expect("hexadecimal")
    };
    let value: Vec<u8> = digits.chunks(2).map(byte).collect();
    let headers = [Header { name: "content-type", value: Some(b"application/protobuf") }];
    let (notice, form) = Notice::read(&record(&value, &headers)).expect("an alert");
    assert_eq!(form, Form::Binary);
    notice
}

fn golden(file: &str, found: &Value) {
    let found = serde_json::to_string_pretty(found).expect("JSON");
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/notify").join(file);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, format!("{found}\n")).expect("the golden file can be written");
    }
    let expected = std::fs::read_to_string(&path).expect("the golden file exists");
    assert_eq!(found, expected.trim_end(), "{file}");
}

fn alertmanager(notice: &Notice) -> Value {
    let runbook = Some("https://example.org/runbooks/{policy}");
    let valid = NOW.plus(Span::seconds(240));
    serde_json::to_value(posted(notice, runbook, NOW, valid)).expect("JSON")
}

#[test]
fn both_forms_of_an_alert_are_read_alike() {
    for name in NAMES {
        assert_eq!(structured(name), binary(name), "{name}");
    }
}

#[test]
fn findings_are_as_the_golden_files_say() {
    for name in NAMES {
        golden(&format!("ocsf-{name}.json"), &finding(&structured(name)));
    }
}

#[test]
fn what_alertmanager_is_told_is_as_the_golden_files_say() {
    for name in NAMES {
        golden(&format!("alertmanager-{name}.json"), &alertmanager(&structured(name)));
    }
}

#[test]
fn a_finding_has_what_its_class_requires() {
    for (name, activity) in [("firing", 1), ("resolved", 3), ("withdrawn", 3)] {
        let finding = finding(&structured(name));
        assert_eq!((&finding["class_uid"], &finding["category_uid"]), (&2004.into(), &2.into()));
        assert_eq!(finding["activity_id"], activity);
        assert_eq!(finding["type_uid"], 200_400 + activity);
        assert_eq!(finding["is_alert"], name == "firing");
        for required in [
            "/severity_id",
            "/time",
            "/metadata/version",
            "/metadata/product/name",
            "/finding_info/uid",
            "/finding_info/analytic/type_id",
            "/evidences/0/data",
            "/resources/0/uid",
        ] {
            assert!(finding.pointer(required).is_some_and(|value| !value.is_null()), "{required}");
        }
    }
}

#[test]
fn labels_are_the_same_for_all_revisions_and_numbers_stand_in_annotations() {
    let (firing, resolved) =
        (alertmanager(&structured("firing")), alertmanager(&structured("resolved")));
    assert_eq!(firing["labels"], resolved["labels"]);
    assert_ne!(firing["annotations"], resolved["annotations"]);
    let ends = |alert: &Value| alert["endsAt"].as_str().expect("a time").to_owned();
    assert!(ends(&firing) > NOW.to_string(), "live: its end lies ahead");
    assert!(ends(&resolved) < NOW.to_string(), "resolved: its end lies behind");
}

#[test]
fn a_resolved_alert_ends_by_now_even_if_event_time_runs_ahead() {
    let notice = structured("resolved");
    let early = notice.first_at.minus(Span::hours(1));
    let alert = posted(&notice, None, early, early.plus(Span::seconds(240)));
    assert_eq!((alert.starts_at, alert.ends_at), (early, early));
}

#[test]
fn a_record_that_is_no_alert_is_an_error_and_no_panic() {
    let proto = [Header { name: "content-type", value: Some(b"application/protobuf") }];
    for value in [&b""[..], b"{", b"{\"data\": {}}", b"\xff\xff\xff", b"null"] {
        assert!(Notice::read(&record(value, &[])).is_err(), "{value:?}");
        assert!(Notice::read(&record(value, &proto)).is_err(), "{value:?}");
    }
    let nothing = Record { value: None, ..record(b"", &[]) };
    assert!(Notice::read(&nothing).is_err());
    // an id goes into HTTP headers
    let text = String::from_utf8(read("alert/firing.json")).expect("text");
    let text = text.replace("6f1ad81c3b0e4f5592d7c0a1e8b94d23", "a\\r\\nb");
    assert!(Notice::read(&record(text.as_bytes(), &[])).is_err());
}
