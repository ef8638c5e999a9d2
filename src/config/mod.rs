//! The configuration tree: TOML, every key with a default, unknown keys refused.
//!
//! Layers: the defaults of `keys.rs`, the file, the environment. A `Config` is valid as a whole;
//! what is wrong is one line, `where: key: what was found; what would be right`. Paths are relative
//! to the configuration file's directory.

mod client;
mod countries;
mod duration;
mod effective;
mod environment;
mod field;
mod globs;
mod input;
mod keys;
mod notify;
mod policies;
mod policy;
mod sections;
mod shipped;
mod suggest;
#[cfg(test)]
mod tests;
mod tree;

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use client::REFUSED;
pub(crate) use client::is_secret;
pub(crate) use duration::parse as parse_duration;
pub use keys::{KEYS, Key, Kind};
pub use notify::{Alertmanager, Notify, Webhook};
pub use policies::{ConfigSource, load_candidate, load_policies};

use self::field::Field;
use self::policies::Base;
use self::policy::Surroundings;
use self::tree::{Node, wrong};
use crate::detector::policy::Policies;
use crate::detector::rules::Rules;
use crate::detector::time::Span;
use crate::error::Fatal;

type Result<T> = std::result::Result<T, Fatal>;

/// Everything a process needs, valid.
#[derive(Debug, Clone)]
pub struct Config {
    pub rules: Arc<Rules>,
    pub policies: Arc<Policies>,
    pub kafka: Kafka,
    pub topics: Topics,
    pub alerts_format: AlertFormat,
    /// Wall-clock silence after which a partition at its end is idle.
    pub idle_timeout: Duration,
    /// How far METER may run ahead of ACCOUNT on a worker.
    pub max_skew: Span,
    pub geoip: Option<PathBuf>,
    pub http_listen: SocketAddr,
    pub notify: Notify,
    /// For `load_policies` in a running process.
    pub source: ConfigSource,
    effective: String,
}

#[derive(Clone)]
pub struct Kafka {
    pub bootstrap_servers: String,
    pub group_id: String,
    /// Threads; already resolved: never 0.
    pub workers: usize,
    /// Already resolved: random when the configuration leaves it empty.
    pub instance: String,
    pub commit_interval: Duration,
    /// Verbatim librdkafka settings, secrets included: never print them.
    pub client: BTreeMap<String, String>,
}

/// Without the values of `client`, which may be secret.
impl fmt::Debug for Kafka {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Kafka")
            .field("bootstrap_servers", &self.bootstrap_servers)
            .field("group_id", &self.group_id)
            .field("workers", &self.workers)
            .field("instance", &self.instance)
            .field("commit_interval", &self.commit_interval)
            .field("client", &self.client.keys())
            .finish()
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    pub usage: String,
    pub accounts: String,
    pub account_usage: String,
    pub group_usage: String,
    pub alerts: String,
    pub shadow_alerts: String,
    pub dead_letters: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlertFormat {
    Json,
    Protobuf,
}

impl Config {
    /// The file, if one is given, over the defaults, and the environment over both.
    pub fn load(path: Option<&Path>) -> Result<Self> {
        Self::load_with(path, environment()?)
    }

    /// `load` with these variables for an environment.
    pub fn load_with(
        path: Option<&Path>,
        variables: impl IntoIterator<Item = (String, String)>,
    ) -> Result<Self> {
        let variables = environment::ours(variables);
        let base = path.map_or(Base::Defaults, |path| Base::File(path.to_owned()));
        Self::build(base, variables)
    }

    /// A configuration that is no file; `name` stands for one in messages.
    pub fn from_text(name: &str, text: &str) -> Result<Self> {
        Self::build(Base::Text { name: name.to_owned(), text: text.to_owned() }, Vec::new())
    }

    /// The effective configuration as TOML: every key, secrets redacted, policies listed.
    pub fn effective(&self) -> String {
        self.effective.clone()
    }

    fn build(base: Base, variables: Vec<(String, String)>) -> Result<Self> {
        let tree = &layers(&base, &variables)?;
        let mut source = ConfigSource {
            base,
            variables: variables.into_iter().filter(|(name, _)| is_about_policies(name)).collect(),
            tiers: Vec::new(),
        };
        let directory = source.directory().to_owned();
        let rules = sections::rules(tree, &directory)?;
        let (idle_timeout, max_skew) = sections::pace(tree, rules.time.epoch)?;
        source.tiers.clone_from(&rules.tiers);
        let around = Surroundings { tiers: &rules.tiers, lists: &rules.origin.lists };
        let policies = policies::read(tree, &directory, around)?;
        let topics = sections::topics(tree)?;
        Ok(Self {
            kafka: sections::kafka(tree, &directory)?,
            notify: notify::read(tree, &topics, &directory)?,
            topics,
            alerts_format: sections::alerts_format(tree)?,
            idle_timeout,
            max_skew,
            geoip: sections::geoip(tree, &directory)?,
            http_listen: sections::address(tree, "http.listen")?,
            effective: effective::print(tree, &directory, &policies),
            rules: Arc::new(rules),
            policies: Arc::new(policies.in_force()),
            source,
        })
    }
}

/// Of the environment only what concerns a reload is kept: no secret.
fn is_about_policies(variable: &str) -> bool {
    let prefixes = ["FLOPWATCH__POLICIES", "FLOPWATCH__POLICY", "FLOPWATCH__LISTS"];
    prefixes.iter().any(|prefix| variable.starts_with(prefix))
}

fn environment() -> Result<Vec<(String, String)>> {
    let mut variables = Vec::new();
    for (name, value) in std::env::vars_os() {
        let Ok(name) = name.into_string() else {
            continue;
        };
        match value.into_string() {
            Ok(value) => variables.push((name, value)),
            Err(_) if name.starts_with("FLOPWATCH__") => {
                return Err(Fatal::Config(format!("{name}: the value is not UTF-8")));
            }
            Err(_) => {}
        }
    }
    Ok(variables)
}

/// Defaults, file and environment as one tree in which every key has a value.
fn layers(base: &Base, variables: &[(String, String)]) -> Result<Node> {
    let mut tree = keys::defaults();
    match base {
        Base::Defaults => {}
        Base::Text { name, text } => overlay_document(&mut tree, name, text)?,
        Base::File(path) => {
            let name = path.display().to_string();
            let text = fs::read_to_string(path).map_err(|error| {
                Fatal::Config(format!("{name}: cannot read the configuration file: {error}"))
            })?;
            overlay_document(&mut tree, &name, &text)?;
        }
    }
    environment::overlay(&mut tree, variables)?;
    Ok(tree)
}

fn overlay_document(tree: &mut Node, name: &str, text: &str) -> Result<()> {
    let mut document = tree::parse_document(name, text)?;
    refuse_unknown(&document, "")?;
    client::normalise(&mut document)?;
    tree.overlay(document);
    Ok(())
}

/// Refuses keys that no one reads, and sections that are no tables.
fn refuse_unknown(node: &Node, section: &str) -> Result<()> {
    let children = keys::children(section);
    for (name, node) in node.entries() {
        let path = if section.is_empty() { name.clone() } else { format!("{section}.{name}") };
        if let Some(key) = keys::find(&path) {
            if key.kind == Kind::Table {
                Field::new(&path, node).table()?;
            }
        } else if children.contains(&name.as_str()) {
            Field::new(&path, node).table()?;
            refuse_unknown(node, &path)?;
        } else {
            return Err(wrong(&node.place, &path, "unknown key", &right_key(name, &children)));
        }
    }
    Ok(())
}

/// The nearest key here, or the same one in another section.
fn right_key(name: &str, here: &[&str]) -> String {
    let elsewhere = || {
        let key = KEYS.iter().find(|key| key.path.rsplit('.').next() == Some(name))?;
        Some(format!("did you mean {:?}?", key.path))
    };
    match suggest::nearest(name, here.iter().copied()) {
        Some(near) => format!("did you mean {near:?}?"),
        None => elsewhere().unwrap_or_else(|| suggest::one_of(here)),
    }
}

/// A key of the merged tree.
fn field_of<'a>(tree: &'a Node, path: &str) -> Field<'a> {
    Field::new(path, tree.find(path).expect("every key has a default"))
}
