//! What the stages send each other and what they keep on Kafka: the bytes of
//! `tests/golden/internal/format-*`, written and read back.
//!
//! The newest files are what this version writes, and what every later one must still read: when
//! `changelog::VERSION` moves on, a new directory takes over from the live stages and the others
//! stay as they are, to be restored from. `UPDATE_GOLDEN=1 cargo test --test golden_internal` writes them
//! anew; review the difference, which strands every running deployment's state unless it is read
//! as well.

mod fixture;
mod pipeline;
mod world;

use std::collections::BTreeSet;

use flopwatch::detector::changelog::VERSION;
use flopwatch::detector::event::{Header, Record};
use flopwatch::detector::invalid::Reason;
use flopwatch::detector::meter::Meter;
use flopwatch::detector::outbox::{Outbox, Output};
use flopwatch::detector::{Stage, StageError};

use fixture::{Entry, Fixture};
use pipeline::{Pipeline, Topic};

/// The live stages over the whole world.
fn live() -> Pipeline {
    let mut pipeline = Pipeline::new();
    for arrival in &world::arrivals() {
        pipeline.commit(arrival);
    }
    pipeline
}

#[test]
fn what_the_stages_write_is_as_the_golden_files_say() {
    assert_eq!(VERSION, 2, "a new format needs a directory of its own beside the others");
    let live = live();
    for topic in Topic::ALL {
        fixture::compare(topic, &live.log);
    }
    fixture::compare_text("positions.txt", &fixture::positions_text(&live.positions));
}

#[test]
fn every_kind_of_changelog_record_is_among_them() {
    let fixture = Fixture::read(VERSION);
    let mut kinds = BTreeSet::new();
    for topic in Topic::CHANGELOGS {
        for entry in fixture.entries(topic) {
            let end = if entry.value.is_some() { "" } else { " removed" };
            kinds.insert(format!("{}: {}{end}", topic.name(), fixture::kind(topic, &entry.key)));
        }
    }
    let expected = [
        "account-state: alignment",
        "account-state: head a",
        "account-state: head a removed",
        "account-state: slices a tier 0",
        "account-state: slices a tier 0 removed",
        "account-state: slices a tier 1",
        "account-state: slices a tier 1 removed",
        "group-state: alignment",
        "group-state: head c",
        "group-state: head c removed",
        "group-state: head o",
        "group-state: head o removed",
        "group-state: slices c tier 0",
        "group-state: slices c tier 0 removed",
        "group-state: slices c tier 1",
        "group-state: slices c tier 1 removed",
        "group-state: slices o tier 0",
        "group-state: slices o tier 0 removed",
        "group-state: slices o tier 1",
        "group-state: slices o tier 1 removed",
        "meter-state: head",
        "meter-state: identities",
        "meter-state: identities removed",
    ];
    assert_eq!(kinds.into_iter().collect::<Vec<_>>(), expected);
    let live = live();
    let scopes: BTreeSet<&str> = live.alerts.iter().map(|(_, alert)| alert.scope).collect();
    assert_eq!(scopes, BTreeSet::from(["account", "country", "owner", "site"]));
}

/// The upgrade: stages restored from any format, at any commit, go on as the live ones went on.
#[test]
fn stages_restored_from_the_golden_files_go_on_as_the_live_ones() {
    (1..=VERSION).for_each(|format| restored_from(&Fixture::read(format)));
}

fn restored_from(fixture: &Fixture) {
    let arrivals = world::arrivals();
    let live = live();
    for cut in 1..=arrivals.len() {
        let mut restored = Pipeline::restored(fixture, cut, &arrivals);
        for arrival in &arrivals[cut..] {
            restored.commit(arrival);
        }
        let later = |(commit, alert): &(usize, _)| (*commit > cut).then_some(alert).cloned();
        let expected: Vec<_> = live.alerts.iter().filter_map(later).collect();
        let found: Vec<_> = restored.alerts.iter().map(|(_, alert)| alert.clone()).collect();
        assert_eq!(found, expected, "alerts after commit {cut}");
        assert_eq!(restored.ledger(), live.ledger(), "slices, restored at commit {cut}");
        for topic in [Topic::AccountUsage, Topic::GroupUsage] {
            let sums = |pipeline: &Pipeline| fixture::sums(topic, &pipeline.log);
            assert_eq!(sums(&restored), sums(&live), "{}, commit {cut}", topic.name());
        }
        assert_eq!(restored.watermarks(), live.watermarks(), "restored at commit {cut}");
        // what was counted stays counted
        let again = restored.send_again(&arrivals);
        assert_eq!((again.read, again.counted), (13, 0), "restored at commit {cut}");
    }
}

#[test]
fn state_of_a_newer_format_is_refused_with_the_remedy() {
    let fixture = Fixture::read(VERSION);
    let mut refused = 0;
    for topic in Topic::CHANGELOGS {
        for Entry { key, value, .. } in fixture.entries(topic) {
            let Some(mut newer) = value.clone() else { continue };
            assert_eq!(newer[0], VERSION);
            newer[0] = VERSION + 1;
            let mut pipeline = Pipeline::new();
            let error = pipeline.restore(topic, key, Some(&newer)).expect_err("a newer format");
            let expected = "state has format 3, this version reads up to 2: run the newer \
                            flopwatch that wrote it";
            assert_eq!(error, StageError::State(expected.into()));
            refused += 1;
        }
    }
    assert!(refused > 20, "{refused} records");
}

#[test]
fn a_dead_letter_has_the_records_own_headers_and_then_ours() {
    let headers = [
        Header { name: "traceparent", value: Some(b"00-4bf92f3577b34da6-00f067aa0ba902b7-01") },
        Header { name: "flopwatch.reason", value: Some(b"sent again") },
        Header { name: "without-value", value: None },
    ];
    let (key, value) = (Some(&b"acme"[..]), Some(&b"{\"id\": 7}"[..]));
    let record = Record { offset: 42, timestamp: None, key, value, headers: &headers };
    let mut outbox = Outbox::default();
    Meter::new(world::rules(), 3, 4, 4).process(&record, &mut outbox).expect("one bad record");
    let Some(Output::DeadLetter(letter)) = outbox.outputs.first() else {
        panic!("no dead letter: {:?}", outbox.outputs)
    };
    assert_eq!((letter.key.as_deref(), letter.value.as_deref()), (key, value));
    assert_eq!(letter.invalid.reason, Reason::Undecodable);
    let mut text = String::new();
    for (name, value) in letter.published_headers("usage", 3) {
        let value = value.map(|bytes| String::from_utf8(bytes.into_owned()).expect("text"));
        text += &value.map_or_else(|| format!("{name}\n"), |value| format!("{name}: {value}\n"));
    }
    fixture::compare_text("dead-letter.headers", &text);
}
