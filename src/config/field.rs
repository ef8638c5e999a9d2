//! Typed reading of a tree: each reader returns a value that needs no further check, or the one
//! line that says what would be right.

use std::collections::BTreeMap;

use super::tree::{Node, Place, Value, wrong};
use super::{Result, countries, duration, suggest};
use crate::detector::directory::Country;
use crate::detector::time::Span;
use crate::error::Fatal;

const DURATION: &str = "right would be a duration such as \"200ms\", \"5m\", \"1h30m\" or \"30d\"";

/// A value and the path by which messages name it.
#[derive(Debug, Clone)]
pub(super) struct Field<'a> {
    pub(super) path: String,
    pub(super) node: &'a Node,
}

/// A table whose keys are known.
#[derive(Debug, Clone)]
pub(super) struct Table<'a> {
    path: String,
    place: &'a Place,
    entries: &'a BTreeMap<String, Node>,
}

impl<'a> Table<'a> {
    /// Refuses every key that is not in `known`.
    pub(super) fn refuse_unknown(&self, known: &[&str]) -> Result<()> {
        match self.entries.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            Some((name, node)) => Err(wrong(
                &node.place,
                &self.path_of(name),
                "unknown key",
                &suggest::did_you_mean(name, known),
            )),
            None => Ok(()),
        }
    }

    pub(super) fn field(&self, name: &str) -> Option<Field<'a>> {
        let node = self.entries.get(name)?;
        Some(Field { path: self.path_of(name), node })
    }

    /// A field that has no default.
    pub(super) fn required(&self, name: &str, right: &str) -> Result<Field<'a>> {
        self.field(name)
            .ok_or_else(|| wrong(self.place, &self.path_of(name), "it is missing", right))
    }

    pub(super) fn fields(&self) -> impl Iterator<Item = (&'a String, Field<'a>)> {
        self.entries.iter().map(|(name, node)| (name, Field { path: self.path_of(name), node }))
    }

    /// An error about the table as a whole.
    pub(super) fn wrong(&self, name: &str, found: &str, right: &str) -> Fatal {
        wrong(self.place, &self.path_of(name), found, right)
    }

    fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }
}

impl<'a> Field<'a> {
    pub(super) fn new(path: &str, node: &'a Node) -> Self {
        Self { path: path.to_owned(), node }
    }

    pub(super) fn wrong(&self, found: &str, right: &str) -> Fatal {
        wrong(&self.node.place, &self.path, found, right)
    }

    /// The value is of the right type and yet cannot be.
    pub(super) fn refuse(&self, right: &str) -> Fatal {
        self.wrong(&self.node.value.describe(), right)
    }

    /// An error about keys that do not fit together: it stands where the operator wrote one.
    pub(super) fn misfit(fields: &[&Self], found: &str, right: &str) -> Fatal {
        let written = fields.iter().find(|field| field.node.place != Place::Default);
        written.unwrap_or(&fields[0]).wrong(found, right)
    }

    pub(super) fn text(&self) -> Result<&'a str> {
        match &self.node.value {
            Value::Text(text) => Ok(text),
            Value::Integer(_)
            | Value::Float(_)
            | Value::Boolean(_)
            | Value::Datetime(_)
            | Value::List(_)
            | Value::Table(_) => Err(self.refuse("right would be a text in quotes")),
        }
    }

    pub(super) fn nonempty_text(&self) -> Result<&'a str> {
        match self.text()? {
            "" => Err(self.refuse("right would be a text that is not empty")),
            text => Ok(text),
        }
    }

    pub(super) fn boolean(&self) -> Result<bool> {
        match &self.node.value {
            Value::Boolean(flag) => Ok(*flag),
            Value::Text(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Datetime(_)
            | Value::List(_)
            | Value::Table(_) => Err(self.refuse("right would be true or false")),
        }
    }

    /// A whole number from `least` to `most`.
    pub(super) fn integer(&self, least: u64, most: u64) -> Result<u64> {
        let number = match &self.node.value {
            Value::Integer(number) => u64::try_from(*number).ok(),
            Value::Text(_)
            | Value::Float(_)
            | Value::Boolean(_)
            | Value::Datetime(_)
            | Value::List(_)
            | Value::Table(_) => None,
        };
        number.filter(|number| (least..=most).contains(number)).ok_or_else(|| {
            self.refuse(&format!("right would be a whole number from {least} to {most}"))
        })
    }

    /// A finite number above 0.
    pub(super) fn positive(&self) -> Result<f64> {
        let number = match &self.node.value {
            #[expect(clippy::cast_precision_loss, reason = "thresholds are f64 by contract")]
            Value::Integer(number) => *number as f64,
            Value::Float(number) => *number,
            Value::Text(_)
            | Value::Boolean(_)
            | Value::Datetime(_)
            | Value::List(_)
            | Value::Table(_) => f64::NAN,
        };
        if number.is_finite() && number > 0.0 {
            Ok(number)
        } else {
            Err(self.refuse("right would be a finite number above 0"))
        }
    }

    pub(super) fn duration(&self) -> Result<Span> {
        match &self.node.value {
            Value::Text(text) => {
                duration::parse(text).map_err(|found| self.wrong(&found, DURATION))
            }
            Value::Integer(_)
            | Value::Float(_)
            | Value::Boolean(_)
            | Value::Datetime(_)
            | Value::List(_)
            | Value::Table(_) => Err(self.refuse(DURATION)),
        }
    }

    pub(super) fn positive_duration(&self) -> Result<Span> {
        match self.duration()? {
            Span(0) => Err(self.refuse("right would be a duration above 0")),
            span => Ok(span),
        }
    }

    /// One of a closed set, by name.
    pub(super) fn choice<T: Copy>(&self, all: &[T], name: fn(T) -> &'static str) -> Result<T> {
        let text = self.text()?;
        all.iter().copied().find(|candidate| name(*candidate) == text).ok_or_else(|| {
            let names: Vec<&str> = all.iter().map(|candidate| name(*candidate)).collect();
            self.refuse(&suggest::one_of(&names))
        })
    }

    pub(super) fn country(&self) -> Result<Country> {
        countries::parse(self.text()?).map_err(|right| self.refuse(&right))
    }

    pub(super) fn list(&self) -> Result<Vec<Self>> {
        match &self.node.value {
            Value::List(items) => {
                Ok(items.iter().map(|node| Self { path: self.path.clone(), node }).collect())
            }
            Value::Text(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Boolean(_)
            | Value::Datetime(_)
            | Value::Table(_) => Err(self.refuse("right would be a list: [\"...\", \"...\"]")),
        }
    }

    pub(super) fn texts(&self) -> Result<Vec<&'a str>> {
        self.list()?.iter().map(Self::text).collect()
    }

    /// A list of countries, sorted, without repeats.
    pub(super) fn countries(&self) -> Result<Vec<Country>> {
        let mut countries: Vec<Country> =
            self.list()?.iter().map(Self::country).collect::<Result<_>>()?;
        countries.sort_unstable();
        countries.dedup();
        Ok(countries)
    }

    pub(super) fn table(&self) -> Result<Table<'a>> {
        match &self.node.value {
            Value::Table(entries) => {
                Ok(Table { path: self.path.clone(), place: &self.node.place, entries })
            }
            Value::Text(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Boolean(_)
            | Value::Datetime(_)
            | Value::List(_) => {
                Err(self.refuse(&format!("right would be a table: [{}]", self.path)))
            }
        }
    }

    /// A list of tables: `[[path]]`.
    pub(super) fn tables(&self) -> Result<Vec<Table<'a>>> {
        let right = format!("right would be tables: [[{}]]", self.path);
        let items = self.list().map_err(|_| self.refuse(&right))?;
        items.iter().map(|item| item.table().map_err(|_| item.refuse(&right))).collect()
    }
}
