//! Rows of a Parquet file as JSON objects of our field names, so that one decoder serves all.
//!
//! Columns keep their names; a struct becomes an object. What JSON has no type for comes out
//! exact: 64-bit integers in full, timestamps as RFC 3339, or as integer nanoseconds in a column
//! whose name ends in `_unix_nano`. Absent values are left out.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use parquet::basic::{ConvertedType, LogicalType, TimeUnit, Type as Physical};
use parquet::file::reader::{FileReader, SerializedFileReader};
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row};
use parquet::schema::types::SchemaDescriptor;

use super::{FileRecord, RECORD_LIMIT};
use crate::error::Fatal;

/// The rows of one file, one after the other.
pub(super) struct Rows {
    rows: RowIter<'static>,
    /// By path of the column: nanoseconds in one unit of its timestamps.
    timestamps: BTreeMap<String, i128>,
    total: u64,
    number: u64,
    json: Vec<u8>,
}

impl Rows {
    pub(super) fn open(path: &Path, file: File) -> Result<Self, Fatal> {
        let opened = guarded(|| SerializedFileReader::new(file).map_err(|error| error.to_string()));
        let reader = opened.map_err(|detail| {
            Fatal::Input(format!(
                "{}: not a whole Parquet file (its footer cannot be read): {detail}",
                path.display()
            ))
        })?;
        let metadata = reader.metadata().file_metadata();
        let total = u64::try_from(metadata.num_rows()).unwrap_or(0);
        let timestamps = timestamp_columns(metadata.schema_descr())
            .map_err(|detail| Fatal::Input(format!("{}: {detail}", path.display())))?;
        let rows = RowIter::from_file_into(Box::new(reader));
        Ok(Self { rows, timestamps, total, number: 0, json: Vec::new() })
    }

    /// The part of `bytes` that the rows lent so far stand for.
    pub(super) fn share_of(&self, bytes: u64) -> u64 {
        let share = u128::from(bytes) * u128::from(self.number) / u128::from(self.total.max(1));
        u64::try_from(share).unwrap_or(bytes)
    }

    pub(super) fn next(&mut self, path: &Path) -> Result<Option<FileRecord<'_>>, Fatal> {
        let row = guarded(|| self.rows.next().transpose().map_err(|error| error.to_string()));
        let at = self.number + 1;
        let refuse =
            |detail: String| Fatal::Input(format!("{}: row {at}: {detail}", path.display()));
        let row = row.map_err(|detail| {
            refuse(format!("the file is corrupt or truncated, write it again: {detail}"))
        })?;
        let Some(row) = row else {
            if self.number < self.total {
                return Err(refuse(format!("missing: the footer promises {} rows", self.total)));
            }
            return Ok(None);
        };
        self.json.clear();
        write_row(&mut self.json, &row, "", &self.timestamps).map_err(&refuse)?;
        if self.json.len() > RECORD_LIMIT {
            return Err(refuse(format!("the row is larger than {RECORD_LIMIT} bytes of JSON")));
        }
        self.number = at;
        Ok(Some(FileRecord { number: at, value: &self.json, text: false }))
    }
}

/// The library panics on some corrupt files and on types that it lacks: bad input all the same.
fn guarded<T>(read: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied());
        Err(text.unwrap_or("the reader gave up").to_owned())
    })
}

fn timestamp_columns(schema: &SchemaDescriptor) -> Result<BTreeMap<String, i128>, String> {
    let mut columns = BTreeMap::new();
    for column in schema.columns() {
        let path = column.path().parts().join(".");
        if column.physical_type() == Physical::INT96 {
            return Err(format!(
                "column {path} has the withdrawn type INT96, which is not read exactly: write it \
                 as TIMESTAMP_MICROS or as int64 nanoseconds"
            ));
        }
        let unit = match (column.logical_type_ref(), column.converted_type()) {
            (Some(LogicalType::Timestamp(timestamp)), _) => Some(match timestamp.unit {
                TimeUnit::MILLIS => 1_000_000,
                TimeUnit::MICROS => 1_000,
                TimeUnit::NANOS => 1,
            }),
            (_, ConvertedType::TIMESTAMP_MILLIS) => Some(1_000_000),
            (_, ConvertedType::TIMESTAMP_MICROS) => Some(1_000),
            (_, _) => None,
        };
        if let Some(unit) = unit {
            columns.insert(path, unit);
        }
    }
    Ok(columns)
}

fn write_row(
    json: &mut Vec<u8>,
    row: &Row,
    parent: &str,
    timestamps: &BTreeMap<String, i128>,
) -> Result<(), String> {
    json.push(b'{');
    let mut first = true;
    for (name, field) in row.get_column_iter() {
        if matches!(field, Field::Null) {
            continue;
        }
        if !first {
            json.push(b',');
        }
        first = false;
        write_text(json, name);
        json.push(b':');
        if let Field::Group(inner) = field {
            write_row(json, inner, &format!("{parent}{name}."), timestamps)?;
            continue;
        }
        let unit = if timestamps.is_empty() {
            None
        } else {
            timestamps.get(&format!("{parent}{name}")).copied()
        };
        write_value(json, name, field, unit)?;
    }
    json.push(b'}');
    Ok(())
}

fn write_value(
    json: &mut Vec<u8>,
    name: &str,
    field: &Field,
    unit: Option<i128>,
) -> Result<(), String> {
    match field {
        Field::Bool(value) => print(json, format_args!("{value}")),
        Field::Byte(value) => print(json, format_args!("{value}")),
        Field::Short(value) => print(json, format_args!("{value}")),
        Field::Int(value) => print(json, format_args!("{value}")),
        Field::UByte(value) => print(json, format_args!("{value}")),
        Field::UShort(value) => print(json, format_args!("{value}")),
        Field::UInt(value) => print(json, format_args!("{value}")),
        Field::ULong(value) => print(json, format_args!("{value}")),
        Field::Long(value) | Field::TimestampMillis(value) | Field::TimestampMicros(value) => {
            match unit {
                Some(unit) => write_instant(json, name, i128::from(*value) * unit)?,
                None => print(json, format_args!("{value}")),
            }
        }
        Field::Float16(value) => write_float(json, f64::from(*value), format_args!("{value}")),
        Field::Float(value) => write_float(json, f64::from(*value), format_args!("{value}")),
        Field::Double(value) => write_float(json, *value, format_args!("{value}")),
        Field::Str(value) => write_text(json, value),
        // strings of writers that do not annotate them
        Field::Bytes(value) => match std::str::from_utf8(value.data()) {
            Ok(text) => write_text(json, text),
            Err(_) => write_text(json, &BASE64_STANDARD.encode(value.data())),
        },
        Field::Null
        | Field::Group(_)
        | Field::ListInternal(_)
        | Field::MapInternal(_)
        | Field::Decimal(_)
        | Field::Date(_)
        | Field::TimeMillis(_)
        | Field::TimeMicros(_) => {
            let value = serde_json::to_vec(&field.to_json_value())
                .map_err(|error| format!("column {name}: {error}"))?;
            json.extend_from_slice(&value);
        }
    }
    Ok(())
}

/// JSON has no number for these: a string is refused by the decoder, field by field.
fn write_float(json: &mut Vec<u8>, value: f64, text: std::fmt::Arguments<'_>) {
    if value.is_finite() {
        print(json, text);
    } else {
        print(json, format_args!("\"{text}\""));
    }
}

fn write_instant(json: &mut Vec<u8>, name: &str, nanoseconds: i128) -> Result<(), String> {
    if name.ends_with("_unix_nano") {
        print(json, format_args!("{nanoseconds}"));
        return Ok(());
    }
    let instant = jiff::Timestamp::from_nanosecond(nanoseconds)
        .map_err(|_| format!("column {name}: {nanoseconds} ns lies outside the calendar"))?;
    print(json, format_args!("\"{instant}\""));
    Ok(())
}

fn write_text(json: &mut Vec<u8>, text: &str) {
    serde_json::to_writer(json, text).expect("a string in memory always serialises");
}

fn print(json: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    json.write_fmt(text).expect("writing to memory cannot fail");
}
