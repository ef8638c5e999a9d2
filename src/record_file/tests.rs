//! Round trips, and what damaged files get.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use ::parquet::data_type::{ByteArray, ByteArrayType, DoubleType, FloatType, Int64Type};
use ::parquet::file::properties::WriterProperties;
use ::parquet::file::writer::SerializedFileWriter;
use ::parquet::schema::parser::parse_message_type;

use super::*;

struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.path().join(name);
        fs::write(&path, bytes).expect("written");
        path
    }

    fn written(&self, name: &str, records: &[Vec<u8>]) -> PathBuf {
        let path = self.0.path().join(name);
        let mut writer = RecordWriter::create(&path).expect("created");
        for record in records {
            writer.write(record).expect("written");
        }
        writer.finish().expect("finished");
        path
    }
}

fn read(path: &Path) -> Result<Vec<(u64, Vec<u8>)>, Fatal> {
    let mut file = RecordFile::open(path)?;
    let mut records = Vec::new();
    while let Some(record) = file.next()? {
        records.push((record.number, record.value.to_vec()));
    }
    assert!(file.position() <= file.total(), "no more is read than there is");
    Ok(records)
}

fn refused(path: &Path) -> String {
    let fatal = read(path).expect_err("a damaged file is refused");
    assert_eq!(fatal.exit_code(), 1);
    let text = fatal.to_string();
    assert!(text.contains(&path.display().to_string()), "the file is named: {text}");
    text
}

/// Records of many sizes, some larger than the buffer is at first.
fn records() -> Vec<Vec<u8>> {
    let sizes = [1, 7, 127, 128, 300, 70_000, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK, 5];
    let byte = |size: usize| {
        move |index: usize| b'a' + u8::try_from((size + index) % 26).expect("a letter")
    };
    sizes.iter().map(|&size| (0..size).map(byte(size)).collect()).collect()
}

#[test]
fn what_is_written_reads_back_in_every_format_and_compression() {
    let scratch = Scratch::new();
    let expected: Vec<_> = (1..).zip(records()).collect();
    for name in ["a.ndjson", "a.jsonl.gz", "a.json.zst", "a.pb", "a.bin.gz", "a.delimited.zst"] {
        let path = scratch.written(name, &records());
        assert_eq!(read(&path).expect(name), expected, "{name}");
    }
}

#[test]
fn blank_lines_are_numbered_and_skipped() {
    let scratch = Scratch::new();
    let path = scratch.file("a.ndjson", b"\xef\xbb\xbf{\"a\":1}\r\n\n  \t\n{\"b\":2}\n\n{\"c\":3}");
    let records = read(&path).expect("sound");
    let expected = [(1, "{\"a\":1}"), (4, "{\"b\":2}"), (6, "{\"c\":3}")];
    assert_eq!(records, expected.map(|(number, text)| (number, text.as_bytes().to_vec())));
}

#[test]
fn an_empty_file_is_a_partition_without_records() {
    let scratch = Scratch::new();
    for name in ["a.ndjson", "a.pb", "a"] {
        assert_eq!(read(&scratch.file(name, b"")), Ok(Vec::new()), "{name}");
    }
    assert_eq!(read(&scratch.written("b.ndjson.zst", &[])), Ok(Vec::new()));
    assert_eq!(read(&scratch.written("b.pb.gz", &[])), Ok(Vec::new()));
}

#[test]
fn a_file_without_a_telling_name_is_known_by_its_first_bytes() {
    let scratch = Scratch::new();
    for name in ["a.ndjson", "a.pb", "a.ndjson.gz", "a.pb.zst"] {
        // a message of 123 bytes has the length `{`
        let mut record = vec![b'x'; 123];
        if name.starts_with("a.ndjson") {
            record = b"{\"id\":1}".to_vec();
        } else {
            record[0] = 0x0a;
        }
        let bytes = fs::read(scratch.written(name, &[record.clone()])).expect("read");
        let path = scratch.file(&format!("{}.usage", name.replace('.', "-")), &bytes);
        assert_eq!(read(&path).expect(name), [(1, record)], "{name}");
    }
}

#[test]
fn a_truncated_file_is_refused_with_its_position() {
    let scratch = Scratch::new();
    let whole = fs::read(scratch.written("a.pb", &[vec![7; 200], vec![8; 300]])).expect("read");
    let text = refused(&scratch.file("b.pb", &whole[..whole.len() - 1]));
    assert!(text.contains("record 2 at byte 202"), "{text}");
    assert!(text.contains("after 299 of the record's 300 bytes: it is truncated"), "{text}");
    let text = refused(&scratch.file("c.pb", &whole[..203]));
    assert!(text.contains("within a record's length"), "{text}");

    let many: Vec<Vec<u8>> = (0..2000_u32).map(|n| format!("{{\"n\":{n}}}").into_bytes()).collect();
    for name in ["d.ndjson.gz", "d.ndjson.zst", "d.pb.gz", "d.pb.zst"] {
        let whole = fs::read(scratch.written(name, &many)).expect("read");
        let text = refused(&scratch.file(&format!("cut-{name}"), &whole[..whole.len() / 2]));
        assert!(text.contains("ends in the middle"), "{name}: {text}");
        let text = refused(&scratch.file(&format!("none-{name}"), b""));
        assert!(text.contains("ends in the middle"), "{name}: {text}");
    }
}

#[test]
fn a_corrupt_file_is_refused() {
    let scratch = Scratch::new();
    let text = refused(&scratch.file("a.pb", b"{\"id\":\"text in a file named as protobuf\"}\n"));
    assert!(text.contains("record 1 at byte 0"), "{text}");
    let text = refused(&scratch.file("b.pb", &[0xff; 20]));
    assert!(text.contains("length-delimited protobuf is wanted"), "{text}");
    let text = refused(&scratch.file("c.pb", &[0xff, 0xff, 0xff, 0xff, 0x0f, 1, 2, 3]));
    assert!(text.contains("over the limit"), "{text}");
    let text = refused(&scratch.file("d.ndjson.gz", b"not gzip at all"));
    assert!(text.contains("is corrupt"), "{text}");
    let text = refused(&scratch.file("e.ndjson.zst", b"not zstd at all"));
    assert!(text.contains("is corrupt"), "{text}");
    let mut whole = fs::read(scratch.written("f.ndjson.gz", &records())).expect("read");
    let middle = whole.len() / 2;
    whole[middle] ^= 0x55;
    refused(&scratch.file("g.ndjson.gz", &whole));
}

#[test]
fn a_missing_file_and_a_directory_are_refused() {
    let scratch = Scratch::new();
    let text = refused(&scratch.0.path().join("none.ndjson"));
    assert!(text.contains("cannot be opened"), "{text}");
    let text = refused(scratch.0.path());
    assert!(text.contains("it is a directory"), "{text}");
}

#[test]
fn a_line_beyond_the_limit_is_refused_in_bounded_memory() {
    let scratch = Scratch::new();
    let path = scratch.0.path().join("bomb.ndjson.zst");
    let file = File::create(&path).expect("created");
    let mut bomb = zstd::stream::write::Encoder::new(file, 1).expect("an encoder");
    let zeros = vec![b' '; 1 << 20];
    for _ in 0..RECORD_LIMIT / zeros.len() + 2 {
        io::Write::write_all(&mut bomb, &zeros).expect("written");
    }
    bomb.finish().expect("finished");
    let mut file = RecordFile::open(&path).expect("opened");
    let text = file.next().expect_err("too long").to_string();
    assert!(text.contains("line 1: the line is longer than"), "{text}");
    let Body::Lines(stream) = &file.body else { unreachable!("a text file") };
    assert!(stream.buffer.len() <= RECORD_LIMIT + VARINT_LIMIT + 2);
}

const SCHEMA: &str = "
    message usage {
        required binary id (UTF8);
        optional double quantity;
        required int64 start_time (TIMESTAMP(NANOS,true));
        required int64 end_time (TIMESTAMP(MICROS,true));
        required int64 time_unix_nano (INTEGER(64,false));
        required int64 seen_unix_nano (TIMESTAMP(MILLIS,true));
        optional group telemetry {
            optional float utilization;
        }
    }";

/// Two rows: everything given, and as little as can be.
fn parquet_file() -> Vec<u8> {
    let schema = Arc::new(parse_message_type(SCHEMA).expect("a sound schema"));
    let mut bytes = Vec::new();
    let properties = Arc::new(WriterProperties::builder().build());
    let mut file = SerializedFileWriter::new(&mut bytes, schema, properties).expect("a writer");
    let mut group = file.next_row_group().expect("a row group");
    let mut column = 0;
    while let Some(mut writer) = group.next_column().expect("a column") {
        let int64 = |values: [i64; 2]| values;
        match column {
            0 => {
                let ids = [ByteArray::from("i\"1\""), ByteArray::from("i2")];
                writer.typed::<ByteArrayType>().write_batch(&ids, None, None)
            }
            1 => writer.typed::<DoubleType>().write_batch(&[0.1], Some(&[1, 0]), None),
            2 => {
                let values = int64([1_767_225_600_000_000_001, 1_767_225_600_500_000_000]);
                writer.typed::<Int64Type>().write_batch(&values, None, None)
            }
            3 => {
                let values = int64([1_767_225_900_000_001, 1_767_225_900_000_000]);
                writer.typed::<Int64Type>().write_batch(&values, None, None)
            }
            4 => {
                let values = int64([1_767_225_900_000_000_007, -1]);
                writer.typed::<Int64Type>().write_batch(&values, None, None)
            }
            5 => {
                let values = int64([1_767_225_900_001, 0]);
                writer.typed::<Int64Type>().write_batch(&values, None, None)
            }
            _ => writer.typed::<FloatType>().write_batch(&[0.347], Some(&[2, 0]), None),
        }
        .expect("written");
        writer.close().expect("closed");
        column += 1;
    }
    group.close().expect("closed");
    file.close().expect("closed");
    bytes
}

#[test]
fn parquet_rows_become_json_with_exact_integers_and_instants() {
    let scratch = Scratch::new();
    for name in ["a.parquet", "no-extension"] {
        let records = read(&scratch.file(name, &parquet_file())).expect("sound");
        let texts: Vec<_> =
            records.iter().map(|(_, json)| String::from_utf8_lossy(json).into_owned()).collect();
        assert_eq!(
            texts,
            [
                "{\"id\":\"i\\\"1\\\"\",\"quantity\":0.1,\
                 \"start_time\":\"2026-01-01T00:00:00.000000001Z\",\
                 \"end_time\":\"2026-01-01T00:05:00.000001Z\",\
                 \"time_unix_nano\":1767225900000000007,\
                 \"seen_unix_nano\":1767225900001000000,\"telemetry\":{\"utilization\":0.347}}",
                "{\"id\":\"i2\",\"start_time\":\"2026-01-01T00:00:00.5Z\",\
                 \"end_time\":\"2026-01-01T00:05:00Z\",\
                 \"time_unix_nano\":18446744073709551615,\"seen_unix_nano\":0}",
            ]
        );
    }
}

#[test]
fn damaged_parquet_is_refused_and_never_panics() {
    let scratch = Scratch::new();
    let whole = parquet_file();
    let text = refused(&scratch.file("none.parquet", b""));
    assert!(text.contains("not a whole Parquet file"), "{text}");
    refused(&scratch.file("cut.parquet", &whole[..whole.len() - 9]));
    let text = refused(&scratch.file("packed.parquet.gz", &whole));
    assert!(text.contains("unpack it first"), "{text}");
    for place in (0..whole.len()).step_by(3) {
        let mut damaged = whole.clone();
        damaged[place] ^= 0x40;
        // a flipped bit in a value is another value; anything else is an error of ours
        drop(read(&scratch.file("damaged.parquet", &damaged)));
    }
}

#[test]
fn a_column_of_int96_is_refused_with_a_remedy() {
    let scratch = Scratch::new();
    let schema = "message usage { required int96 start_time; }";
    let schema = Arc::new(parse_message_type(schema).expect("a sound schema"));
    let mut bytes = Vec::new();
    let properties = Arc::new(WriterProperties::builder().build());
    let file = SerializedFileWriter::new(&mut bytes, schema, properties).expect("a writer");
    file.close().expect("closed");
    let text = refused(&scratch.file("a.parquet", &bytes));
    assert!(text.contains("start_time has the withdrawn type INT96"), "{text}");
}
