//! `flopwatch replay`: the production stages over files.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::config::Config;
use crate::detector::alert::Alert;
use crate::detector::cloudevent;
use crate::detector::decode::{decode_account, is_object_line};
use crate::detector::directory::AccountRecord;
use crate::detector::invalid::Reason;
use crate::detector::outbox::{DeadLetter, Tally};
use crate::detector::policy::Mode;
use crate::error::Fatal;
use crate::geoip::GeoIp;
use crate::record_file::{Format, RecordFile};
use crate::replay::{LedgerRow, Sink, Source, replay};

/// Run the production pipeline over files instead of Kafka.
///
/// Files are NDJSON, length-delimited protobuf or Parquet; NDJSON and protobuf may be compressed
/// (.gz, .zst). At the end of the input every sum is applied and every complete slice is judged.
/// An output file may be `-` for standard output; without any, the summary is printed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration file; without one every setting has its default.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Account directory; may be given more than once, read in order.
    #[arg(long, value_name = "FILE")]
    accounts: Vec<PathBuf>,
    /// Usage events: each file is one partition.
    #[arg(long, value_name = "FILE", required = true)]
    usage: Vec<PathBuf>,
    /// Alerts of live policies, a CloudEvent a line.
    #[arg(long, value_name = "FILE")]
    alerts: Option<PathBuf>,
    /// Alerts of shadow policies.
    #[arg(long, value_name = "FILE")]
    shadow_alerts: Option<PathBuf>,
    /// Refused records: reason, detail, file, line, value.
    #[arg(long, value_name = "FILE")]
    dead_letters: Option<PathBuf>,
    /// Every retained slice of the finest tier, by account, owner and country.
    #[arg(long, value_name = "FILE")]
    ledger: Option<PathBuf>,
    /// Counts of records and alerts.
    #[arg(long, value_name = "FILE")]
    summary: Option<PathBuf>,
}

/// What `--summary` writes: counts, by the names and in the order that the contract gives them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    pub read: u64,
    pub counted: u64,
    pub duplicate: u64,
    pub dead_letter: u64,
    pub late: u64,
    /// Of live policies.
    pub alerts: AlertCounts,
    /// By reason, as far as there are any.
    pub dead_letters: BTreeMap<&'static str, u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct AlertCounts {
    pub firing: u64,
    pub updated: u64,
    pub resolved: u64,
}

/// A line of `--dead-letters`.
#[derive(Debug, Serialize)]
struct DeadLetterLine<'a> {
    reason: &'static str,
    detail: &'a str,
    file: Cow<'a, str>,
    /// Line of a text file, record of any other, from 1.
    line: u64,
    value: Cow<'a, str>,
    /// How `value` stands for bytes that are no text.
    #[serde(skip_serializing_if = "Option::is_none")]
    encoding: Option<&'static str>,
}

pub fn execute(args: &Args) -> Result<(), Fatal> {
    let config = Config::load(args.config.as_deref())?;
    let accounts = read_accounts(&args.accounts, &config)?;
    let position = Arc::new(AtomicU64::new(0));
    let mut total = 0;
    let mut sources: Vec<Box<dyn Source>> = Vec::new();
    for path in &args.usage {
        let source = FileSource::open(path, Arc::clone(&position))?;
        total += source.file.total();
        sources.push(Box::new(source));
    }
    let mut files = Files {
        usage: &args.usage,
        alerts: Lines::create(args.alerts.as_deref())?,
        shadow_alerts: Lines::create(args.shadow_alerts.as_deref())?,
        dead_letters: Lines::create(args.dead_letters.as_deref())?,
        progress: progress_bar(total),
        position,
    };
    let mut ledger = Lines::create(args.ledger.as_deref())?;
    let outcome = replay(&config.rules, &config.policies, &accounts, sources, &mut files)?;
    files.finish()?;
    for row in &outcome.ledger {
        ledger.write::<LedgerRow>(row)?;
    }
    ledger.finish()?;
    write_summary(args, &outcome.tally)
}

/// Reads the account directory in the order of the files.
pub fn read_accounts(paths: &[PathBuf], config: &Config) -> Result<Vec<AccountRecord>, Fatal> {
    let geoip = config.geoip.as_deref().map(GeoIp::open).transpose()?;
    let mut accounts = Vec::new();
    for path in paths {
        let mut file = RecordFile::open(path)?;
        while let Some(record) = file.next()? {
            let refuse = |detail: &str| {
                let place = format!("{}:{}", path.display(), record.number);
                Fatal::Input(format!("{place}: this is no account: {detail}"))
            };
            if record.text && !is_object_line(record.value) {
                return Err(refuse("the line is no JSON object"));
            }
            let mut account = decode_account(None, Some(record.value))
                .map_err(|invalid| refuse(&invalid.detail))?;
            if let Some(geoip) = &geoip {
                geoip.locate(&mut account);
            }
            accounts.push(account);
        }
    }
    Ok(accounts)
}

/// A usage file as a source.
pub struct FileSource {
    file: RecordFile,
    /// Bytes read so far by all sources together.
    position: Arc<AtomicU64>,
    counted: u64,
}

impl FileSource {
    pub fn open(path: &Path, position: Arc<AtomicU64>) -> Result<Self, Fatal> {
        Ok(Self { file: RecordFile::open(path)?, position, counted: 0 })
    }
}

impl Source for FileSource {
    fn next(&mut self) -> Result<Option<(u64, &[u8])>, Fatal> {
        let position = self.file.position();
        if position != self.counted {
            self.position.fetch_add(position - self.counted, Ordering::Relaxed);
            self.counted = position;
        }
        Ok(self.file.next()?.map(|record| (record.number, record.value)))
    }

    fn is_text(&self) -> bool {
        self.file.format() == Format::Lines
    }

    fn place(&self, number: u64) -> String {
        format!("{}:{number}", self.file.path().display())
    }
}

struct Files<'a> {
    usage: &'a [PathBuf],
    alerts: Lines,
    shadow_alerts: Lines,
    dead_letters: Lines,
    progress: ProgressBar,
    position: Arc<AtomicU64>,
}

impl Sink for Files<'_> {
    fn alert(&mut self, alert: &Alert) -> Result<(), Fatal> {
        let file = match alert.policy.mode {
            Mode::Live => &mut self.alerts,
            Mode::Shadow | Mode::Off => &mut self.shadow_alerts,
        };
        file.write_line(&cloudevent::structured(alert).value)
    }

    fn dead_letter(&mut self, source: usize, letter: &DeadLetter) -> Result<(), Fatal> {
        let bytes = letter.value.as_deref().unwrap_or_default();
        let (value, encoding) = match std::str::from_utf8(bytes) {
            Ok(text) => (text.into(), None),
            Err(_) => (STANDARD.encode(bytes).into(), Some("base64")),
        };
        let line = DeadLetterLine {
            reason: letter.invalid.reason.name(),
            detail: &letter.invalid.detail,
            file: self.usage[source].to_string_lossy(),
            line: letter.offset,
            value,
            encoding,
        };
        self.dead_letters.write(&line)
    }

    fn progress(&mut self, tally: &Tally) {
        self.progress.set_position(self.position.load(Ordering::Relaxed));
        if !self.progress.is_hidden() {
            self.progress.set_message(format!(
                "{} events, {} dead letters, {} alerts firing",
                tally.read,
                tally.dead_letter_total(),
                tally.live.firing
            ));
        }
    }
}

impl Files<'_> {
    fn finish(self) -> Result<(), Fatal> {
        self.progress.finish_and_clear();
        self.alerts.finish()?;
        self.shadow_alerts.finish()?;
        self.dead_letters.finish()
    }
}

/// On a terminal; hidden elsewhere.
fn progress_bar(total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template(
        "{bar:30} {percent:>3}% {binary_bytes_per_sec} {elapsed}<{eta} {msg}",
    )
    .expect("the template is sound");
    ProgressBar::new(total).with_style(style)
}

fn write_summary(args: &Args, tally: &Tally) -> Result<(), Fatal> {
    let given = [&args.alerts, &args.shadow_alerts, &args.dead_letters, &args.ledger];
    let nothing_else = given.iter().all(|path| path.is_none());
    let path = match &args.summary {
        Some(path) => path.as_path(),
        None if nothing_else => Path::new("-"),
        None => return Ok(()),
    };
    let mut file = Lines::create(Some(path))?;
    file.write(&Summary::of(tally))?;
    file.finish()
}

impl Summary {
    pub fn of(tally: &Tally) -> Self {
        let counts = Reason::ALL.map(|reason| (reason.name(), tally.dead_letters[reason as usize]));
        Self {
            read: tally.read,
            counted: tally.counted,
            duplicate: tally.duplicate,
            dead_letter: tally.dead_letter_total(),
            late: tally.late,
            alerts: AlertCounts {
                firing: tally.live.firing,
                updated: tally.live.updated,
                resolved: tally.live.resolved,
            },
            dead_letters: counts.into_iter().filter(|(_, count)| *count > 0).collect(),
        }
    }
}

/// A file of JSON lines, or nowhere.
struct Lines(Option<(PathBuf, BufWriter<Box<dyn Write>>)>);

impl Lines {
    fn create(path: Option<&Path>) -> Result<Self, Fatal> {
        let Some(path) = path else { return Ok(Self(None)) };
        let writer: Box<dyn Write> = if path == Path::new("-") {
            Box::new(io::stdout())
        } else {
            let file = File::create(path).map_err(|error| {
                Fatal::Input(format!("{}: cannot be written: {error}", path.display()))
            })?;
            Box::new(file)
        };
        Ok(Self(Some((path.to_owned(), BufWriter::new(writer)))))
    }

    fn write<T: Serialize>(&mut self, value: &T) -> Result<(), Fatal> {
        if self.0.is_none() {
            return Ok(());
        }
        self.write_line(&serde_json::to_vec(value).expect("our own values are JSON"))
    }

    fn write_line(&mut self, line: &[u8]) -> Result<(), Fatal> {
        let Some((path, writer)) = &mut self.0 else { return Ok(()) };
        let written = writer.write_all(line).and_then(|()| writer.write_all(b"\n"));
        written.map_err(|error| unwritten(path, &error))
    }

    fn finish(self) -> Result<(), Fatal> {
        let Some((path, mut writer)) = self.0 else { return Ok(()) };
        writer.flush().map_err(|error| unwritten(&path, &error))
    }
}

fn unwritten(path: &Path, error: &io::Error) -> Fatal {
    Fatal::Input(format!("{}: writing failed: {error}", path.display()))
}
