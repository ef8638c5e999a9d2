//! TOML in which every value knows its place, so that an error can name file and line.
//!
//! Layers (defaults, file, environment) are merged as trees; typed reading is `field.rs`'s.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::Result;
use crate::error::Fatal;

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    Default,
    Line { file: Arc<str>, line: usize },
    Variable(Arc<str>),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Line { file, line } => write!(f, "{file}:{line}"),
            Self::Variable(name) => f.write_str(name),
        }
    }
}

/// The one form of every message about a value: where, which key, what was found, what would be
/// right.
pub(super) fn wrong(place: &Place, key: &str, found: &str, right: &str) -> Fatal {
    Fatal::Config(format!("{place}: {key}: {found}; {right}"))
}

#[derive(Debug, Clone)]
pub(super) struct Node {
    /// In a table the line of the key, in a list that of the value.
    pub(super) place: Place,
    pub(super) value: Value,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Datetime(String),
    List(Vec<Node>),
    Table(BTreeMap<String, Node>),
}

impl Node {
    pub(super) fn table(place: Place) -> Self {
        Self { place, value: Value::Table(BTreeMap::new()) }
    }

    /// The entries of a table; none of anything else.
    pub(super) fn entries(&self) -> impl Iterator<Item = (&String, &Self)> {
        match &self.value {
            Value::Table(entries) => Some(entries.iter()),
            Value::Text(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Boolean(_)
            | Value::Datetime(_)
            | Value::List(_) => None,
        }
        .into_iter()
        .flatten()
    }

    /// The value under a dotted path of plain keys.
    pub(super) fn find(&self, path: &str) -> Option<&Self> {
        path.split('.').try_fold(self, |node, name| {
            node.entries().find(|(key, _)| *key == name).map(|(_, child)| child)
        })
    }

    /// Puts `node` under a dotted path of plain keys, making the tables on the way.
    pub(super) fn insert(&mut self, path: &str, node: Self) {
        let mut layer = node;
        for name in path.rsplit('.') {
            let mut table = Self::table(layer.place.clone());
            table.put(name, layer);
            layer = table;
        }
        self.overlay(layer);
    }

    /// Puts `node` under one key, whatever characters that has; tables are merged.
    pub(super) fn put(&mut self, name: &str, node: Self) {
        let place = node.place.clone();
        self.overlay(Self {
            place,
            value: Value::Table(BTreeMap::from([(name.to_owned(), node)])),
        });
    }

    /// Lays `over` on top: tables are merged, everything else is replaced.
    pub(super) fn overlay(&mut self, over: Self) {
        let Self { place, value } = over;
        match (&mut self.value, value) {
            (Value::Table(below), Value::Table(above)) => {
                if self.place == Place::Default {
                    self.place = place;
                }
                for (name, node) in above {
                    match below.get_mut(&name) {
                        Some(child) => child.overlay(node),
                        None => drop(below.insert(name, node)),
                    }
                }
            }
            (slot, value) => {
                *slot = value;
                self.place = place;
            }
        }
    }

    pub(super) fn entry_mut(&mut self, name: &str) -> Option<&mut Self> {
        match &mut self.value {
            Value::Table(entries) => entries.get_mut(name),
            Value::Text(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Boolean(_)
            | Value::Datetime(_)
            | Value::List(_) => None,
        }
    }

    /// Removes one key of a table.
    pub(super) fn remove(&mut self, name: &str) {
        if let Value::Table(entries) = &mut self.value {
            entries.remove(name);
        }
    }
}

impl Value {
    /// For messages: the type, and the value as far as it is short.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Text(text) if text.chars().count() <= 80 => format!("found {text:?}"),
            Self::Text(_) => "found a long text".to_owned(),
            Self::Integer(number) => format!("found the integer {number}"),
            Self::Float(number) => format!("found the number {number:?}"),
            Self::Boolean(flag) => format!("found {flag}"),
            Self::Datetime(text) => format!("found the date {text}"),
            Self::List(_) => "found a list".to_owned(),
            Self::Table(_) => "found a table".to_owned(),
        }
    }
}

/// Parses a whole document; `file` is its name in messages.
pub(super) fn parse_document(file: &str, text: &str) -> Result<Node> {
    let lines = Lines::new(file, text);
    let document = DeTable::parse(text).map_err(|error| syntax_error(&lines, &error))?;
    let value = table_value(document.get_ref(), &|span| lines.place(span.start))?;
    Ok(Node { place: lines.place(0), value })
}

/// Parses one value, as it would stand right of `=`; every part of it is at `place`.
pub(super) fn parse_value(place: &Place, text: &str) -> Option<Node> {
    let value = DeValue::parse(text.trim()).ok()?;
    node("", place.clone(), value.get_ref(), &|_| place.clone()).ok()
}

/// Line numbers of byte offsets.
struct Lines {
    file: Arc<str>,
    starts: Vec<usize>,
}

impl Lines {
    fn new(file: &str, text: &str) -> Self {
        let after_breaks = text.match_indices('\n').map(|(at, _)| at + 1);
        Self { file: file.into(), starts: std::iter::once(0).chain(after_breaks).collect() }
    }

    fn place(&self, offset: usize) -> Place {
        let line = self.starts.partition_point(|start| *start <= offset);
        Place::Line { file: Arc::clone(&self.file), line }
    }
}

fn syntax_error(lines: &Lines, error: &toml::de::Error) -> Fatal {
    let place = lines.place(error.span().map_or(0, |span| span.start));
    let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
    Fatal::Config(format!("{place}: this is not TOML: {message}"))
}

type PlaceOf<'a> = dyn Fn(Range<usize>) -> Place + 'a;

fn table_value(table: &DeTable<'_>, place_of: &PlaceOf<'_>) -> Result<Value> {
    let entry = |(key, value): (&Spanned<Cow<'_, str>>, &Spanned<DeValue<'_>>)| {
        let node = node(key.get_ref(), place_of(key.span()), value.get_ref(), place_of)?;
        Ok((key.get_ref().to_string(), node))
    };
    Ok(Value::Table(table.iter().map(entry).collect::<Result<_>>()?))
}

fn node(key: &str, place: Place, value: &DeValue<'_>, place_of: &PlaceOf<'_>) -> Result<Node> {
    let too_big =
        |text: &str| wrong(&place, key, &format!("found {text}"), "integers have 64 bits");
    let value = match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(integer) => i64::from_str_radix(integer.as_str(), integer.radix())
            .map(Value::Integer)
            .map_err(|_| too_big(integer.as_str()))?,
        DeValue::Float(float) => {
            float.as_str().parse().map(Value::Float).map_err(|_| too_big(float.as_str()))?
        }
        DeValue::Boolean(flag) => Value::Boolean(*flag),
        DeValue::Datetime(datetime) => Value::Datetime(datetime.to_string()),
        DeValue::Array(items) => {
            let item = |item: &Spanned<DeValue<'_>>| {
                node(key, place_of(item.span()), item.get_ref(), place_of)
            };
            Value::List(items.iter().map(item).collect::<Result<_>>()?)
        }
        DeValue::Table(table) => table_value(table, place_of)?,
    };
    Ok(Node { place, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place_of(node: &Node, path: &str) -> String {
        node.find(path).expect("the path exists").place.to_string()
    }

    #[test]
    fn every_value_knows_the_line_of_its_key() {
        let text = "a = 1\n\n[b]\nc = [\n 2,\n 3]\n\n[[d]]\ne.f = 4\n[[d]]\n";
        let document = parse_document("x.toml", text).expect("valid");
        assert_eq!(place_of(&document, "a"), "x.toml:1");
        assert_eq!(place_of(&document, "b"), "x.toml:3");
        assert_eq!(place_of(&document, "b.c"), "x.toml:4");
        let Some(Value::List(items)) = document.find("d").map(|node| &node.value) else {
            panic!("d is a list");
        };
        assert_eq!(items[0].place.to_string(), "x.toml:8");
        assert_eq!(items[1].place.to_string(), "x.toml:10");
        assert_eq!(place_of(&items[0], "e.f"), "x.toml:9");
    }

    #[test]
    fn overlay_merges_tables_and_replaces_lists() {
        let mut below = parse_document("a", "x = [1, 2]\n[t]\na = 1\nb = 2\n").expect("valid");
        below.overlay(parse_document("b", "x = [3]\n[t]\nb = 4\n").expect("valid"));
        assert_eq!(place_of(&below, "x"), "b:1");
        assert_eq!(place_of(&below, "t.a"), "a:3");
        assert_eq!(place_of(&below, "t.b"), "b:3");
    }

    #[test]
    fn an_integer_beyond_64_bits_is_refused_with_its_line() {
        let error = parse_document("x.toml", "\na = 99999999999999999999\n").expect_err("too big");
        assert!(error.to_string().contains("x.toml:2: a: found 99999999999999999999"), "{error}");
    }
}
