//! Job traces as metering events: a job becomes one usage event for each metering interval that
//! it overlaps.
//!
//! `account,job,accelerator,count,start,end[,class]`, with a header; times are Unix seconds in
//! decimal, read exactly. Intervals are aligned to multiples of their length since 1970. Events
//! come in order of their end, which is their `time`; a blank accelerator is the one assumed.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use crate::detector::event::{NAME_LIMIT, QUANTITY_LIMIT, UsageEvent};
use crate::detector::time::{SECOND_NS, Span, Timestamp};
use crate::error::Fatal;
use crate::proto::Account;

/// A whole trace, in memory: tens of thousands of jobs.
#[derive(Debug, Clone, PartialEq)]
pub struct Trace {
    /// The file's name: the events' source.
    pub source: String,
    /// In order of id.
    pub accounts: Vec<String>,
    /// In order of start, then line.
    jobs: Vec<Job>,
    /// Jobs whose accelerator was assumed.
    pub assumed: usize,
}

#[derive(Debug, Clone, PartialEq)]
struct Job {
    line: u64,
    account: String,
    /// Unique in the trace.
    name: String,
    accelerator: String,
    count: f64,
    start: Timestamp,
    end: Timestamp,
}

/// Where the columns stand.
struct Columns {
    account: usize,
    job: usize,
    accelerator: usize,
    count: usize,
    start: usize,
    end: usize,
}

impl Trace {
    /// Reads a CSV file, plain or `.gz` or `.zst`.
    pub fn open(path: &Path, assumed: &str) -> Result<Self, Fatal> {
        let refuse = |error: &dyn std::fmt::Display| {
            Fatal::Input(format!("{}: cannot be read: {error}", path.display()))
        };
        let file = BufReader::new(File::open(path).map_err(|error| refuse(&error))?);
        let text: Box<dyn Read> = match path.extension().and_then(|text| text.to_str()) {
            Some("gz") => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
            Some("zst") => Box::new(
                zstd::stream::read::Decoder::with_buffer(file).map_err(|error| refuse(&error))?,
            ),
            Some(_) | None => Box::new(file),
        };
        let source = path.file_name().unwrap_or_default().to_string_lossy();
        Self::read(text, &source, assumed)
            .map_err(|detail| Fatal::Input(format!("{}: {detail}", path.display())))
    }

    /// Reads CSV text; the error names the line.
    pub fn read(text: impl Read, source: &str, assumed: &str) -> Result<Self, String> {
        let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text);
        let header = reader.headers().map_err(|error| format!("the header: {error}"))?.clone();
        let columns = Columns::find(&header)?;
        let mut jobs = Vec::new();
        let mut names = HashSet::new();
        let mut assumed_jobs = 0;
        for row in reader.records() {
            let row = row.map_err(|error| error.to_string())?;
            let line = row.position().map_or(0, csv::Position::line);
            let mut job =
                columns.job(&row, line).map_err(|detail| format!("line {line}: {detail}"))?;
            if job.accelerator.is_empty() {
                assumed.clone_into(&mut job.accelerator);
                assumed_jobs += 1;
            }
            if job.name.is_empty() || !names.insert(job.name.clone()) {
                job.name = format!("{}#{line}", job.name);
            }
            jobs.push(job);
        }
        jobs.sort_by_key(|job| (job.start, job.line));
        let mut accounts: Vec<String> = jobs.iter().map(|job| job.account.clone()).collect();
        accounts.sort_unstable();
        accounts.dedup();
        Ok(Self { source: source.to_owned(), accounts, jobs, assumed: assumed_jobs })
    }

    pub fn jobs(&self) -> usize {
        self.jobs.len()
    }

    /// An entry for each account, all of one country and each its own owner.
    pub fn directory(&self, country: &str) -> Vec<Account> {
        let updated = self.jobs.first().map_or(Timestamp::EARLIEST, |job| job.start);
        let entry = |account_id: &String| Account {
            account_id: account_id.clone(),
            country: country.to_owned(),
            updated_unix_nano: updated.0,
            ..Account::default()
        };
        self.accounts.iter().map(entry).collect()
    }

    /// The events of all jobs, metered every `interval`, in order of time.
    pub fn events(&self, interval: Span) -> Events<'_> {
        Events {
            trace: self,
            interval,
            next_job: 0,
            running: Vec::new(),
            tick: Timestamp(0),
            batch: Vec::new(),
            cursor: 0,
        }
    }
}

impl Columns {
    fn find(header: &csv::StringRecord) -> Result<Self, String> {
        let place = |name: &str| {
            header.iter().position(|column| column == name).ok_or_else(|| {
                format!(
                    "line 1: no column {name}; wanted account,job,accelerator,count,start,end\
                     [,class]"
                )
            })
        };
        Ok(Self {
            account: place("account")?,
            job: place("job")?,
            accelerator: place("accelerator")?,
            count: place("count")?,
            start: place("start")?,
            end: place("end")?,
        })
    }

    fn job(&self, row: &csv::StringRecord, line: u64) -> Result<Job, String> {
        let text = |column: usize| row.get(column).unwrap_or_default();
        let (account, name) = (text(self.account), text(self.job));
        if account.is_empty() {
            return Err("account is empty".to_owned());
        }
        // an interval's number and a row's are put behind the job's name
        for (column, value) in [("account", account), ("job", name)] {
            if value.len() > NAME_LIMIT - 40 {
                let (length, limit) = (value.len(), NAME_LIMIT - 40);
                return Err(format!("{column} has {length} bytes, at most {limit}"));
            }
        }
        let count: f64 = text(self.count)
            .parse()
            .map_err(|_| format!("count {:?} is no number", text(self.count)))?;
        if !(count > 0.0 && count <= QUANTITY_LIMIT) {
            return Err(format!("count {count} must be above 0 and at most 1e7"));
        }
        let start = instant("start", text(self.start))?;
        let end = instant("end", text(self.end))?;
        if end <= start {
            return Err(format!("end {} is not after start {}", text(self.end), text(self.start)));
        }
        Ok(Job {
            line,
            account: account.to_owned(),
            name: name.to_owned(),
            accelerator: text(self.accelerator).to_owned(),
            count,
            start,
            end,
        })
    }
}

/// Unix seconds in decimal, exact to the nanosecond.
fn instant(column: &str, text: &str) -> Result<Timestamp, String> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let (kept, rest) = fraction.split_at_checked(9).unwrap_or((fraction, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    let nanoseconds = (digits(whole) && digits(kept) && rest.bytes().all(|byte| byte == b'0'))
        .then(|| {
            let seconds: u64 = whole.parse().ok()?;
            let nanoseconds: u64 = format!("{kept:0<9}").parse().ok()?;
            seconds.checked_mul(SECOND_NS)?.checked_add(nanoseconds)
        })
        .flatten();
    let Some(nanoseconds) = nanoseconds else {
        return Err(format!(
            "{column} {text:?} must be Unix seconds such as 1588291200 or 1696293563.157, with \
             at most nine decimals"
        ));
    };
    let instant = Timestamp(nanoseconds);
    if instant < Timestamp::EARLIEST || instant >= Timestamp::LATEST {
        return Err(format!("{column} {text} lies outside the years 2000 to 2499"));
    }
    Ok(instant)
}

/// The events of a trace, interval by interval.
#[derive(Debug)]
pub struct Events<'a> {
    trace: &'a Trace,
    interval: Span,
    next_job: usize,
    running: Vec<&'a Job>,
    /// The start of the next interval.
    tick: Timestamp,
    /// Pieces of the present interval, in order of their end.
    batch: Vec<(Timestamp, Timestamp, &'a Job)>,
    cursor: usize,
}

impl<'a> Events<'a> {
    /// Gathers the next interval in which any job runs.
    fn gather(&mut self) -> bool {
        self.batch.clear();
        self.cursor = 0;
        let jobs = &self.trace.jobs;
        if self.running.is_empty() {
            let Some(job) = jobs.get(self.next_job) else { return false };
            self.tick = job.start.floor(self.interval);
        }
        let (from, until) = (self.tick, self.tick.plus(self.interval));
        while let Some(job) = jobs.get(self.next_job).filter(|job| job.start < until) {
            self.running.push(job);
            self.next_job += 1;
        }
        for &job in &self.running {
            self.batch.push((job.start.max(from), job.end.min(until), job));
        }
        self.batch.sort_by_key(|&(_, end, job)| (end, job.line));
        self.running.retain(|job| job.end > until);
        self.tick = until;
        true
    }
}

impl<'a> Iterator for Events<'a> {
    type Item = UsageEvent<'a>;

    fn next(&mut self) -> Option<UsageEvent<'a>> {
        while self.cursor == self.batch.len() {
            if !self.gather() {
                return None;
            }
        }
        let (start, end, job) = self.batch[self.cursor];
        self.cursor += 1;
        let number = start.0 / self.interval.0;
        Some(UsageEvent {
            id: format!("{}/{number}", job.name).into(),
            source: self.trace.source.as_str().into(),
            account_id: job.account.as_str().into(),
            resource_id: job.name.as_str().into(),
            accelerator: job.accelerator.as_str().into(),
            quantity: job.count,
            start,
            end,
            time: end,
            ..UsageEvent::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "account,job,accelerator,count,start,end,class\n\
                         a,j1,,8,1588291200.5,1588292000.000000001,x\n\
                         b,j1,V100,0.5,1588291100,1588291200,y\n";

    fn trace() -> Trace {
        Trace::read(TRACE.as_bytes(), "t.csv", "nvidia-v100-pcie").expect("a sound trace")
    }

    #[test]
    fn a_job_has_one_event_in_each_aligned_interval_that_it_overlaps() {
        let trace = trace();
        let events: Vec<_> = trace.events(Span::seconds(300)).collect();
        let seen: Vec<_> = events
            .iter()
            .map(|event| (event.id.as_ref(), event.start.0, event.end.0, event.quantity))
            .collect();
        let s = SECOND_NS;
        let half = s / 2;
        assert_eq!(
            seen,
            vec![
                ("j1#3/5294303", 1_588_291_100 * s, 1_588_291_200 * s, 0.5),
                ("j1/5294304", 1_588_291_200 * s + half, 1_588_291_500 * s, 8.0),
                ("j1/5294305", 1_588_291_500 * s, 1_588_291_800 * s, 8.0),
                ("j1/5294306", 1_588_291_800 * s, 1_588_292_000 * s + 1, 8.0),
            ]
        );
        assert_eq!(events[1].accelerator, "nvidia-v100-pcie");
        assert_eq!(trace.assumed, 1);
        assert!(events.iter().all(|event| event.time == event.end));
    }

    #[test]
    fn events_come_in_order_of_time_and_cover_each_job_without_gap() {
        let trace = trace();
        let events: Vec<_> = trace.events(Span::seconds(60)).collect();
        assert!(events.is_sorted_by_key(|event| event.time));
        let covered: u64 = events.iter().map(|event| event.end.0 - event.start.0).sum();
        assert_eq!(covered, 100 * SECOND_NS + 799 * SECOND_NS + SECOND_NS / 2 + 1);
    }

    #[test]
    fn a_bad_row_is_refused_with_its_line_and_what_would_be_right() {
        let wrong = [
            ("a,j,,8,1588291200,1588291200,", "line 2: end 1588291200 is not after"),
            ("a,j,,x,1588291200,1588291201,", "line 2: count \"x\" is no number"),
            ("a,j,,-1,1588291200,1588291201,", "line 2: count -1 must be above 0"),
            (",j,,1,1588291200,1588291201,", "line 2: account is empty"),
            ("a,j,,1,1588291200,1.5e9,", "line 2: end \"1.5e9\" must be Unix seconds"),
            ("a,j,,1,5,6,", "line 2: start 5 lies outside the years 2000 to 2499"),
            ("a,j,,1", "line: 2"),
        ];
        for (row, expected) in wrong {
            let text = format!("account,job,accelerator,count,start,end,class\n{row}\n");
            let error = Trace::read(text.as_bytes(), "t.csv", "x").expect_err(row);
            assert!(error.contains(expected), "{error}");
        }
        let error = Trace::read("account,job\n".as_bytes(), "t.csv", "x").expect_err("no columns");
        assert!(error.contains("no column accelerator"), "{error}");
    }
}
