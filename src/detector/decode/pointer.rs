//! JSON pointers (RFC 6901), many at once: one pass over a document finds the raw text of every
//! value that a set of pointers names.
//!
//! A pointer may step into a string that itself holds JSON, as OpenMeter's `data` does. A pointer
//! that leads nowhere finds nothing; of repeated names the last counts.

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::json::check_nesting;
use super::scalar;
use crate::detector::invalid::Invalid;

/// A tree of pointers: each node is one step from its parent.
#[derive(Debug, Clone, Default)]
pub(super) struct Pointers {
    name: String,
    /// The name as an index into an array.
    index: Option<usize>,
    /// The slots of the pointers that end here.
    slots: Vec<usize>,
    children: Vec<Self>,
}

/// Raw JSON text by slot.
pub(super) type Found<'a, const N: usize> = [Option<Cow<'a, str>>; N];

impl Pointers {
    /// Adds a pointer whose value goes to `slot`; the error says what would be right.
    pub(super) fn add(&mut self, pointer: &str, slot: usize) -> Result<(), String> {
        let mut node = self;
        if !pointer.is_empty() {
            let steps = pointer.strip_prefix('/').ok_or_else(|| {
                format!("pointer `{pointer}` must begin with `/`, as in `/data/gpu_hours`")
            })?;
            for step in steps.split('/') {
                node = node.child(unescape(step).ok_or_else(|| {
                    format!("pointer `{pointer}` has a `~` that is neither `~0` (~) nor `~1` (/)")
                })?);
            }
        }
        node.slots.push(slot);
        Ok(())
    }

    fn child(&mut self, name: String) -> &mut Self {
        let known = self.children.iter().position(|child| child.name == name);
        let position = known.unwrap_or_else(|| {
            let digits = name.bytes().all(|byte| byte.is_ascii_digit());
            let is_index = digits && (name == "0" || !name.starts_with('0'));
            let index = is_index.then(|| name.parse().ok()).flatten();
            self.children.push(Self { name, index, ..Self::default() });
            self.children.len() - 1
        });
        &mut self.children[position]
    }

    /// Finds every value in a document.
    pub(super) fn find<'a, const N: usize>(&self, text: &'a str) -> Result<Found<'a, N>, Invalid> {
        let refuse = |error: String| Invalid::undecodable(format!("json: {error}"));
        check_nesting(text).map_err(|error| refuse(error.to_owned()))?;
        let document: &RawValue =
            serde_json::from_str(text).map_err(|error| refuse(error.to_string()))?;
        let mut found = [const { None }; N];
        self.visit(document.get(), &mut found).map_err(|error| refuse(error.to_string()))?;
        Ok(found)
    }

    /// Takes what is asked for at a value, and below it.
    fn visit<'a, const N: usize>(
        &self,
        raw: &'a str,
        found: &mut Found<'a, N>,
    ) -> Result<(), serde_json::Error> {
        for &slot in &self.slots {
            found[slot] = (raw != "null").then_some(Cow::Borrowed(raw));
        }
        self.descend(raw, found)
    }

    /// Takes what is asked for below a value.
    fn descend<'a, const N: usize>(
        &self,
        raw: &'a str,
        found: &mut Found<'a, N>,
    ) -> Result<(), serde_json::Error> {
        if self.children.is_empty() {
            return Ok(());
        }
        if raw.starts_with(['{', '[']) {
            let mut deserializer = serde_json::Deserializer::from_str(raw);
            Walk { node: self, found }.deserialize(&mut deserializer)?;
        } else if raw.starts_with('"')
            && let Ok(inner) = scalar::text("", raw)
            && check_nesting(&inner).is_ok()
            && let Ok(document) = serde_json::from_str::<&RawValue>(&inner)
        {
            let mut below: Found<'_, N> = [const { None }; N];
            self.descend(document.get(), &mut below)?;
            for (slot, value) in below.into_iter().enumerate() {
                if let Some(value) = value {
                    found[slot] = Some(Cow::Owned(value.into_owned()));
                }
            }
        }
        Ok(())
    }
}

fn unescape(step: &str) -> Option<String> {
    let mut parts = step.split('~');
    let mut name = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (escape, rest) = part.split_at_checked(1)?;
        name.push(match escape {
            "0" => '~',
            "1" => '/',
            _ => return None,
        });
        name.push_str(rest);
    }
    Some(name)
}

/// Visits the values of an object or array that a node's children name.
struct Walk<'n, 'f, 'a, const N: usize> {
    node: &'n Pointers,
    found: &'f mut Found<'a, N>,
}

impl<'a, const N: usize> DeserializeSeed<'a> for Walk<'_, '_, 'a, N> {
    type Value = ();

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'a, const N: usize> Visitor<'a> for Walk<'_, '_, 'a, N> {
    type Value = ();

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object or array")
    }

    fn visit_map<A: MapAccess<'a>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(child) = map.next_key_seed(ChildNamed(&self.node.children))? {
            let value: &RawValue = map.next_value()?;
            if let Some(child) = child {
                child.visit(value.get(), self.found).map_err(A::Error::custom)?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'a>>(self, mut sequence: A) -> Result<(), A::Error> {
        let mut index = 0;
        while let Some(value) = sequence.next_element::<&RawValue>()? {
            for child in self.node.children.iter().filter(|child| child.index == Some(index)) {
                child.visit(value.get(), self.found).map_err(A::Error::custom)?;
            }
            index += 1;
        }
        Ok(())
    }
}

/// Turns a name into the child that bears it.
struct ChildNamed<'n>(&'n [Pointers]);

impl<'a, 'n> DeserializeSeed<'a> for ChildNamed<'n> {
    type Value = Option<&'n Pointers>;

    fn deserialize<D: Deserializer<'a>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_identifier(self)
    }
}

impl<'n> Visitor<'_> for ChildNamed<'n> {
    type Value = Option<&'n Pointers>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Self::Value, E> {
        Ok(self.0.iter().find(|child| child.name == name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find<const N: usize>(pointers: [&str; N], text: &str) -> [Option<String>; N] {
        let mut tree = Pointers::default();
        for (slot, pointer) in pointers.iter().enumerate() {
            tree.add(pointer, slot).expect("a valid pointer");
        }
        let found: Found<'_, N> = tree.find(text).expect("valid JSON");
        found.map(|value| value.map(Cow::into_owned))
    }

    #[test]
    fn pointers_resolve_as_rfc_6901_says() {
        // the RFC's own example, section 5
        let text = r#"{"foo":["bar","baz"],"":0,"a/b":1,"c%d":2,"e^f":3,"g|h":4,"i\\j":5,
            "k\"l":6," ":7,"m~n":8}"#;
        let pointers = ["/foo/0", "/foo/1", "/", "/a~1b", "/c%d", "/i\\j", "/k\"l", "/ ", "/m~0n"];
        let expected = ["\"bar\"", "\"baz\"", "0", "1", "2", "5", "6", "7", "8"];
        assert_eq!(find(pointers, text), expected.map(|value| Some(value.to_owned())));
        assert_eq!(find([""], "5"), [Some("5".to_owned())]);
    }

    #[test]
    fn what_leads_nowhere_finds_nothing() {
        let pointers = ["/a/b", "/c", "/d/01", "/d/-", "/d/9", "/e/x", "/f/x"];
        let text = r#"{"a":5,"c":null,"d":[1],"e":"{\"x\":","f":"text"}"#;
        assert_eq!(find(pointers, text), [const { None }; 7]);
    }

    #[test]
    fn a_pointer_steps_into_strings_that_hold_json() {
        let text = r#"{"data":"{\"gpu\":{\"hours\":\"8\"},\"more\":\"[1,{\\\"x\\\":2}]\"}"}"#;
        let pointers = ["/data/gpu/hours", "/data/more/1/x", "/data/gpu"];
        let expected = ["\"8\"", "2", r#"{"hours":"8"}"#];
        assert_eq!(find(pointers, text), expected.map(|value| Some(value.to_owned())));
    }

    #[test]
    fn a_value_and_a_part_of_it_are_found_together_and_shared() {
        let pointers = ["/a", "/a/b", "/a/b"];
        let expected = [r#"{"b":1}"#, "1", "1"].map(|value| Some(value.to_owned()));
        assert_eq!(find(pointers, r#"{"a":{"b":1}}"#), expected);
    }

    #[test]
    fn malformed_pointers_are_refused_with_what_would_be_right() {
        let mut tree = Pointers::default();
        let error = tree.add("data/x", 0).expect_err("no slash");
        assert!(error.contains("must begin with `/`"), "{error}");
        for wrong in ["/a~2b", "/a~", "/~é"] {
            assert!(tree.add(wrong, 0).is_err(), "{wrong}");
        }
    }

    #[test]
    fn hostile_nesting_is_refused_without_stack() {
        let mut tree = Pointers::default();
        tree.add("/a", 0).expect("a valid pointer");
        let text = format!("{{\"a\":{}{}}}", "[".repeat(500_000), "]".repeat(500_000));
        assert!(tree.find::<1>(&text).is_err());
    }
}
