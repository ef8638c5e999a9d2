//! An alert as it was published, and where it and another one differ.
//!
//! Values are compared, not bytes: a published alert may have been printed anew by a tool. Integers
//! are compared as integers, whatever their length; other numbers as f64.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::Path;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::super::show;
use crate::detector::time::Timestamp;
use crate::error::Fatal;

/// What says which alert it is.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct Head {
    pub(super) alert_id: String,
    pub(super) revision: u32,
    pub(super) state: String,
    #[serde(deserialize_with = "show::instant")]
    pub(super) at: Timestamp,
    pub(super) reason: Option<String>,
    pub(super) policy: PolicyHead,
    pub(super) scope: String,
    pub(super) key: String,
}

#[derive(Debug, Clone, Deserialize)]
pub(super) struct PolicyHead {
    pub(super) id: String,
    pub(super) version: u32,
}

/// A published alert.
#[derive(Debug)]
pub(super) struct Published {
    /// Where it stands, for a person.
    pub(super) place: String,
    pub(super) event: Box<RawValue>,
    pub(super) head: Head,
}

impl Published {
    /// The alert of a file that holds one, or the one that `wanted` names: its number from 1, its
    /// `alert_id`, or the event's id with the revision.
    pub(super) fn read(path: &Path, wanted: Option<&str>) -> Result<Self, Fatal> {
        let shown = path.display();
        let events = read_events(path)?;
        let number = match wanted {
            Some(wanted) => find(&events, wanted).ok_or_else(|| {
                let count = events.len();
                Fatal::Config(format!(
                    "{shown}: no alert is {wanted:?}: right would be a number from 1 to {count}, \
                     an alert_id, or alert_id/revision"
                ))
            })?,
            None if events.len() == 1 => 0,
            None => {
                return Err(Fatal::Config(format!(
                    "{shown} holds {} alerts: say which with --alert, by number or id",
                    events.len()
                )));
            }
        };
        let event = events.into_iter().nth(number).expect("found just above");
        let head = head(&event).map_err(|error| {
            Fatal::Input(format!("{shown}: alert {} is none of ours: {error}", number + 1))
        })?;
        Ok(Self { place: format!("{shown}, alert {}", number + 1), event, head })
    }
}

/// Every JSON value of a file; `-` is standard input.
fn read_events(path: &Path) -> Result<Vec<Box<RawValue>>, Fatal> {
    let refuse = |error: &dyn std::fmt::Display| {
        Fatal::Input(format!("{}: cannot be read: {error}", path.display()))
    };
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        io::stdin().read_to_end(&mut bytes).map_err(|error| refuse(&error))?;
    } else {
        bytes = fs::read(path).map_err(|error| refuse(&error))?;
    }
    let mut values = serde_json::Deserializer::from_slice(&bytes).into_iter::<Box<RawValue>>();
    let mut events = Vec::new();
    for value in &mut values {
        events.push(value.map_err(|error| refuse(&error))?);
    }
    Ok(events)
}

fn head(event: &RawValue) -> Result<Head, serde_json::Error> {
    #[derive(Deserialize)]
    struct Event {
        data: Head,
    }
    serde_json::from_str::<Event>(event.get()).map(|event| event.data)
}

fn find(events: &[Box<RawValue>], wanted: &str) -> Option<usize> {
    // an alert_id of digits alone is longer than any number
    if let Ok(number) = wanted.parse::<u32>() {
        return (number as usize).checked_sub(1).filter(|index| *index < events.len());
    }
    events.iter().position(|event| {
        head(event).is_ok_and(|head| {
            head.alert_id == wanted || format!("{}/{}", head.alert_id, head.revision) == wanted
        })
    })
}

/// One value that is not the same on both sides; `None`: it is not there.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(super) struct Difference {
    /// From the event down; a slice is named by its end.
    pub(super) path: Vec<String>,
    pub(super) published: Option<String>,
    pub(super) rerun: Option<String>,
}

impl Difference {
    pub(super) fn is_under(&self, path: &[&str]) -> bool {
        self.path.len() >= path.len() && self.path.iter().zip(path).all(|(a, b)| a == b)
    }

    /// What the events give beyond what was published, of integers.
    pub(super) fn surplus(&self) -> Option<i128> {
        let number = |value: &Option<String>| match value {
            Some(text) => text.parse::<i128>().ok(),
            None => Some(0),
        };
        Some(number(&self.rerun)? - number(&self.published)?)
    }
}

/// What differs, and how many values were compared.
pub(super) fn compare(published: &RawValue, rerun: &RawValue) -> (Vec<Difference>, usize) {
    let (mut ours, mut theirs) = (Leaves::new(), Leaves::new());
    flatten(rerun, &mut Vec::new(), &mut ours);
    flatten(published, &mut Vec::new(), &mut theirs);
    let mut differences = Vec::new();
    let mut compared = 0;
    for (path, value) in &theirs {
        compared += 1;
        let rerun = ours.remove(path);
        if !rerun.as_ref().is_some_and(|rerun| value.equals(rerun)) {
            let (path, published) = (path.clone(), Some(value.text().to_owned()));
            let rerun = rerun.map(|leaf| leaf.text().to_owned());
            differences.push(Difference { path, published, rerun });
        }
    }
    compared += ours.len();
    differences.extend(ours.into_iter().map(|(path, value)| {
        let rerun = Some(value.text().to_owned());
        Difference { path, published: None, rerun }
    }));
    differences.sort_by(|a, b| a.path.cmp(&b.path));
    (differences, compared)
}

type Leaves = BTreeMap<Vec<String>, Leaf>;

#[derive(Debug)]
enum Leaf {
    Text(String),
    /// A number, `true`, `false`, `null`, or something empty, as written.
    Other(String),
}

impl Leaf {
    fn text(&self) -> &str {
        match self {
            Self::Text(text) | Self::Other(text) => text,
        }
    }

    fn equals(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Text(a), Self::Text(b)) => a == b,
            (Self::Other(a), Self::Other(b)) if a == b => true,
            (Self::Other(a), Self::Other(b)) => match (a.parse::<i128>(), b.parse::<i128>()) {
                (Ok(a), Ok(b)) => a == b,
                (Ok(_) | Err(_), Ok(_) | Err(_)) => {
                    a.parse::<f64>().is_ok_and(|a| b.parse() == Ok(a))
                }
            },
            (Self::Text(_), Self::Other(_)) | (Self::Other(_), Self::Text(_)) => false,
        }
    }
}

fn flatten(value: &RawValue, path: &mut Vec<String>, leaves: &mut Leaves) {
    let text = value.get();
    let mut put = |leaf: Leaf| {
        leaves.insert(path.clone(), leaf);
    };
    match text.as_bytes().first() {
        Some(b'{') => {
            let fields: BTreeMap<String, Box<RawValue>> =
                serde_json::from_str(text).unwrap_or_default();
            if fields.is_empty() {
                put(Leaf::Other("{}".into()));
            }
            for (name, value) in fields {
                path.push(name);
                flatten(&value, path, leaves);
                path.pop();
            }
        }
        Some(b'[') => {
            let items: Vec<Box<RawValue>> = serde_json::from_str(text).unwrap_or_default();
            if items.is_empty() {
                put(Leaf::Other("[]".into()));
            }
            for (index, value) in items.iter().enumerate() {
                path.push(slice_end(value).unwrap_or_else(|| (index + 1).to_string()));
                flatten(value, path, leaves);
                path.pop();
            }
        }
        Some(b'"') => put(Leaf::Text(serde_json::from_str(text).unwrap_or_default())),
        Some(_) | None => put(Leaf::Other(text.to_owned())),
    }
}

/// A slice goes by its end: one that is missing must not shift all others.
fn slice_end(value: &RawValue) -> Option<String> {
    #[derive(Deserialize)]
    struct Slice {
        end: String,
    }
    serde_json::from_str::<Slice>(value.get()).ok().map(|slice| slice.end)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn differences(published: &str, rerun: &str) -> Vec<(String, Option<String>, Option<String>)> {
        let raw = |text: &str| RawValue::from_string(text.to_owned()).expect("JSON");
        let (found, _) = compare(&raw(published), &raw(rerun));
        let plain = |found: Difference| (found.path.join("."), found.published, found.rerun);
        found.into_iter().map(plain).collect()
    }

    #[test]
    fn order_blanks_escapes_and_spelling_of_numbers_are_no_difference() {
        let published = r#"{ "b": 1e+24, "a": "gro\u00dfe", "c": [1.0, {}], "d": null }"#;
        let rerun = r#"{"a":"große","b":1e24,"c":[1,{}],"d":null}"#;
        assert_eq!(differences(published, rerun), []);
    }

    #[test]
    fn integers_beyond_f64_differ_by_one() {
        let found = differences("{\"a\":18446744073709551616}", "{\"a\":18446744073709551617}");
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn a_missing_slice_is_the_only_one_that_differs() {
        let published = r#"{"slices":[{"end":"a","n":1},{"end":"b","n":2},{"end":"c","n":3}]}"#;
        let rerun = r#"{"slices":[{"end":"a","n":1},{"end":"c","n":3}]}"#;
        let found = differences(published, rerun);
        let paths: Vec<&str> = found.iter().map(|(path, ..)| path.as_str()).collect();
        assert_eq!(paths, ["slices.b.end", "slices.b.n"]);
        assert!(found.iter().all(|(_, published, rerun)| published.is_some() && rerun.is_none()));
    }

    #[test]
    fn text_is_no_number_and_a_new_field_is_a_difference() {
        assert_eq!(differences("{\"a\":\"1\"}", "{\"a\":1}").len(), 1);
        assert_eq!(differences("{}", "{\"a\":1}").len(), 2);
    }
}
