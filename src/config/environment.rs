//! The layer above the file: `FLOPWATCH__KAFKA__GROUP_ID=x` is `kafka.group_id = "x"`.
//!
//! A value is taken as its key's type: text as it stands, everything else as TOML. Settings of
//! `[kafka.client]` have dots, which variables cannot: `FLOPWATCH__KAFKA__CLIENT__SASL_USERNAME`.

use super::keys::{self, KEYS, Kind};
use super::tree::{Node, Place, Value, parse_value, wrong};
use super::{Result, client, suggest};

const PREFIX: &str = "FLOPWATCH__";

/// Variables of ours, in order of name.
pub(super) fn ours(variables: impl IntoIterator<Item = (String, String)>) -> Vec<(String, String)> {
    let mut ours: Vec<(String, String)> =
        variables.into_iter().filter(|(name, _)| name.starts_with(PREFIX)).collect();
    ours.sort();
    ours
}

/// Lays every variable over the tree; an unknown one is refused.
pub(super) fn overlay(tree: &mut Node, variables: &[(String, String)]) -> Result<()> {
    for (name, text) in variables {
        overlay_one(tree, name, text)?;
    }
    Ok(())
}

fn overlay_one(tree: &mut Node, name: &str, text: &str) -> Result<()> {
    let place = Place::Variable(name.into());
    let unknown = || {
        let known: Vec<String> = KEYS.iter().map(|key| variable(key.path)).collect();
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        let right = suggest::nearest(name, known).map_or_else(
            || {
                "right would be FLOPWATCH__SECTION__KEY of a key that `flopwatch check` prints"
                    .to_owned()
            },
            |name| format!("did you mean {name}?"),
        );
        wrong(&place, "environment", "unknown variable", &right)
    };
    let path = name.strip_prefix(PREFIX).filter(|rest| *rest == rest.to_ascii_uppercase());
    let path = path.ok_or_else(unknown)?.to_ascii_lowercase().replace("__", ".");
    if let Some(key) = keys::find(&path) {
        tree.insert(&path, typed(&place, key.kind, text));
        return Ok(());
    }
    let (table, entry) = path.rsplit_once('.').ok_or_else(unknown)?;
    if entry.is_empty() || keys::find(table).is_none_or(|key| key.kind != Kind::Table) {
        return Err(unknown());
    }
    let mut layer = Node::table(place.clone());
    if table == client::SECTION {
        let setting = client::setting_of_variable(entry);
        drop_twin(tree, &setting);
        // Never parsed: a password may look like TOML.
        layer.put(&setting, Node { place, value: Value::Text(text.to_owned()) });
    } else {
        layer.put(entry, typed(&place, Kind::Table, text));
    }
    tree.insert(table, layer);
    Ok(())
}

/// A secret from the environment replaces the file's, in whichever of its two forms that is.
fn drop_twin(tree: &mut Node, setting: &str) {
    let twin = match setting.strip_suffix(client::FILE_SUFFIX) {
        Some(plain) => plain.to_owned(),
        None => format!("{setting}{}", client::FILE_SUFFIX),
    };
    if let Some(client) = tree.entry_mut("kafka").and_then(|kafka| kafka.entry_mut("client")) {
        client.remove(&twin);
    }
}

/// The value by its key's type; what is no such value stays text, and is refused by the reader.
fn typed(place: &Place, kind: Kind, text: &str) -> Node {
    let verbatim = || Node { place: place.clone(), value: Value::Text(text.to_owned()) };
    match kind {
        Kind::Text | Kind::Duration => match parse_value(place, text) {
            Some(Node { place, value: Value::Text(quoted) }) => {
                Node { place, value: Value::Text(quoted) }
            }
            Some(_) | None => verbatim(),
        },
        Kind::Integer | Kind::Number | Kind::Boolean | Kind::List | Kind::Tables | Kind::Table => {
            parse_value(place, text).unwrap_or_else(verbatim)
        }
    }
}

fn variable(path: &str) -> String {
    format!("{PREFIX}{}", path.replace('.', "__").to_ascii_uppercase())
}
