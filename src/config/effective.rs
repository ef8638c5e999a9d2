//! The effective configuration as TOML: every key, defaults included, with its meaning; secrets
//! redacted, paths absolute, so that it loads to the same configuration from anywhere.

use std::fmt::Write;
use std::path::Path;

use super::client;
use super::globs;
use super::keys::{KEYS, Key, Kind};
use super::policies::{PRESET, Set, Sourced};
use super::policy::{CONDITION_KEYS, POLICY_KEYS};
use super::sections::{TIER_KEYS, cores};
use super::tree::{Node, Value};
use crate::detector::policy::Policy;

/// Where the comment of a key starts.
const COMMENT_COLUMN: usize = 44;

pub(super) fn print(tree: &Node, directory: &Path, policies: &Set) -> String {
    let mut out = String::new();
    let mut section = "";
    for key in KEYS {
        let node = tree.find(key.path).expect("every key has a default");
        match key.kind {
            Kind::Table => {
                print_table(&mut out, key, node, directory);
                section = key.path;
            }
            Kind::Tables => print_tables(&mut out, key, node),
            Kind::Text
            | Kind::Duration
            | Kind::Integer
            | Kind::Number
            | Kind::Boolean
            | Kind::List => {
                let (parent, name) = key.path.rsplit_once('.').unwrap_or(("", key.path));
                if parent != section {
                    section = parent;
                    line(&mut out, &format!("\n[{section}]"));
                }
                let value = value(&printable(key, node, directory));
                let comment = match (key.path, &node.value) {
                    ("kafka.workers", Value::Integer(0)) => {
                        format!("{} ({} here)", key.meaning, cores())
                    }
                    _ => key.meaning.to_owned(),
                };
                commented(&mut out, &format!("{name} = {value}"), &comment);
            }
        }
    }
    print_policies(&mut out, policies);
    out
}

fn line(out: &mut String, text: &str) {
    out.push_str(text);
    out.push('\n');
}

fn commented(out: &mut String, text: &str, comment: &str) {
    line(out, &format!("{text:<COMMENT_COLUMN$} # {comment}"));
}

/// The policies in force, as comments: what is configured stands above them.
fn print_policies(out: &mut String, policies: &Set) {
    line(out, "\n# policies in force: id, version, mode, hash, source");
    policies.list.iter().for_each(|sourced| print_policy(out, sourced));
    if !policies.left_out.is_empty() {
        line(out, "# left out of the default set, since no [[tier]] keeps their windows:");
        policies.left_out.iter().for_each(|sourced| print_policy(out, sourced));
    }
}

fn print_policy(out: &mut String, sourced: &Sourced) {
    let Policy { id, version, mode, hash, .. } = &sourced.policy;
    let source = sourced.source.as_deref().unwrap_or("[[policy]] above");
    line(out, &format!("# {id} {version} {} {hash} {source}", mode.name()));
}

fn print_table(out: &mut String, key: &Key, node: &Node, directory: &Path) {
    line(out, "");
    commented(out, &format!("[{}]", key.path), key.meaning);
    if key.path != client::SECTION {
        for (name, node) in node.entries() {
            line(out, &format!("{} = {}", quoted(name), value(node)));
        }
        return;
    }
    for (name, node) in client::flatten(node) {
        let text = if client::is_secret(&name) {
            quoted(client::REDACTED)
        } else if name.ends_with(client::FILE_SUFFIX) {
            value(&absolute(node, directory))
        } else {
            value(node)
        };
        line(out, &format!("{} = {text}", quoted(&name)));
    }
}

/// `[[tier]]`, `[[policy]]` and within it `[[policy.all]]`.
fn print_tables(out: &mut String, key: &Key, node: &Node) {
    for item in items(node) {
        line(out, "");
        commented(out, &format!("[[{}]]", key.path), key.meaning);
        let (nested, plain): (Vec<_>, Vec<_>) =
            in_order(item).into_iter().partition(|(_, node)| items(node).any(is_table));
        for (name, node) in plain {
            line(out, &format!("{} = {}", quoted(name), value(node)));
        }
        for (name, node) in nested {
            for item in items(node) {
                line(out, &format!("[[{}.{}]]", key.path, quoted(name)));
                for (name, node) in in_order(item) {
                    line(out, &format!("{} = {}", quoted(name), value(node)));
                }
            }
        }
    }
}

/// Entries as people write them: a tier's slice before its keep, a policy's id first.
fn in_order(table: &Node) -> Vec<(&String, &Node)> {
    let order = || TIER_KEYS.iter().chain(&POLICY_KEYS).chain(&CONDITION_KEYS);
    let mut entries: Vec<_> = table.entries().collect();
    entries.sort_by_key(|(name, _)| order().position(|known| known == name));
    entries
}

fn items(node: &Node) -> impl Iterator<Item = &Node> {
    match &node.value {
        Value::List(items) => items.as_slice(),
        Value::Text(_)
        | Value::Integer(_)
        | Value::Float(_)
        | Value::Boolean(_)
        | Value::Datetime(_)
        | Value::Table(_) => &[],
    }
    .iter()
}

const fn is_table(node: &Node) -> bool {
    matches!(node.value, Value::Table(_))
}

/// Paths are relative to the file that is read; what is printed may be saved anywhere.
fn printable(key: &Key, node: &Node, directory: &Path) -> Node {
    match (key.path, &node.value) {
        ("origin.geoip" | "notify.webhook.secret_file", Value::Text(text)) if !text.is_empty() => {
            absolute(node, directory)
        }
        ("catalogue.files", Value::List(items)) => Node {
            place: node.place.clone(),
            value: Value::List(items.iter().map(|item| absolute(item, directory)).collect()),
        },
        ("policies", Value::List(items)) => Node {
            place: node.place.clone(),
            value: Value::List(items.iter().map(|item| absolute_glob(item, directory)).collect()),
        },
        _ => node.clone(),
    }
}

fn absolute(node: &Node, directory: &Path) -> Node {
    replace_text(node, |text| {
        std::path::absolute(directory.join(text))
            .map_or_else(|_| text.to_owned(), |path| path.display().to_string())
    })
}

fn absolute_glob(node: &Node, directory: &Path) -> Node {
    replace_text(node, |text| {
        if text.starts_with(PRESET) || Path::new(text).is_absolute() {
            return text.to_owned();
        }
        match std::path::absolute(if directory.as_os_str().is_empty() {
            Path::new(".")
        } else {
            directory
        }) {
            Ok(directory) => format!("{}/{text}", globs::escape(&directory)),
            Err(_) => text.to_owned(),
        }
    })
}

fn replace_text(node: &Node, replace: impl FnOnce(&str) -> String) -> Node {
    let mut replaced = node.clone();
    if let Value::Text(text) = &mut replaced.value {
        *text = replace(text);
    }
    replaced
}

fn value(node: &Node) -> String {
    match &node.value {
        Value::Text(text) => toml::Value::String(text.clone()).to_string(),
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => format!("{number:?}"),
        Value::Boolean(flag) => flag.to_string(),
        Value::Datetime(text) => text.clone(),
        Value::List(items) => {
            let items: Vec<String> = items.iter().map(value).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Table(_) => {
            let mut entries = String::new();
            for (name, node) in node.entries() {
                let comma = if entries.is_empty() { "" } else { "," };
                write!(entries, "{comma} {} = {}", quoted(name), value(node))
                    .expect("a string takes everything");
            }
            format!("{{{entries} }}")
        }
    }
}

/// A key or text in the quotes that it needs.
fn quoted(name: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !name.is_empty() && name.chars().all(is_bare) {
        name.to_owned()
    } else {
        serde_json::Value::from(name).to_string()
    }
}
