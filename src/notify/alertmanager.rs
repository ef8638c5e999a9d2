//! Alertmanager: what is live is kept here and sent again and again.
//!
//! Alertmanager forgets an alert that nobody repeats, and all of them when it restarts. So this
//! target is one of state: of each live alert the last revision is kept in memory, sent at once and
//! then every `resend_interval`, valid for four of those. A resolved one is repeated for a quarter
//! of an hour, as Prometheus does, since Alertmanager may restart before it has told anybody.
//!
//! **After a restart** the live ones are found again without reading all that ever was: beside each
//! committed position stands the offset of the oldest revision that was still live, and reading
//! begins there. Up to the end of a partition only resolved ones are sent, for any other may be
//! resolved further on. A position is committed when nothing before it waits to be sent.
//!
//! **Identity** is the labels, which hold the alert's id and are the same for all its revisions;
//! what changes stands in annotations. A revision older than the one kept is passed over.
//!
//! **Bounds:** some 2 KB an alert, at most [`KEPT_LIMIT`] of them; what is beyond is sent once.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::courier::{Desk, Now};
use super::http::{Client, Failure};
use super::log::{Delivery, refused};
use super::notice::Notice;
use crate::config;
use crate::detector::alert::State;
use crate::detector::event::Record;
use crate::detector::time::{Span, Timestamp};
use crate::kafka::subscriber::{Given, Position};
use crate::metrics::{self, Target};

/// Alerts kept for repetition.
pub const KEPT_LIMIT: usize = 100_000;
/// Alerts that may wait for their first time before more is read.
const WAITING_LIMIT: usize = 1024;
/// Alerts in one request.
const BATCH: usize = 64;
const TIMEOUT: Duration = Duration::from_secs(10);
/// For how many intervals a live alert is valid.
const VALID: u64 = 4;
/// How long a resolved alert is repeated.
const RESOLVED: Duration = Duration::from_secs(15 * 60);

/// One alert, as `POST /api/v2/alerts` takes it in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Posted<'a> {
    pub labels: BTreeMap<&'static str, &'a str>,
    pub annotations: BTreeMap<&'static str, String>,
    pub starts_at: Timestamp,
    pub ends_at: Timestamp,
}

/// The alert that a revision is; a live one is valid until `valid`.
pub fn posted<'a>(
    notice: &'a Notice,
    runbook_url: Option<&str>,
    now: Timestamp,
    valid: Timestamp,
) -> Posted<'a> {
    let policy = &notice.policy;
    let labels = [
        ("alertname", "FlopwatchCompute"),
        ("policy", &policy.id),
        ("severity", &policy.severity),
        ("mode", &policy.mode),
        ("scope", &notice.scope),
        ("key", &notice.key),
        ("alert_id", &notice.alert_id),
    ];
    let mut annotations = BTreeMap::from([
        ("title", policy.title.clone()),
        ("summary", notice.summary()),
        ("revision", notice.revision.to_string()),
        ("at", notice.at.to_string()),
    ]);
    if let Some(due) = notice.report_due {
        annotations.insert("report_due", due.to_string());
    }
    if let Some(reason) = &notice.reason {
        annotations.insert("reason", reason.clone());
    }
    if let Some(url) = runbook_url {
        annotations.insert("runbook_url", url.replace("{policy}", &policy.id));
    }
    // event time may run ahead of this clock, and an end in the future would not resolve it
    let ends_at = match notice.state {
        State::Firing | State::Updated => valid,
        State::Resolved => notice.at.min(now),
    };
    Posted {
        // it has no label that is empty
        labels: labels.into_iter().filter(|(_, value)| !value.is_empty()).collect(),
        annotations,
        starts_at: notice.first_at.min(now).min(ends_at),
        ends_at,
    }
}

/// The last revision of one alert.
struct Entry {
    notice: Notice,
    offset: u64,
    /// When it is sent next.
    due: Instant,
    /// It has not been sent yet, and holds the position.
    unsent: bool,
    /// Until when a resolved one is repeated; set when it has been sent.
    until: Option<Instant>,
    /// It found no room: sent once.
    once: bool,
}

impl Entry {
    fn is_resolved(&self) -> bool {
        self.notice.state == State::Resolved
    }
}

/// One partition.
struct Book {
    /// By alert id.
    live: BTreeMap<String, Entry>,
    /// The next offset to read.
    position: u64,
    /// Below this all has been sent by somebody.
    known: u64,
    at_end: bool,
}

impl Book {
    /// What is not resolved yet may be further on.
    fn may_send(&self, entry: &Entry) -> bool {
        self.at_end || entry.is_resolved()
    }
}

pub(crate) struct Alertmanager {
    client: Client,
    interval: Duration,
    runbook_url: Option<String>,
    books: Vec<Book>,
    kept: usize,
    /// Of them, those that could be sent and have not been.
    waiting: usize,
    /// No entry is due before; `None` when nothing is kept.
    soonest: Option<Instant>,
}

impl Alertmanager {
    pub(crate) fn new(config: &config::Alertmanager) -> Self {
        Self {
            client: Client::new(format!("{}/api/v2/alerts", config.url), TIMEOUT),
            interval: config.resend_interval,
            runbook_url: config.runbook_url.clone(),
            books: Vec::new(),
            kept: 0,
            waiting: 0,
            soonest: None,
        }
    }

    /// Some of what is due, by partition and alert id.
    fn due(&self, now: Instant) -> Vec<(usize, String)> {
        let books = self.books.iter().enumerate();
        let due = books.flat_map(|(number, book)| {
            let live = book.live.iter();
            let live = live.filter(move |(_, entry)| entry.due <= now && book.may_send(entry));
            live.map(move |(id, _)| (number, id.clone()))
        });
        due.take(BATCH).collect()
    }

    fn post(&self, which: &[(usize, String)], now: Now) -> Result<(), Failure> {
        if which.is_empty() {
            return Ok(());
        }
        let interval = u64::try_from(self.interval.as_nanos()).unwrap_or(Span::LONGEST.0);
        let valid = now.wall.plus(Span(interval.saturating_mul(VALID).min(Span::LONGEST.0)));
        let alerts: Vec<Posted<'_>> = which
            .iter()
            .map(|(number, id)| &self.books[*number].live[id].notice)
            .map(|notice| posted(notice, self.runbook_url.as_deref(), now.wall, valid))
            .collect();
        let body = serde_json::to_vec(&alerts).expect("texts and instants are JSON");
        self.client.post(&[("content-type", "application/json")], &body)
    }

    /// One of them has been taken, or never will be.
    fn sent(&mut self, number: usize, id: &str, now: Instant, refused: bool) {
        let interval = self.interval;
        let live = &mut self.books[number].live;
        let entry = live.get_mut(id).expect("what was posted is kept");
        if entry.unsent && !refused {
            metrics::notified(Target::Alertmanager, 1);
        }
        entry.unsent = false;
        entry.due = now + interval;
        if entry.is_resolved() && entry.until.is_none() {
            entry.until = Some(now + RESOLVED);
        }
        let is_over = entry.until.is_some_and(|until| entry.due > until);
        if refused || entry.once || is_over {
            live.remove(id);
            self.kept -= 1;
        }
    }

    fn recount(&mut self) {
        (self.soonest, self.waiting) = (None, 0);
        for book in &self.books {
            for entry in book.live.values().filter(|entry| book.may_send(entry)) {
                self.waiting += usize::from(entry.unsent);
                self.soonest = Some(self.soonest.map_or(entry.due, |due| due.min(entry.due)));
            }
        }
        metrics::notify_kept(self.kept);
    }

    fn keep(&mut self, number: usize, mut notice: Notice, record: &Record<'_>, now: Now) {
        // nothing that is sent holds these, and they are large
        notice.accounts = Vec::new();
        notice.policy.references = Vec::new();
        let book = &mut self.books[number];
        let unsent = record.offset >= book.known;
        let is_resolved = notice.state == State::Resolved;
        let mut until = None;
        if is_resolved && !unsent {
            // somebody has sent it: repeated for what is left of its time
            let age = record.timestamp.map_or(Span::LONGEST, |sent| now.wall.since(sent));
            let left = RESOLVED.saturating_sub(Duration::from_nanos(age.0));
            if left.is_zero() {
                self.kept -= usize::from(book.live.remove(&notice.alert_id).is_some());
                return;
            }
            until = Some(now.instant + left);
        }
        let earlier = book.live.get(&notice.alert_id);
        if earlier.is_some_and(|earlier| earlier.notice.revision > notice.revision) {
            return;
        }
        let once = earlier.is_none() && self.kept >= KEPT_LIMIT;
        if once {
            tracing::warn!(limit = KEPT_LIMIT, "more alerts than are kept: sent once only");
        }
        self.kept += usize::from(earlier.is_none());
        let entry = Entry { offset: record.offset, due: now.instant, unsent, until, once, notice };
        if book.may_send(&entry) {
            self.soonest = Some(now.instant);
            self.waiting += usize::from(unsent);
        }
        book.live.insert(entry.notice.alert_id.clone(), entry);
    }
}

impl Desk for Alertmanager {
    fn target(&self) -> Target {
        Target::Alertmanager
    }

    /// Without a position, or with one that somebody else has set, what is live is unknown: then
    /// all is read.
    fn begin(&mut self, given: &Given) -> u64 {
        let committed = given.committed.as_ref();
        let start = committed.map_or(given.low, |position| {
            position.note.parse().map_or(given.low, |live: u64| live.min(position.offset))
        });
        let start = start.max(given.low);
        let known = committed.map_or(0, |position| position.offset);
        self.books.push(Book { live: BTreeMap::new(), position: start, known, at_end: false });
        start
    }

    fn take(&mut self, number: usize, record: &Record<'_>, now: Now) {
        if let Some(delivery) = Delivery::read(Target::Alertmanager, record) {
            self.keep(number, delivery.notice, record, now);
        }
        self.books[number].position = record.offset + 1;
    }

    fn at_end(&mut self, number: usize, offset: u64) {
        let book = &mut self.books[number];
        book.position = offset.max(book.position);
        if !book.at_end {
            book.at_end = true;
            self.recount();
        }
    }

    fn forget(&mut self) {
        self.books.clear();
        self.kept = 0;
        self.recount();
    }

    /// Resolved ones do not pile up while a long topic is read.
    fn is_full(&self) -> bool {
        self.waiting >= WAITING_LIMIT
    }

    fn is_due(&self, now: Now) -> bool {
        self.soonest.is_some_and(|soonest| soonest <= now.instant)
    }

    fn deliver(&mut self, now: Now) -> Result<(), Failure> {
        let which = self.due(now.instant);
        match self.post(&which, now) {
            Ok(()) => which.iter().for_each(|(number, id)| {
                self.sent(*number, id, now.instant, false);
            }),
            // one of them: the others must not suffer for it
            Err(Failure::Refused(_)) => {
                for one in &which {
                    match self.post(std::slice::from_ref(one), now) {
                        Ok(()) => self.sent(one.0, &one.1, now.instant, false),
                        Err(Failure::Refused(answer)) => {
                            let notice = &self.books[one.0].live[&one.1].notice;
                            refused(Target::Alertmanager, notice, &answer);
                            self.sent(one.0, &one.1, now.instant, true);
                        }
                        Err(again @ Failure::Again(_)) => return Err(again),
                    }
                }
            }
            Err(again @ Failure::Again(_)) => return Err(again),
        }
        self.recount();
        Ok(())
    }

    fn settled(&self, number: usize, known: Option<u64>) -> Option<Position> {
        let book = &self.books[number];
        if known.is_some_and(|known| known >= book.position)
            || book.live.values().any(|entry| entry.unsent)
        {
            return None;
        }
        let oldest = book.live.values().filter(|entry| !entry.once).map(|entry| entry.offset).min();
        let note = oldest.unwrap_or(book.position).to_string();
        Some(Position { offset: book.position, note })
    }

    fn remaining(&self) -> u32 {
        let reading = self.books.iter().filter(|book| !book.at_end).count();
        u32::try_from(reading).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::context::TopicPartition;

    const SECOND: u64 = 1_000_000_000;

    fn now() -> Now {
        // after all that the golden alerts speak of
        Now { instant: Instant::now(), wall: Timestamp(1_900_000_000 * SECOND) }
    }

    /// A desk with one partition, committed up to `offset` with this note.
    fn desk(committed: Option<(u64, &str)>) -> (Alertmanager, u64) {
        let config = config::Alertmanager {
            url: "http://127.0.0.1:9".into(),
            resend_interval: Duration::from_secs(60),
            runbook_url: None,
        };
        let mut desk = Alertmanager::new(&config);
        let position = committed.map(|(offset, note)| Position { offset, note: note.to_owned() });
        let partition = TopicPartition { topic: "alerts".into(), partition: 0 };
        let start = desk.begin(&Given { partition, committed: position, low: 0 });
        (desk, start)
    }

    fn take(desk: &mut Alertmanager, offset: u64, key: &str, revision: u32, state: &str, age: u64) {
        let golden = include_str!("../../tests/golden/alert/firing.json");
        let value = golden
            .replace("6f1ad81c3b0e4f5592d7c0a1e8b94d23", key)
            .replace("\"revision\":1", &format!("\"revision\":{revision}"))
            .replace("\"state\":\"firing\"", &format!("\"state\":\"{state}\""));
        let now = now();
        let record = Record {
            offset,
            timestamp: Some(Timestamp(now.wall.0 - age * SECOND)),
            key: None,
            value: Some(value.as_bytes()),
            headers: &[],
        };
        desk.take(0, &record, now);
    }

    /// Everything that is due is taken by Alertmanager.
    fn send(desk: &mut Alertmanager, now: Instant) -> Vec<String> {
        let due: Vec<String> = desk.due(now).into_iter().map(|(_, id)| id).collect();
        due.iter().for_each(|id| desk.sent(0, id, now, false));
        desk.recount();
        due
    }

    fn settled(desk: &Alertmanager) -> Option<(u64, String)> {
        desk.settled(0, None).map(|position| (position.offset, position.note))
    }

    #[test]
    fn the_note_is_the_oldest_revision_still_live_and_a_restart_begins_there() {
        let (mut first, start) = desk(None);
        assert_eq!(start, 0);
        take(&mut first, 0, "a", 1, "firing", 0);
        take(&mut first, 1, "b", 1, "firing", 0);
        take(&mut first, 2, "a", 2, "updated", 0);
        take(&mut first, 3, "c", 1, "firing", 0);
        first.at_end(0, 4);
        assert_eq!(settled(&first), None, "nothing has been sent");
        assert_eq!(send(&mut first, Instant::now()), ["a", "b", "c"]);
        assert_eq!(settled(&first), Some((4, "1".into())), "b is the oldest");

        let (mut second, start) = desk(Some((4, "1")));
        assert_eq!(start, 1);
        take(&mut second, 1, "b", 1, "firing", 0);
        take(&mut second, 2, "a", 2, "updated", 0);
        take(&mut second, 3, "c", 1, "firing", 0);
        assert!(second.due(Instant::now()).is_empty(), "one of them may be resolved further on");
        second.at_end(0, 4);
        assert_eq!(send(&mut second, Instant::now()), ["a", "b", "c"]);
    }

    #[test]
    fn without_a_note_the_whole_partition_is_read() {
        assert_eq!(desk(Some((9, ""))).1, 0);
        assert_eq!(desk(Some((9, "set by hand"))).1, 0);
        assert_eq!(desk(Some((9, "12"))).1, 9, "never beyond the position");
    }

    #[test]
    fn what_fired_and_was_resolved_in_the_past_is_never_shown_as_firing() {
        let (mut desk, _) = desk(None);
        take(&mut desk, 0, "a", 1, "firing", 7200);
        take(&mut desk, 1, "b", 1, "firing", 7200);
        assert!(send(&mut desk, Instant::now()).is_empty());
        take(&mut desk, 2, "a", 2, "resolved", 3600);
        // a resolved one need not wait for the end
        assert_eq!(send(&mut desk, Instant::now()), ["a"]);
        assert_eq!(settled(&desk), None, "b waits");
        desk.at_end(0, 3);
        assert_eq!(send(&mut desk, Instant::now()), ["b"]);
        assert_eq!(settled(&desk), Some((3, "1".into())));
    }

    #[test]
    fn live_alerts_are_sent_again_for_ever_and_resolved_ones_for_a_quarter_of_an_hour() {
        let (mut desk, _) = desk(None);
        desk.at_end(0, 0);
        take(&mut desk, 0, "a", 1, "firing", 0);
        take(&mut desk, 1, "b", 2, "resolved", 0);
        let start = Instant::now();
        let mut sent = [0, 0];
        for minute in 0..60 {
            for id in send(&mut desk, start + Duration::from_secs(60 * minute)) {
                sent[usize::from(id == "b")] += 1;
            }
        }
        assert_eq!(sent, [60, 16]);
        assert_eq!(desk.kept, 1);
    }

    #[test]
    fn after_a_restart_a_resolved_alert_is_repeated_for_what_is_left_of_its_time() {
        let (mut desk, _) = desk(Some((2, "0")));
        take(&mut desk, 0, "a", 2, "resolved", 16 * 60);
        take(&mut desk, 1, "b", 2, "resolved", 60);
        desk.at_end(0, 2);
        assert_eq!(send(&mut desk, Instant::now()), ["b"]);
    }

    #[test]
    fn a_long_history_of_resolved_alerts_is_sent_as_it_is_read() {
        let (mut desk, _) = desk(None);
        for offset in 0..1024 {
            assert!(!desk.is_full(), "{offset}");
            take(&mut desk, offset, &format!("a{offset}"), 2, "resolved", 3600);
        }
        assert!(desk.is_full(), "nothing more is read before some are sent");
        assert_eq!(send(&mut desk, Instant::now()).len(), BATCH);
        assert!(!desk.is_full());
    }

    #[test]
    fn an_older_revision_does_not_replace_a_newer_one() {
        let (mut desk, _) = desk(None);
        desk.at_end(0, 0);
        take(&mut desk, 0, "a", 3, "resolved", 0);
        take(&mut desk, 1, "a", 2, "updated", 0);
        send(&mut desk, Instant::now());
        assert_eq!(desk.books[0].live["a"].notice.revision, 3);
        assert_eq!(settled(&desk), Some((2, "0".into())));
    }

    #[test]
    fn what_is_beyond_the_limit_is_sent_once_and_holds_up_nothing() {
        let (mut desk, _) = desk(None);
        desk.at_end(0, 0);
        take(&mut desk, 0, "a", 1, "firing", 0);
        desk.kept = KEPT_LIMIT;
        take(&mut desk, 1, "b", 1, "firing", 0);
        assert_eq!(send(&mut desk, Instant::now()), ["a", "b"]);
        assert_eq!(desk.kept, KEPT_LIMIT);
        assert!(!desk.books[0].live.contains_key("b"));
        assert_eq!(settled(&desk), Some((2, "0".into())));
    }
}
