//! Files of records: NDJSON, length-delimited protobuf and Parquet, plain or compressed.
//!
//! A file is one partition: its records come in order and are numbered from 1, by line in text.
//! Records are lent from one buffer, so memory is bounded by the largest record whatever a
//! compressed file unpacks to. Nothing is decoded here: that is `detector::decode`'s.

mod parquet;
mod writer;

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::Fatal;

pub use self::writer::RecordWriter;

/// No record is larger: a damaged length or a file of another kind, not usage.
pub const RECORD_LIMIT: usize = 64 << 20;
/// Bytes asked of a file at a time.
const CHUNK: usize = 1 << 20;
/// A varint of a length below 2^64 has at most this many bytes.
const VARINT_LIMIT: usize = 10;

/// One record, lent until the next call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileRecord<'a> {
    /// Line of a text file, record of any other, from 1.
    pub number: u64,
    pub value: &'a [u8],
    /// Text as it stands in the file; a row of a Parquet file is written as JSON, but is no line.
    pub text: bool,
}

/// How the records of a file are told apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One JSON value a line; blank lines count as lines and hold no record.
    Lines,
    /// Protobuf messages, each after its length as a varint.
    Delimited,
    Parquet,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Compression {
    None,
    Gzip,
    Zstd,
}

/// A file read record by record.
pub struct RecordFile {
    path: PathBuf,
    read: Arc<AtomicU64>,
    total: u64,
    body: Body,
}

impl std::fmt::Debug for RecordFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordFile").field("path", &self.path).finish_non_exhaustive()
    }
}

enum Body {
    Lines(Stream),
    Delimited(Stream),
    Parquet(Box<parquet::Rows>),
}

impl RecordFile {
    /// Opens a file. The format follows from the name, after `.gz` or `.zst` is taken off, else
    /// from the first bytes.
    pub fn open(path: &Path) -> Result<Self, Fatal> {
        let refuse = |error: &dyn std::fmt::Display| {
            Fatal::Input(format!("{}: cannot be opened: {error}", path.display()))
        };
        let file = File::open(path).map_err(|error| refuse(&error))?;
        let metadata = file.metadata().map_err(|error| refuse(&error))?;
        if metadata.is_dir() {
            return Err(refuse(&"it is a directory, name a file of records"));
        }
        let total = metadata.len();
        let read = Arc::new(AtomicU64::new(0));
        let (format, compression) = by_name(path);
        if format == Some(Format::Parquet) {
            return Self::open_parquet(path, file, compression, total, read);
        }

        let counted = Counted { file, read: Arc::clone(&read) };
        let mut raw = BufReader::with_capacity(CHUNK, counted);
        let first = raw.fill_buf().map_err(|error| refuse(&error))?;
        let compression = compression.unwrap_or_else(|| sniff_compression(first));
        let format = match (format, compression) {
            (None, Compression::None) if first.starts_with(b"PAR1") => {
                let file = File::open(path).map_err(|error| refuse(&error))?;
                return Self::open_parquet(path, file, None, total, read);
            }
            (format, _) => format,
        };
        let source: Box<dyn Read + Send> = match compression {
            Compression::None => Box::new(raw),
            Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(raw)),
            Compression::Zstd => Box::new(
                zstd::stream::read::Decoder::with_buffer(raw).map_err(|error| refuse(&error))?,
            ),
        };
        let mut stream = Stream::new(source, compression);
        let format = match format {
            Some(format) => format,
            None => sniff_format(stream.peek(2).map_err(|problem| problem.at(path, "byte 0"))?),
        };
        let body = match format {
            Format::Lines => Body::Lines(stream),
            Format::Delimited => Body::Delimited(stream),
            Format::Parquet => {
                return Err(refuse(&"a compressed Parquet file cannot be read: unpack it first"));
            }
        };
        Ok(Self { path: path.to_owned(), read, total, body })
    }

    fn open_parquet(
        path: &Path,
        file: File,
        compression: Option<Compression>,
        total: u64,
        read: Arc<AtomicU64>,
    ) -> Result<Self, Fatal> {
        if matches!(compression, Some(Compression::Gzip | Compression::Zstd)) {
            return Err(Fatal::Input(format!(
                "{}: a compressed Parquet file cannot be read: unpack it first (Parquet \
                 compresses its own pages)",
                path.display()
            )));
        }
        let rows = parquet::Rows::open(path, file)?;
        Ok(Self { path: path.to_owned(), read, total, body: Body::Parquet(Box::new(rows)) })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn format(&self) -> Format {
        match &self.body {
            Body::Lines(_) => Format::Lines,
            Body::Delimited(_) => Format::Delimited,
            Body::Parquet(_) => Format::Parquet,
        }
    }

    /// The next record, or `None` at a clean end.
    #[expect(clippy::should_implement_trait, reason = "an iterator cannot lend from itself")]
    pub fn next(&mut self) -> Result<Option<FileRecord<'_>>, Fatal> {
        match &mut self.body {
            Body::Lines(stream) => {
                let at = stream.number + 1;
                stream.next_line().map_err(|problem| problem.at(&self.path, &format!("line {at}")))
            }
            Body::Delimited(stream) => {
                let (at, byte) = (stream.number + 1, stream.taken);
                stream.next_delimited().map_err(|problem| {
                    let unpacked = if problem.compressed { " unpacked" } else { "" };
                    problem.at(&self.path, &format!("record {at} at{unpacked} byte {byte}"))
                })
            }
            Body::Parquet(rows) => {
                // rows are spread evenly enough over the file for a progress bar
                self.read.store(rows.share_of(self.total), Ordering::Relaxed);
                rows.next(&self.path)
            }
        }
    }

    /// Bytes of the file read so far, as they lie on disk, of `total`.
    pub fn position(&self) -> u64 {
        self.read.load(Ordering::Relaxed)
    }

    /// The file's size in bytes.
    pub fn total(&self) -> u64 {
        self.total
    }
}

/// What the name says of format and compression.
fn by_name(path: &Path) -> (Option<Format>, Option<Compression>) {
    let extension =
        |path: &Path| path.extension().and_then(|text| text.to_str()).map(str::to_ascii_lowercase);
    let outer = extension(path);
    let (compression, inner) = match outer.as_deref() {
        Some("gz") => {
            (Some(Compression::Gzip), extension(Path::new(path.file_stem().unwrap_or_default())))
        }
        Some("zst" | "zstd") => {
            (Some(Compression::Zstd), extension(Path::new(path.file_stem().unwrap_or_default())))
        }
        _ => (None, outer),
    };
    let format = match inner.as_deref() {
        Some("ndjson" | "jsonl" | "json") => Some(Format::Lines),
        Some("pb" | "bin" | "binpb" | "delimited") => Some(Format::Delimited),
        Some("parquet") => Some(Format::Parquet),
        _ => None,
    };
    // a named format without .gz or .zst is plain: nothing is guessed from its bytes
    let plain = compression.is_none() && format.is_some();
    (format, if plain { Some(Compression::None) } else { compression })
}

fn sniff_compression(first: &[u8]) -> Compression {
    if first.starts_with(&[0x1f, 0x8b]) {
        Compression::Gzip
    } else if first.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Compression::Zstd
    } else {
        Compression::None
    }
}

/// Text begins with a brace, white space or a byte order mark. A message of 123 bytes has the
/// length `{`, but then comes the tag of its first field, 0x0a: no line of JSON is `{` alone.
fn sniff_format(first: &[u8]) -> Format {
    match first {
        [b'{', 0x0a, ..] => Format::Delimited,
        [] | [b'{' | b'[' | b' ' | b'\t' | b'\r' | b'\n' | 0xef, ..] => Format::Lines,
        _ => Format::Delimited,
    }
}

/// A file that counts what is read from it.
struct Counted {
    file: File,
    read: Arc<AtomicU64>,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.read.fetch_add(count as u64, Ordering::Relaxed);
        Ok(count)
    }
}

/// What is wrong with a stream, before it is known where.
struct Problem {
    detail: String,
    compressed: bool,
}

impl Problem {
    fn at(&self, path: &Path, place: &str) -> Fatal {
        Fatal::Input(format!("{}: {place}: {}", path.display(), self.detail))
    }
}

/// The unpacked bytes of a file, seen through one buffer that records are lent from.
struct Stream {
    source: Box<dyn Read + Send>,
    compression: Compression,
    buffer: Vec<u8>,
    /// The bytes not yet lent are `buffer[start..end]`.
    start: usize,
    end: usize,
    at_end: bool,
    /// Lines or records lent or skipped.
    number: u64,
    /// Unpacked bytes lent or skipped.
    taken: u64,
}

impl Stream {
    fn new(source: Box<dyn Read + Send>, compression: Compression) -> Self {
        let buffer = vec![0; CHUNK];
        Self { source, compression, buffer, start: 0, end: 0, at_end: false, number: 0, taken: 0 }
    }

    fn problem(&self, detail: impl Into<String>) -> Problem {
        Problem { detail: detail.into(), compressed: self.compression != Compression::None }
    }

    /// At least `count` of the next bytes, or what is left.
    fn peek(&mut self, count: usize) -> Result<&[u8], Problem> {
        while self.end - self.start < count && self.fill()? {}
        Ok(&self.buffer[self.start..self.end])
    }

    /// Reads on; false at the end.
    fn fill(&mut self) -> Result<bool, Problem> {
        if self.at_end {
            return Ok(false);
        }
        if self.end == self.buffer.len() {
            self.make_room();
        }
        loop {
            match self.source.read(&mut self.buffer[self.end..]) {
                Ok(0) => {
                    self.at_end = true;
                    return Ok(false);
                }
                Ok(count) => {
                    self.end += count;
                    return Ok(true);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.unreadable(&error)),
            }
        }
    }

    /// Moves what is left to the front; a record larger than the buffer doubles it, up to its
    /// limit and the two bytes of a line end.
    fn make_room(&mut self) {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        } else {
            let larger = (self.buffer.len() * 2).min(RECORD_LIMIT + VARINT_LIMIT + 2);
            self.buffer.resize(larger.max(self.buffer.len() + 1), 0);
        }
    }

    fn unreadable(&self, error: &io::Error) -> Problem {
        let kind = match self.compression {
            Compression::None => return self.problem(format!("cannot be read: {error}")),
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        };
        let what = if error.kind() == io::ErrorKind::UnexpectedEof
            || error.to_string().contains("incomplete frame")
        {
            "ends in the middle: the file is truncated, fetch or write it again"
        } else {
            "is corrupt: fetch or write the file again"
        };
        self.problem(format!("the {kind} stream {what} ({error})"))
    }

    fn take(&mut self, count: usize) -> std::ops::Range<usize> {
        let range = self.start..self.start + count;
        self.start += count;
        self.taken += count as u64;
        range
    }

    fn next_line(&mut self) -> Result<Option<FileRecord<'_>>, Problem> {
        loop {
            let Some(range) = self.take_line()? else { return Ok(None) };
            self.number += 1;
            let mut range = range;
            if self.number == 1 && self.buffer[range.clone()].starts_with(b"\xef\xbb\xbf") {
                range.start += 3;
            }
            if !self.buffer[range.clone()].trim_ascii().is_empty() {
                let value = self.buffer[range].trim_ascii_end();
                return Ok(Some(FileRecord { number: self.number, value, text: true }));
            }
        }
    }

    /// The next line without its `\n`; the last one needs none.
    fn take_line(&mut self) -> Result<Option<std::ops::Range<usize>>, Problem> {
        let mut searched = 0;
        loop {
            let unseen = &self.buffer[self.start + searched..self.end];
            if let Some(found) = memchr::memchr(b'\n', unseen) {
                let line = self.take(searched + found);
                self.take(1);
                return Ok(Some(line));
            }
            searched = self.end - self.start;
            if searched > RECORD_LIMIT {
                return Err(self.problem(format!(
                    "the line is longer than {RECORD_LIMIT} bytes: NDJSON has one event a line"
                )));
            }
            if !self.fill()? {
                return Ok((searched > 0).then(|| self.take(searched)));
            }
        }
    }

    fn next_delimited(&mut self) -> Result<Option<FileRecord<'_>>, Problem> {
        let ahead = self.peek(VARINT_LIMIT)?;
        if ahead.is_empty() {
            return Ok(None);
        }
        let Some((length, width)) = varint(ahead) else {
            let detail = if ahead.len() < VARINT_LIMIT {
                "the file ends within a record's length: it is truncated"
            } else {
                "no length (a varint) stands here: length-delimited protobuf is wanted"
            };
            return Err(self.problem(detail));
        };
        let size = usize::try_from(length).unwrap_or(usize::MAX);
        if size > RECORD_LIMIT {
            return Err(self.problem(format!(
                "a record of {length} bytes is over the limit of {RECORD_LIMIT}: the file is \
                 corrupt, or not length-delimited protobuf"
            )));
        }
        let available = self.peek(width + size)?.len();
        if available < width + size {
            return Err(self.problem(format!(
                "the file ends after {} of the record's {size} bytes: it is truncated",
                available - width
            )));
        }
        self.take(width);
        let range = self.take(size);
        self.number += 1;
        Ok(Some(FileRecord { number: self.number, value: &self.buffer[range], text: false }))
    }
}

/// The varint at the front and how many bytes it has; `None` when it does not end.
fn varint(bytes: &[u8]) -> Option<(u64, usize)> {
    let mut value = 0_u64;
    for (index, byte) in bytes.iter().take(VARINT_LIMIT).enumerate() {
        let part = u64::from(byte & 0x7f);
        value |= part << (7 * index);
        if byte & 0x80 == 0 {
            return Some((value, index + 1));
        }
    }
    None
}
