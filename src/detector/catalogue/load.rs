//! From CSV files to a catalogue: the shipped rows, and the operator's over them.
//!
//! A file holds accelerator rows or instance rows, told apart by its header. A row whose key
//! exists replaces that row; a column that its file does not have keeps the replaced row's value,
//! so that correcting a peak does not forget the aliases. Any fault refuses the whole.

use std::collections::BTreeMap;
use std::fmt;

use super::name::Name;
use super::{Accelerator, Catalogue, Index, Instance, find};
use crate::data;
use crate::detector::event::NAME_LIMIT;
use crate::detector::measure::Peaks;

/// What an unknown accelerator counts as, and an unknown instance type as how many of it.
const UNKNOWN: (&str, f64) = ("nvidia-h100-sxm", 8.0);

/// Largest peak in TFLOP/s and largest count: with the limits on an event they keep its measure
/// far below 127 bits.
const PEAK_LIMIT: f64 = 1e6;
const COUNT_LIMIT: f64 = 1e5;

/// Columns that must be there, those that are read, and those that are allowed but not read.
const ACCELERATOR_REQUIRED: &[&str] = &["key", "dense16_tflops", "dense_max_tflops"];
const ACCELERATOR_OPTIONAL: &[&str] = &["kind", "vendor", "name", "memory_gb", "aliases", "source"];
const ACCELERATOR_UNREAD: &[&str] = &[
    "fp32_tflops",
    "tf32_tflops",
    "fp8_tflops",
    "fp4_tflops",
    "int8_tops",
    "memory_gbps",
    "tdp_w",
    "scaleup_gbps",
    "tpp",
];
const INSTANCE_REQUIRED: &[&str] = &["instance_type", "accelerator", "count"];
const INSTANCE_OPTIONAL: &[&str] = &["cloud", "aliases", "source"];
const INSTANCE_UNREAD: &[&str] = &["node_network_gbps"];

/// Why a catalogue file was refused: where, what was found, and what would be right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LoadError {
    pub file: String,
    /// From 1; 0 when the whole file is meant.
    pub line: u64,
    /// Empty when no single column is at fault.
    pub column: String,
    pub detail: String,
}

impl fmt::Display for LoadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.file)?;
        if self.line > 0 {
            write!(f, ":{}", self.line)?;
        }
        if !self.column.is_empty() {
            write!(f, ": column {}", self.column)?;
        }
        write!(f, ": {}", self.detail)
    }
}

impl std::error::Error for LoadError {}

/// Where a row stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    file: String,
    line: u64,
}

impl Place {
    fn error(&self, column: &str, detail: impl Into<String>) -> LoadError {
        LoadError {
            file: self.file.clone(),
            line: self.line,
            column: column.to_owned(),
            detail: detail.into(),
        }
    }
}

impl Catalogue {
    /// The catalogue that ships with flopwatch.
    pub fn shipped() -> Self {
        Self::parse(data::ACCELERATORS, data::INSTANCES).expect("a test loads the shipped data")
    }

    /// What a configuration asks for: the shipped rows, `(path, text)` of `catalogue.files` over
    /// them, and what unknown names count as.
    pub fn load(
        files: &[(&str, &str)],
        unknown: &str,
        unknown_count: f64,
    ) -> Result<Self, LoadError> {
        Self::shipped().with_files(files)?.with_unknown(unknown, unknown_count)
    }

    /// A catalogue of these rows alone, which must have `nvidia-h100-sxm`.
    pub fn parse(accelerators_csv: &str, instances_csv: &str) -> Result<Self, LoadError> {
        let mut catalogue = Self {
            accelerators: Vec::new(),
            instances: Vec::new(),
            accelerator_names: Index::default(),
            instance_names: Index::default(),
            unknown: 0,
            unknown_count: UNKNOWN.1,
        };
        catalogue
            .add(&[("accelerators.csv", accelerators_csv), ("instances.csv", instances_csv)])?;
        catalogue.with_unknown(UNKNOWN.0, UNKNOWN.1)
    }

    /// The same with the rows of one file over it; `path` is for errors.
    pub fn with_file(self, text: &str, path: &str) -> Result<Self, LoadError> {
        self.with_files(&[(path, text)])
    }

    /// The same with the rows of these `(path, text)` over it: a later file wins, and instance rows
    /// may name accelerators of any of them.
    pub fn with_files(mut self, files: &[(&str, &str)]) -> Result<Self, LoadError> {
        self.add(files)?;
        Ok(self)
    }

    /// The same with unknown accelerators counted as `name`, and an unknown instance type as
    /// `count` of it. Give the files first: the name must be theirs or a shipped one.
    pub fn with_unknown(mut self, name: &str, count: f64) -> Result<Self, LoadError> {
        let place = Place { file: "catalogue.unknown".to_owned(), line: 0 };
        let position = find(&self.accelerator_names, name).ok_or_else(|| {
            place.error(
                "",
                format!("no accelerator is called {name:?}; give a key of the catalogue"),
            )
        })?;
        if self.accelerators[position].peaks.is_cpu {
            let detail = format!("{name:?} is no accelerator: unknown ones must not count as CPU");
            return Err(place.error("", detail));
        }
        if !(count > 0.0 && count <= COUNT_LIMIT) {
            let place = Place { file: "catalogue.unknown_count".to_owned(), line: 0 };
            return Err(place.error("", format!("{count} is not in 0..={COUNT_LIMIT}, 0 excluded")));
        }
        self.unknown = position;
        self.unknown_count = count;
        Ok(self)
    }

    fn add(&mut self, files: &[(&str, &str)]) -> Result<(), LoadError> {
        let tables = files
            .iter()
            .map(|(path, text)| Table::read(path, text))
            .collect::<Result<Vec<_>, _>>()?;
        for table in tables.iter().filter(|table| table.kind == Kind::Accelerators) {
            for row in &table.rows {
                self.put_accelerator(table, row)?;
            }
        }
        self.accelerator_names = index(self.accelerators.iter().map(|accelerator| {
            let named = [&accelerator.key, &accelerator.name].into_iter();
            let names = named.chain(&accelerator.aliases).map(String::as_str).collect();
            (&*accelerator.vendor, names, &accelerator.place)
        }))?;
        for table in tables.iter().filter(|table| table.kind == Kind::Instances) {
            for row in &table.rows {
                self.put_instance(table, row)?;
            }
        }
        self.instance_names = index(self.instances.iter().map(|instance| {
            let names = [&instance.key].into_iter().chain(&instance.aliases);
            ("", names.map(String::as_str).collect(), &instance.place)
        }))?;
        Ok(())
    }

    fn put_accelerator(&mut self, table: &Table, row: &Row) -> Result<(), LoadError> {
        let key = table.name(row, "key")?;
        let at = position(self.accelerators.iter().map(|accelerator| &*accelerator.key), key);
        let old = at.map(|position| &self.accelerators[position]);
        let dense16 = table.number(row, "dense16_tflops", PEAK_LIMIT)?;
        let dense_max = table.number(row, "dense_max_tflops", PEAK_LIMIT)?;
        if dense_max < dense16 {
            let detail = format!("{dense_max} is below dense16_tflops {dense16}; give the highest");
            return Err(row.place.error("dense_max_tflops", detail));
        }
        let is_cpu = match table.optional(row, "kind") {
            Some("accelerator" | "") => false,
            Some("cpu") => true,
            Some(other) => {
                let detail = format!("{other:?} is not accelerator or cpu");
                return Err(row.place.error("kind", detail));
            }
            None => old.is_some_and(|old| old.peaks.is_cpu),
        };
        let memory_gb = match table.optional(row, "memory_gb") {
            Some("") => None,
            Some(_) => Some(table.number(row, "memory_gb", f64::MAX)?),
            None => old.and_then(|old| old.memory_gb),
        };
        let accelerator = Accelerator {
            key: key.to_owned(),
            vendor: table.text(row, "vendor", old.map(|old| &*old.vendor)),
            name: table.text(row, "name", old.map(|old| &*old.name)),
            peaks: Peaks { dense16: dense16 * 1e12, dense_max: dense_max * 1e12, is_cpu },
            memory_gb,
            aliases: table.aliases(row, old.map(|old| &*old.aliases))?,
            source: table.text(row, "source", None),
            place: row.place.clone(),
        };
        match at {
            Some(position) => self.accelerators[position] = accelerator,
            None => self.accelerators.push(accelerator),
        }
        Ok(())
    }

    fn put_instance(&mut self, table: &Table, row: &Row) -> Result<(), LoadError> {
        let key = table.name(row, "instance_type")?;
        let at = position(self.instances.iter().map(|instance| &*instance.key), key);
        let old = at.map(|position| &self.instances[position]);
        let named = table.name(row, "accelerator")?;
        let accelerator = find(&self.accelerator_names, named).ok_or_else(|| {
            let detail = format!(
                "no accelerator is called {named:?}; give a key or alias of the catalogue, or add \
                 its row to a file with columns {}",
                ACCELERATOR_REQUIRED.join(", ")
            );
            row.place.error("accelerator", detail)
        })?;
        let instance = Instance {
            key: key.to_owned(),
            cloud: table.text(row, "cloud", old.map(|old| &*old.cloud)),
            count: table.number(row, "count", COUNT_LIMIT)?,
            aliases: table.aliases(row, old.map(|old| &*old.aliases))?,
            source: table.text(row, "source", None),
            accelerator,
            place: row.place.clone(),
        };
        match at {
            Some(position) => self.instances[position] = instance,
            None => self.instances.push(instance),
        }
        Ok(())
    }
}

/// The row that `key` replaces: the one whose key has the same letters and digits.
fn position<'a>(mut keys: impl Iterator<Item = &'a str>, key: &str) -> Option<usize> {
    let wanted = normalised(key);
    keys.position(|existing| normalised(existing) == wanted)
}

fn normalised(text: &str) -> Vec<u8> {
    Name::of(text).map(|name| name.as_bytes().to_vec()).unwrap_or_default()
}

/// Positions by every name, with and without the vendor in front. The first name is the key, which
/// is also found as written, without normalising.
fn index<'a>(
    rows: impl Iterator<Item = (&'a str, Vec<&'a str>, &'a Place)>,
) -> Result<Index, LoadError> {
    let mut index = Index::default();
    let mut keys = Vec::new();
    for (position, (vendor, names, place)) in rows.enumerate() {
        let key = names[0];
        keys.push((key, place));
        for name in &names {
            let plain = normalised(name);
            if plain.is_empty() {
                // a product may lack a name of its own
                continue;
            }
            let with_vendor = [normalised(vendor), plain.clone()].concat();
            for spelling in [plain, with_vendor] {
                let (other_key, other) = keys[*index.entry(spelling.into()).or_insert(position)];
                if other_key != key {
                    let detail = format!(
                        "{name:?} would name both {key} and {other_key} ({}:{}); give it to one",
                        other.file, other.line
                    );
                    return Err(place.error("aliases", detail));
                }
            }
        }
        index.insert(key.as_bytes().into(), position);
    }
    Ok(index)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Accelerators,
    Instances,
}

/// One file: its rows, and where its header puts each column.
struct Table {
    kind: Kind,
    columns: BTreeMap<String, usize>,
    rows: Vec<Row>,
}

struct Row {
    fields: csv::StringRecord,
    place: Place,
}

impl Table {
    fn read(path: &str, text: &str) -> Result<Self, LoadError> {
        let text = text.trim_start_matches('\u{feff}');
        let place = |line| Place { file: path.to_owned(), line };
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .comment(Some(b'#'))
            .trim(csv::Trim::All)
            .from_reader(text.as_bytes());
        let mut rows = Vec::new();
        for record in reader.records() {
            let fields = record.map_err(|fault| place(0).error("", fault.to_string()))?;
            let start = fields.position().map_or(0, csv::Position::byte);
            rows.push(Row { place: place(line_of(text, start)), fields });
        }
        if rows.is_empty() {
            let detail = format!("the file is empty; its first line must name {}", header_help());
            return Err(place(0).error("", detail));
        }
        let header = rows.remove(0);
        let (kind, columns) = read_header(&header)?;
        let table = Self { kind, columns, rows };
        table.check_rows()?;
        Ok(table)
    }

    /// Every row is as long as the header, and no key comes twice.
    fn check_rows(&self) -> Result<(), LoadError> {
        let mut seen: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
        for row in &self.rows {
            let (found, expected) = (row.fields.len(), self.columns.len());
            if found != expected {
                let detail = format!(
                    "the row has {found} fields and the header {expected}; quote fields that hold \
                     commas"
                );
                return Err(row.place.error("", detail));
            }
            let column = self.key_column();
            let key = self.name(row, column)?;
            if let Some(line) = seen.insert(normalised(key), row.place.line) {
                let detail = format!("{key:?} stands on line {line} already; keep one of them");
                return Err(row.place.error(column, detail));
            }
        }
        Ok(())
    }

    fn key_column(&self) -> &'static str {
        match self.kind {
            Kind::Accelerators => "key",
            Kind::Instances => "instance_type",
        }
    }

    /// `None`: the file does not have that column.
    fn optional<'a>(&self, row: &'a Row, column: &str) -> Option<&'a str> {
        self.columns.get(column).map(|&position| &row.fields[position])
    }

    fn required<'a>(&self, row: &'a Row, column: &str) -> &'a str {
        self.optional(row, column).expect("the header was checked for required columns")
    }

    fn name<'a>(&self, row: &'a Row, column: &str) -> Result<&'a str, LoadError> {
        let name = self.required(row, column);
        check_name(name).map_err(|detail| row.place.error(column, detail))?;
        Ok(name)
    }

    /// A number above 0 and at most `limit`.
    fn number(&self, row: &Row, column: &str, limit: f64) -> Result<f64, LoadError> {
        let text = self.required(row, column);
        match text.parse::<f64>() {
            Ok(value) if value > 0.0 && value <= limit => Ok(value),
            Ok(_) | Err(_) => {
                let detail =
                    format!("{text:?} is not a decimal number above 0 and up to {limit:e}");
                Err(row.place.error(column, detail))
            }
        }
    }

    fn text(&self, row: &Row, column: &str, old: Option<&str>) -> String {
        self.optional(row, column).or(old).unwrap_or_default().to_owned()
    }

    fn aliases(&self, row: &Row, old: Option<&[String]>) -> Result<Vec<String>, LoadError> {
        let Some(text) = self.optional(row, "aliases") else {
            return Ok(old.unwrap_or_default().to_vec());
        };
        let mut aliases = Vec::new();
        for alias in text.split(';').map(str::trim).filter(|alias| !alias.is_empty()) {
            check_name(alias).map_err(|detail| row.place.error("aliases", detail))?;
            aliases.push(alias.to_owned());
        }
        Ok(aliases)
    }
}

fn read_header(header: &Row) -> Result<(Kind, BTreeMap<String, usize>), LoadError> {
    let mut columns = BTreeMap::new();
    for (position, column) in header.fields.iter().enumerate() {
        if columns.insert(column.to_owned(), position).is_some() {
            return Err(header.place.error(column, "the header names this column twice"));
        }
    }
    let (kind, required, optional, unread) = if columns.contains_key("instance_type") {
        (Kind::Instances, INSTANCE_REQUIRED, INSTANCE_OPTIONAL, INSTANCE_UNREAD)
    } else if columns.contains_key("key") {
        (Kind::Accelerators, ACCELERATOR_REQUIRED, ACCELERATOR_OPTIONAL, ACCELERATOR_UNREAD)
    } else {
        let detail =
            format!("this is no header of a catalogue file; it must name {}", header_help());
        return Err(header.place.error("", detail));
    };
    if let Some(missing) = required.iter().find(|column| !columns.contains_key(**column)) {
        let detail = format!("the header lacks it; needed are {}", required.join(", "));
        return Err(header.place.error(missing, detail));
    }
    let known = [required, optional, unread].concat();
    if let Some(unknown) = columns.keys().find(|column| !known.contains(&column.as_str())) {
        let detail = format!("no such column; there are {}", known.join(", "));
        return Err(header.place.error(unknown, detail));
    }
    Ok((kind, columns))
}

fn header_help() -> String {
    let accelerators = ACCELERATOR_REQUIRED.join(", ");
    format!("{accelerators} for accelerators, or {} for instances", INSTANCE_REQUIRED.join(", "))
}

fn check_name(name: &str) -> Result<(), String> {
    if name.len() > NAME_LIMIT {
        return Err(format!("a name has {} bytes; at most {NAME_LIMIT} are matched", name.len()));
    }
    if normalised(name).is_empty() {
        return Err(format!("{name:?} holds no letter or digit to match"));
    }
    Ok(())
}

/// The line, from 1, of the row that the reader began to look for at `start`: it steps over blank
/// lines and comments without counting them to a row's position.
fn line_of(text: &str, start: u64) -> u64 {
    let start = usize::try_from(start).expect("a position inside the text");
    let before = text[..start].matches('\n').count();
    let skipped = text[start..]
        .lines()
        .take_while(|line| line.trim().is_empty() || line.starts_with('#'))
        .count();
    u64::try_from(before + skipped + 1).expect("lines of a text in memory")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn over_shipped(text: &str) -> Result<Catalogue, String> {
        Catalogue::shipped().with_file(text, "mine.csv").map_err(|fault| fault.to_string())
    }

    #[test]
    fn a_row_with_an_existing_key_replaces_it_and_keeps_the_aliases_it_does_not_give() {
        let text = "key,dense16_tflops,dense_max_tflops\nNVIDIA-H100-SXM,1000,2000\n";
        let catalogue = over_shipped(text).expect("sound");
        let resolved = catalogue.resolve("NVIDIA H100 80GB HBM3", "");
        assert_eq!((resolved.key, resolved.peaks.dense16), ("NVIDIA-H100-SXM", 1000.0 * 1e12));
        assert_eq!(catalogue.resolve("", "p5.48xlarge").peaks.dense_max, 2000.0 * 1e12);
        assert_eq!(catalogue.resolve("no such chip", "").peaks.dense16, 1000.0 * 1e12);
    }

    #[test]
    fn an_alias_moves_when_both_rows_are_given() {
        let text = "key,dense16_tflops,dense_max_tflops,aliases\n\
                    nvidia-h100-sxm,989.4,1978.9,H100 SXM5\n\
                    nvidia-h100-pcie,756,1513,H100;H100 PCIe\n";
        let catalogue = over_shipped(text).expect("sound");
        assert_eq!(catalogue.resolve("H100", "").key, "nvidia-h100-pcie");
    }

    #[test]
    fn instance_rows_may_name_accelerators_of_a_later_file() {
        let instances = "instance_type,accelerator,count\nwarp.9,Warp Core,9\n";
        let accelerators = "# ours\n\nkey,dense16_tflops,dense_max_tflops,kind\nwarp-core,1,2,\n";
        let catalogue = Catalogue::shipped()
            .with_files(&[("i.csv", instances), ("a.csv", accelerators)])
            .expect("sound");
        let resolved = catalogue.resolve("", "warp.9");
        assert_eq!((resolved.key, resolved.count), ("warp-core", 9.0));
    }

    #[test]
    fn a_fault_names_file_line_and_column_and_what_would_be_right() {
        let accelerators = "key,dense16_tflops,dense_max_tflops,aliases\n# c\n\n";
        let cases = [
            ("", "mine.csv: the file is empty; its first line must name key, dense16_tflops, dens"),
            ("a,b\n1,2\n", "mine.csv:1: this is no header of a catalogue file; it must name key, "),
            (
                "key,dense16_tflops\n",
                "mine.csv:1: column dense_max_tflops: the header lacks it; ne",
            ),
            (
                "key,dense16_tflops,dense_max_tflops,alias\n",
                "mine.csv:1: column alias: no such column; there are key, dense16_tflops, ",
            ),
            ("key,key\n", "mine.csv:1: column key: the header names this column twice"),
            ("{a}x,1\n", "mine.csv:4: the row has 2 fields and the header 4; quote fields that"),
            (
                "{a}x,1,2,\ny,1O,2,\n",
                "mine.csv:5: column dense16_tflops: \"1O\" is not a decimal n",
            ),
            (
                "{a}x,0,2,\n",
                "mine.csv:4: column dense16_tflops: \"0\" is not a decimal number abov",
            ),
            (
                "{a}x,NaN,2,\n",
                "mine.csv:4: column dense16_tflops: \"NaN\" is not a decimal number ",
            ),
            ("{a}x,1,inf,\n", "mine.csv:4: column dense_max_tflops: \"inf\" is not a decimal numb"),
            ("{a}x,3,2,\n", "mine.csv:4: column dense_max_tflops: 2 is below dense16_tflops 3; gi"),
            ("{a}-,1,2,\n", "mine.csv:4: column key: \"-\" holds no letter or digit to match"),
            ("{a}x,1,2,\n\nX,1,2,\n", "mine.csv:6: column key: \"X\" stands on line 4 already; "),
            (
                "{a}x,1,2,Tesla T4\n",
                "mine.csv:4: column aliases: \"Tesla T4\" would name both x and nvidia-t4 (accel",
            ),
            (
                "key,dense16_tflops,dense_max_tflops,kind\nx,1,2,gpu\n",
                "mine.csv:2: column kind: \"gpu\" is not accelerator or cpu",
            ),
            (
                "instance_type,accelerator,count\nx,warp core,8\n",
                "mine.csv:2: column accelerator: no accelerator is called \"warp core\"; give a ",
            ),
            (
                "instance_type,accelerator,count\nx,h100,-8\n",
                "mine.csv:2: column count: \"-8\" is not a decimal number above 0 and up to 1e5",
            ),
        ];
        for (text, expected) in cases {
            let text = text.replace("{a}", accelerators);
            let fault = over_shipped(&text).expect_err(&text);
            assert!(fault.starts_with(expected), "{text:?}\n gave  {fault}\n wants {expected}");
        }
    }

    #[test]
    fn an_accelerator_of_the_operator_may_stand_for_unknown_ones() {
        let text = "key,dense16_tflops,dense_max_tflops\nwarp-core,5,10\n";
        let catalogue = Catalogue::load(&[("mine.csv", text)], "Warp Core", 2.5).expect("sound");
        let resolved = catalogue.resolve("", "no such type");
        assert_eq!((resolved.peaks.dense16, resolved.count), (5.0 * 1e12, 2.5));
        assert_eq!((catalogue.unknown_key(), catalogue.unknown_count()), ("warp-core", 2.5));
    }

    #[test]
    fn what_unknown_names_count_as_must_be_an_accelerator_of_the_catalogue() {
        let with = |name, count| {
            let fault = Catalogue::shipped().with_unknown(name, count).expect_err("refused");
            fault.to_string()
        };
        assert!(with("h1000", 8.0).starts_with("catalogue.unknown: no accelerator is called"));
        assert!(with("vcpu", 8.0).starts_with("catalogue.unknown: \"vcpu\" is no accelerator"));
        assert!(with("h100", 0.0).starts_with("catalogue.unknown_count: 0 is not in 0..=100000"));
        assert!(with("h100", f64::NAN).starts_with("catalogue.unknown_count: NaN is not in"));
    }
}
