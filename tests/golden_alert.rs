//! Alerts as published: the bytes of `tests/golden/alert`, in JSON and in protobuf (hex).
//!
//! `UPDATE_GOLDEN=1 cargo test --test golden_alert` writes them anew; review the difference.

use std::collections::BTreeMap;
use std::path::Path;

use flopwatch::detector::alert::{
    Alert, Estimate, Evidence, Observed, Origin, PolicyRef, Projection, Run, SliceSum, State, Sum,
};
use flopwatch::detector::cloudevent::{Published, SIZE_LIMIT, binary, structured};
use flopwatch::detector::directory::Country;
use flopwatch::detector::policy::Mode;
use flopwatch::detector::time::{Span, Timestamp};
use flopwatch::proto;
use prost::Message;

/// 2026-03-01T06:00:00Z.
const AT: Timestamp = Timestamp(1_772_344_800_000_000_000);

fn sum(factor: i128) -> Sum {
    Sum {
        accelerator_ms: 1_843_200_000 * factor,
        flop_gflop: 601_808_486_400 * factor,
        flop_allocated_gflop: 1_823_662_080_000 * factor,
        // beyond 64 bits: JSON must still say it as an integer
        flop_theoretical_gflop: 18_446_744_073_709_551_616 * factor,
    }
}

fn shares(names: &[&str]) -> BTreeMap<String, Sum> {
    names.iter().zip(1..).map(|(name, factor)| ((*name).to_owned(), sum(factor))).collect()
}

fn firing() -> Alert {
    Alert {
        alert_id: "6f1ad81c3b0e4f5592d7c0a1e8b94d23".to_owned(),
        revision: 1,
        state: State::Firing,
        at: AT,
        reason: None,
        policy: PolicyRef {
            id: "foreign-run-1e24".to_owned(),
            version: 1,
            title: "A foreign owner's run has used 1e24 FLOP".to_owned(),
            severity: "critical",
            mode: Mode::Live,
            hash: "0123456789abcdef0123456789abcdef".to_owned(),
            references: vec!["89 FR 5698 (proposed), 15 CFR 7.308".to_owned()],
        },
        scope: "owner",
        key: "acme-große".to_owned(),
        accounts: vec!["acct-1".to_owned(), "acct-\"2\"".to_owned()],
        accounts_total: 2,
        origin: Origin {
            country: Country::parse("CN").expect("a country"),
            foreign: true,
            decided_by: "ultimate_parent_country",
            foreign_by: vec!["ultimate_parent_country", "payment_country"],
            facts: BTreeMap::from([
                ("country", "US".to_owned()),
                ("payment_country", "SG".to_owned()),
                ("ultimate_parent_country", "CN".to_owned()),
            ]),
        },
        conditions: vec![
            Observed {
                metric: "run_flop",
                window: None,
                observed: 1.25e24,
                at_least: 1e24,
                unit: "FLOP",
                met: true,
            },
            Observed {
                metric: "sustained",
                window: Some("3d".to_owned()),
                observed: 0.9583333333333334,
                at_least: 0.9,
                unit: "ratio",
                met: true,
            },
        ],
        estimate: Estimate {
            flop_low: 3.282591744e23,
            flop: 6.01808486e23,
            flop_high: 9.1183104e23,
            flop_allocated: 1.82366208e24,
            accelerators: 4096.5,
            accelerator_hours: 98_316.0,
        },
        run: Some(Run {
            start: AT.minus(Span::days(30)),
            hours: 720.0,
            flop_low: 6.8e23,
            flop: 1.25e24,
            flop_high: 1.9e24,
        }),
        projection: Some(Projection { threshold: 1e25, reached_at: Some(AT.plus(Span::days(60))) }),
        evidence: Evidence {
            slices: vec![
                SliceSum { end: AT.minus(Span::hours(1)), sum: sum(1) },
                SliceSum { end: AT, sum: sum(-1) },
            ],
            by_accelerator: shares(&["nvidia-b200", "nvidia-h100-sxm", "other"]),
            by_region: shares(&["eu-west-1"]),
            by_fabric: shares(&["", "pod-7"]),
            unknown_accelerator: true,
            gap_records: 0,
        },
        first_at: AT.minus(Span::hours(6)),
        report_due: Some(AT.plus(Span::days(15))),
    }
}

fn resolved() -> Alert {
    Alert {
        revision: 3,
        state: State::Resolved,
        at: AT.plus(Span::hours(30)),
        conditions: vec![Observed {
            metric: "run_flop",
            window: None,
            observed: 0.0,
            at_least: 1e24,
            unit: "FLOP",
            met: false,
        }],
        run: None,
        projection: None,
        evidence: Evidence::default(),
        report_due: None,
        ..firing()
    }
}

fn withdrawn() -> Alert {
    Alert { reason: Some("withdrawn"), ..resolved() }
}

fn golden(file: &str, found: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/alert").join(file);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, format!("{found}\n")).expect("the golden file can be written");
    }
    let expected = std::fs::read_to_string(&path).expect("the golden file exists");
    assert_eq!(found, expected.trim_end(), "{file}");
}

fn hex(bytes: &[u8]) -> String {
    let digits: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    digits.chunks(48).map(|line| line.concat()).collect::<Vec<_>>().join("\n")
}

fn json(published: &Published) -> serde_json::Value {
    serde_json::from_slice(&published.value).expect("valid JSON")
}

#[test]
fn json_is_as_the_golden_files_say() {
    for (name, alert) in
        [("firing", firing()), ("resolved", resolved()), ("withdrawn", withdrawn())]
    {
        let published = structured(&alert);
        golden(&format!("{name}.json"), std::str::from_utf8(&published.value).expect("UTF-8"));
    }
}

#[test]
fn protobuf_is_as_the_golden_files_say() {
    for (name, alert) in
        [("firing", firing()), ("resolved", resolved()), ("withdrawn", withdrawn())]
    {
        golden(&format!("{name}.hex"), &hex(&binary(&alert).value));
    }
}

#[test]
fn attributes_are_members_in_structured_mode_and_headers_in_binary_mode() {
    let (structured, binary) = (structured(&firing()), binary(&firing()));
    assert_eq!(structured.key, "owner/acme-große/foreign-run-1e24");
    assert_eq!(binary.key, structured.key);
    let content_type = "application/cloudevents+json; charset=UTF-8".to_owned();
    assert_eq!(structured.headers, vec![("content-type", content_type)]);
    let event = json(&structured);
    let expected = [
        ("content-type", "application/protobuf"),
        ("ce_specversion", "1.0"),
        ("ce_id", "6f1ad81c3b0e4f5592d7c0a1e8b94d23/1"),
        ("ce_source", "flopwatch"),
        ("ce_type", "flopwatch.alert.v1"),
        ("ce_subject", "owner/acme-große"),
        ("ce_time", "2026-03-01T06:00:00Z"),
    ];
    assert_eq!(binary.headers, expected.map(|(name, value)| (name, value.to_owned())));
    for (name, value) in expected.into_iter().skip(1) {
        assert_eq!(event[name.trim_start_matches("ce_")], value);
    }
    assert_eq!(event["datacontenttype"], "application/json");
}

#[test]
fn protobuf_says_what_json_says() {
    let alert = proto::Alert::decode(&*binary(&firing()).value).expect("decodes");
    assert_eq!(alert.state(), proto::alert::State::Firing);
    assert_eq!((alert.at_unix_nano, alert.revision), (AT.0, 1));
    let origin = alert.origin.expect("given");
    assert_eq!((&*origin.country, origin.foreign, origin.facts.len()), ("CN", true, 3));
    let evidence = alert.evidence.expect("given");
    let shares: Vec<&str> = evidence.by_accelerator.iter().map(|share| &*share.name).collect();
    assert_eq!(shares, ["nvidia-b200", "nvidia-h100-sxm", "other"]);
    let last = evidence.slices[1].sum.as_ref().expect("given");
    assert_eq!(last.flop_theoretical_gflop, "-18446744073709551616");
    assert_eq!(alert.projection.expect("given").threshold, 1e25);
}

#[test]
fn an_oversized_alert_gives_up_evidence_and_nothing_else() {
    let mut alert = firing();
    alert.accounts = (0..100).map(|n| format!("{n:0>256}")).collect();
    for n in 0..2000 {
        let slice = SliceSum { end: AT.minus(Span::hours(2000 - n)), sum: sum(1) };
        alert.evidence.slices.push(slice);
        alert.evidence.by_fabric.insert(format!("fabric-{n:0>200}"), sum(i128::from(n)));
    }
    let total: i128 = alert.evidence.by_fabric.values().map(|sum| sum.flop_gflop).sum();
    alert.origin.facts.insert("access_ips", "192.0.2.1 é".repeat(40_000));

    let published = structured(&alert);
    assert!(published.value.len() <= SIZE_LIMIT, "{} bytes", published.value.len());
    let data = &json(&published)["data"];
    assert_eq!(data["accounts"].as_array().expect("kept").len(), 100);
    assert_eq!(data["conditions"].as_array().expect("kept").len(), 2);
    assert_eq!(data["evidence"]["slices"].as_array().expect("a list").len(), 0);
    let shares = data["evidence"]["by_fabric"].as_object().expect("a map");
    let kept: i128 =
        shares.values().map(|sum| i128::from(sum["flop_gflop"].as_i64().expect("small"))).sum();
    assert_eq!(kept, total);
    assert!(shares.contains_key(&format!("fabric-{:0>200}", 1999)), "the largest share stays");
    assert!(!shares.contains_key(&format!("fabric-{:0>200}", 0)), "the smallest one is folded");
    assert!(data["origin"]["facts"]["access_ips"].as_str().expect("kept").len() <= 1024);

    let value = binary(&alert).value;
    assert!(value.len() <= SIZE_LIMIT);
    let same = proto::Alert::decode(&*value).expect("decodes").evidence.expect("given");
    assert_eq!(same.by_fabric.len(), shares.len());
}

#[test]
fn an_alert_slightly_too_large_loses_only_its_older_slices() {
    let mut alert = firing();
    alert.evidence.slices =
        (0..1600).map(|n| SliceSum { end: AT.plus(Span::hours(n)), sum: sum(1) }).collect();
    let data = &json(&structured(&alert))["data"];
    let slices = data["evidence"]["slices"].as_array().expect("a list");
    assert_eq!(slices.len(), 800);
    assert_eq!(slices[799]["end"], AT.plus(Span::hours(1599)).to_string());
    assert_eq!(data["evidence"]["by_fabric"].as_object().expect("a map").len(), 2);
}
