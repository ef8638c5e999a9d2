//! Writes files of records: the mirror of the reader, for `simulate` and for tests.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::{Compression, Format, by_name};
use crate::error::Fatal;

/// Fast to write; usage shrinks six-fold all the same.
const ZSTD_LEVEL: i32 = 1;

/// A file of records being written. Without `finish` it may end in the middle.
pub struct RecordWriter {
    path: PathBuf,
    format: Format,
    sink: Sink,
}

impl std::fmt::Debug for RecordWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecordWriter").field("path", &self.path).finish_non_exhaustive()
    }
}

enum Sink {
    Plain(BufWriter<File>),
    Gzip(BufWriter<flate2::write::GzEncoder<File>>),
    Zstd(BufWriter<zstd::stream::write::Encoder<'static, File>>),
}

impl Sink {
    fn as_write(&mut self) -> &mut dyn Write {
        match self {
            Self::Plain(sink) => sink,
            Self::Gzip(sink) => sink,
            Self::Zstd(sink) => sink,
        }
    }
}

impl RecordWriter {
    /// Creates or replaces a file; format and compression follow from its name.
    pub fn create(path: &Path) -> Result<Self, Fatal> {
        let (format, compression) = by_name(path);
        let format = match format {
            Some(format @ (Format::Lines | Format::Delimited)) => format,
            Some(Format::Parquet) | None => {
                return Err(Fatal::Config(format!(
                    "{}: the name must end in .ndjson, .jsonl, .json or .pb, .bin, .binpb, \
                     .delimited, with .gz or .zst after it when compressed",
                    path.display()
                )));
            }
        };
        let refuse = |error: &io::Error| {
            Fatal::Input(format!("{}: cannot be written: {error}", path.display()))
        };
        let file = File::create(path).map_err(|error| refuse(&error))?;
        let sink = match compression {
            None | Some(Compression::None) => Sink::Plain(BufWriter::with_capacity(1 << 20, file)),
            Some(Compression::Gzip) => Sink::Gzip(BufWriter::with_capacity(
                1 << 18,
                flate2::write::GzEncoder::new(file, flate2::Compression::fast()),
            )),
            Some(Compression::Zstd) => {
                let encoder = zstd::stream::write::Encoder::new(file, ZSTD_LEVEL)
                    .map_err(|error| refuse(&error))?;
                Sink::Zstd(BufWriter::with_capacity(1 << 18, encoder))
            }
        };
        Ok(Self { path: path.to_owned(), format, sink })
    }

    pub fn format(&self) -> Format {
        self.format
    }

    /// Appends one record: in text a line without its end.
    pub fn write(&mut self, value: &[u8]) -> Result<(), Fatal> {
        let sink = self.sink.as_write();
        let written = match self.format {
            Format::Lines => sink.write_all(value).and_then(|()| sink.write_all(b"\n")),
            Format::Delimited | Format::Parquet => {
                let mut length = [0; super::VARINT_LIMIT];
                let width = encode_varint(value.len() as u64, &mut length);
                sink.write_all(&length[..width]).and_then(|()| sink.write_all(value))
            }
        };
        written.map_err(|error| self.failed(&error))
    }

    /// Completes the file on disk.
    pub fn finish(self) -> Result<(), Fatal> {
        let path = self.path;
        let finished = match self.sink {
            Sink::Plain(sink) => sink.into_inner().map_err(io::IntoInnerError::into_error),
            Sink::Gzip(sink) => sink
                .into_inner()
                .map_err(io::IntoInnerError::into_error)
                .and_then(flate2::write::GzEncoder::finish),
            Sink::Zstd(sink) => sink
                .into_inner()
                .map_err(io::IntoInnerError::into_error)
                .and_then(zstd::stream::write::Encoder::finish),
        };
        match finished {
            Ok(_) => Ok(()),
            Err(error) => {
                Err(Fatal::Input(format!("{}: cannot be written: {error}", path.display())))
            }
        }
    }

    fn failed(&self, error: &io::Error) -> Fatal {
        Fatal::Input(format!("{}: cannot be written: {error}", self.path.display()))
    }
}

/// Writes `value` as a varint and says how many bytes it has.
pub(crate) fn encode_varint(mut value: u64, bytes: &mut [u8; super::VARINT_LIMIT]) -> usize {
    let mut width = 0;
    while value >= 0x80 {
        bytes[width] = u8::try_from(value & 0x7f).expect("seven bits") | 0x80;
        value >>= 7;
        width += 1;
    }
    bytes[width] = u8::try_from(value).expect("below 0x80");
    width + 1
}
