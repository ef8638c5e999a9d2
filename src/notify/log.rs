//! Targets that are told of every revision, in the order of the topic: the webhook and OCSF.
//!
//! One delivery at a time to the webhook, what was read together to the OCSF topic. A revision that
//! the target never takes is logged, counted and passed over; any other trouble stops the queue, so
//! that the order of a key is kept.

use std::collections::VecDeque;

use super::courier::{Desk, Now};
use super::http::Failure;
use super::notice::{Form, Notice};
use super::ocsf::Ocsf;
use super::webhook::Webhook;
use crate::detector::event::Record;
use crate::kafka::subscriber::{Given, Position};
use crate::metrics::{self, Target, Undelivered};

/// A record that is an alert revision.
#[derive(Debug, Clone)]
pub(crate) struct Delivery {
    pub(crate) notice: Notice,
    pub(crate) form: Form,
    pub(crate) key: Vec<u8>,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) value: Vec<u8>,
}

impl Delivery {
    /// Reads a record; one that is no alert is logged and counted.
    pub(crate) fn read(target: Target, record: &Record<'_>) -> Option<Self> {
        match Notice::read(record) {
            Ok((notice, form)) => {
                let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
                let headers = record.headers.iter();
                Some(Self {
                    notice,
                    form,
                    key: record.key.unwrap_or_default().to_vec(),
                    headers: headers
                        .filter_map(|header| Some((header.name.to_owned(), text(header.value?))))
                        .collect(),
                    value: record.value.unwrap_or_default().to_vec(),
                })
            }
            Err(detail) => {
                metrics::not_notified(target, Undelivered::Unreadable);
                let (target, offset) = (target.name(), record.offset);
                tracing::error!(target_name = target, offset, detail, "no alert: passed over");
                None
            }
        }
    }
}

/// Who is told.
pub(crate) enum Addressee {
    Webhook(Webhook),
    Ocsf(Ocsf),
}

struct Item {
    number: usize,
    offset: u64,
    /// `None`: nothing to say, but the position moves.
    delivery: Option<Delivery>,
}

pub(crate) struct Log {
    addressee: Addressee,
    /// As much as was read at once.
    queue: VecDeque<Item>,
    /// The next offset to deliver, by partition.
    positions: Vec<u64>,
}

impl Log {
    pub(crate) const fn new(addressee: Addressee) -> Self {
        Self { addressee, queue: VecDeque::new(), positions: Vec::new() }
    }

    fn settle(&mut self, count: usize) {
        for item in self.queue.drain(..count) {
            self.positions[item.number] = item.offset + 1;
        }
    }
}

impl Desk for Log {
    fn target(&self) -> Target {
        match self.addressee {
            Addressee::Webhook(_) => Target::Webhook,
            Addressee::Ocsf(_) => Target::Ocsf,
        }
    }

    fn begin(&mut self, given: &Given) -> u64 {
        let start = given.committed.as_ref().map_or(given.low, |position| position.offset);
        if start < given.low {
            let records = given.low - start;
            let (topic, partition) = (&given.partition.topic, given.partition.partition);
            let target = self.target().name();
            tracing::error!(
                target_name = target,
                topic,
                partition,
                records,
                "removed from the topic before the target was told"
            );
        }
        self.positions.push(start.max(given.low));
        start
    }

    fn take(&mut self, number: usize, record: &Record<'_>, _now: Now) {
        let delivery = Delivery::read(self.target(), record);
        self.queue.push_back(Item { number, offset: record.offset, delivery });
    }

    fn at_end(&mut self, number: usize, offset: u64) {
        if !self.queue.iter().any(|item| item.number == number) {
            let position = &mut self.positions[number];
            *position = offset.max(*position);
        }
    }

    fn forget(&mut self) {
        self.queue.clear();
        self.positions.clear();
        if let Addressee::Ocsf(ocsf) = &mut self.addressee {
            ocsf.forget();
        }
    }

    fn is_full(&self) -> bool {
        !self.queue.is_empty()
    }

    fn is_due(&self, _now: Now) -> bool {
        !self.queue.is_empty()
    }

    fn deliver(&mut self, now: Now) -> Result<(), Failure> {
        let Some(first) = self.queue.front() else { return Ok(()) };
        match &mut self.addressee {
            Addressee::Webhook(webhook) => {
                if let Some(delivery) = &first.delivery {
                    match webhook.post(delivery, now.wall) {
                        Ok(()) => metrics::notified(Target::Webhook, 1),
                        Err(Failure::Refused(answer)) => {
                            refused(Target::Webhook, &delivery.notice, &answer);
                        }
                        Err(again @ Failure::Again(_)) => return Err(again),
                    }
                }
                self.settle(1);
            }
            Addressee::Ocsf(ocsf) => {
                let deliveries: Vec<&Delivery> =
                    self.queue.iter().filter_map(|item| item.delivery.as_ref()).collect();
                ocsf.write(&deliveries)?;
                metrics::notified(Target::Ocsf, deliveries.len());
                self.settle(self.queue.len());
            }
        }
        Ok(())
    }

    fn settled(&self, number: usize, known: Option<u64>) -> Option<Position> {
        let offset = self.positions[number];
        known.is_none_or(|known| known < offset).then(|| Position { offset, note: String::new() })
    }

    fn remaining(&self) -> u32 {
        0
    }
}

/// A revision that the target takes never: somebody must look why.
pub(crate) fn refused(target: Target, notice: &Notice, answer: &str) {
    metrics::not_notified(target, Undelivered::Refused);
    tracing::error!(
        target_name = target.name(),
        id = notice.id(),
        answer,
        "refused: passed over; it stays in the alert topic"
    );
}
