//! `[kafka.client]`: librdkafka settings passed through, secrets from files, and the settings that
//! are ours alone because another value would break exactness.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;

use super::Result;
use super::field::Field;
use super::tree::{Node, Value};

/// Where these settings stand.
pub(super) const SECTION: &str = "kafka.client";
/// `sasl.password_file` reads `sasl.password` from the file.
pub(super) const FILE_SUFFIX: &str = "_file";
/// What stands for a secret wherever configuration is printed.
pub(super) const REDACTED: &str = "<redacted>";

const OFFSETS: &str = "positions are committed inside the transaction, never beside it";
const PRODUCER: &str = "the transactional producer needs its own value";
const GROUP: &str = "who owns a partition is part of the exactly-once argument";
const CODE: &str = "a setting that is code cannot be set here";

/// Settings that are refused, each with its reason.
pub const REFUSED: &[(&str, &str)] = &[
    ("enable.auto.commit", OFFSETS),
    ("auto.commit.enable", OFFSETS),
    ("auto.commit.interval.ms", OFFSETS),
    ("enable.auto.offset.store", OFFSETS),
    ("offset.store.method", OFFSETS),
    ("offset.store.path", OFFSETS),
    ("offset.store.sync.interval.ms", OFFSETS),
    ("auto.offset.reset", "a lost position must stop the process, not skip or repeat records"),
    ("isolation.level", "records of aborted transactions must never be read"),
    ("enable.partition.eof", "the end of a partition is how an idle one is told"),
    ("transactional.id", "kafka.group_id and kafka.instance make it: set those"),
    ("enable.idempotence", PRODUCER),
    ("enable.gapless.guarantee", PRODUCER),
    ("acks", PRODUCER),
    ("request.required.acks", PRODUCER),
    ("max.in.flight", PRODUCER),
    ("max.in.flight.requests.per.connection", PRODUCER),
    ("retries", PRODUCER),
    ("message.send.max.retries", PRODUCER),
    ("partitioner", "the partition of a key is part of the contract between the stages"),
    ("group.id", "set kafka.group_id"),
    ("group.instance.id", "kafka.group_id and kafka.instance make it: set those"),
    ("group.protocol", GROUP),
    ("group.protocol.type", GROUP),
    ("group.remote.assignor", GROUP),
    ("partition.assignment.strategy", GROUP),
    ("bootstrap.servers", "set kafka.bootstrap_servers"),
    ("metadata.broker.list", "set kafka.bootstrap_servers"),
    ("allow.auto.create.topics", "topics need the right partitions: `flopwatch topics` makes them"),
    ("plugin.library.paths", "an interceptor may change what is read and written"),
    ("opaque", CODE),
    ("default_topic_conf", CODE),
];

/// Parts of names whose values are never printed.
const SECRET: [&str; 7] = [
    "password",
    "secret",
    "passphrase",
    "key.pem",
    "ssl_key",
    "oauthbearer.config",
    "keystore.pem",
];

/// Whether a setting's value is never printed.
pub(crate) fn is_secret(setting: &str) -> bool {
    !setting.ends_with(FILE_SUFFIX) && SECRET.iter().any(|part| setting.contains(part))
}

/// `SASL_PASSWORD_FILE` of a variable's name, lower case, is the setting `sasl.password_file`.
pub(super) fn setting_of_variable(name: &str) -> String {
    match name.strip_suffix(FILE_SUFFIX) {
        Some(plain) if !plain.is_empty() => format!("{}{FILE_SUFFIX}", plain.replace('_', ".")),
        Some(_) | None => name.replace('_', "."),
    }
}

/// Joins the nested tables that dotted keys without quotes are: `sasl.mechanism = "PLAIN"`.
pub(super) fn normalise(document: &mut Node) -> Result<()> {
    let Some(section) = document.entry_mut("kafka").and_then(|kafka| kafka.entry_mut("client"))
    else {
        return Ok(());
    };
    let mut settings = BTreeMap::new();
    for (name, node) in flatten(section) {
        if settings.insert(name.clone(), node.clone()).is_some() {
            let field = Field::new(&format!("{SECTION}.{name}"), node);
            return Err(field.wrong("it is given twice", "right would be once"));
        }
    }
    section.value = Value::Table(settings);
    Ok(())
}

/// Settings by their dotted names, in order.
pub(super) fn flatten(section: &Node) -> Vec<(String, &Node)> {
    let mut settings = Vec::new();
    let mut waiting: Vec<(String, &Node)> =
        section.entries().map(|(name, node)| (name.clone(), node)).collect();
    while let Some((name, node)) = waiting.pop() {
        if matches!(node.value, Value::Table(_)) {
            waiting.extend(node.entries().map(|(tail, node)| (format!("{name}.{tail}"), node)));
        } else {
            settings.push((name, node));
        }
    }
    settings.sort_by(|(left, _), (right, _)| left.cmp(right));
    settings
}

/// Reads, checks and completes the settings. No message holds a value.
pub(super) fn read(section: &Node, directory: &Path) -> Result<BTreeMap<String, String>> {
    let mut settings = BTreeMap::new();
    for (name, node) in flatten(section) {
        let field = Field::new(&format!("{SECTION}.{name}"), node);
        let setting = name.strip_suffix(FILE_SUFFIX).unwrap_or(&name).to_owned();
        refuse_ours(&field, &setting)?;
        let value = match setting == name {
            true => verbatim(&field)?,
            false => read_secret(&field, directory)?,
        };
        check_with_librdkafka(&field, &setting, &value)?;
        if settings.insert(setting.clone(), value).is_some() {
            let found = format!("{setting} is given twice");
            return Err(field.wrong(&found, "right would be the value or its file, not both"));
        }
    }
    Ok(settings)
}

fn refuse_ours(field: &Field<'_>, setting: &str) -> Result<()> {
    let reason = match REFUSED.iter().find(|(refused, _)| *refused == setting) {
        Some((_, reason)) => reason,
        None if setting.ends_with("_cb") => CODE,
        None => return Ok(()),
    };
    Err(field.wrong("this setting is flopwatch's own", &format!("leave it out: {reason}")))
}

fn verbatim(field: &Field<'_>) -> Result<String> {
    match &field.node.value {
        Value::Text(text) => Ok(text.clone()),
        Value::Integer(number) => Ok(number.to_string()),
        Value::Float(number) => Ok(number.to_string()),
        Value::Boolean(flag) => Ok(flag.to_string()),
        Value::Datetime(_) | Value::List(_) | Value::Table(_) => {
            Err(field.wrong("not one value", "right would be a text, a number, true or false"))
        }
    }
}

/// The file's text without the line break at its end.
fn read_secret(field: &Field<'_>, directory: &Path) -> Result<String> {
    let path = directory.join(field.nonempty_text()?);
    let text = fs::read_to_string(&path).map_err(|error| {
        let found = format!("cannot read {}: {error}", path.display());
        field.wrong(&found, "right would be a readable text file that holds the value")
    })?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    Ok(text.strip_suffix('\r').unwrap_or(text).to_owned())
}

/// librdkafka knows its names and ranges best; its own words may repeat a value, so they are only
/// passed on for settings that are no secret.
fn check_with_librdkafka(field: &Field<'_>, setting: &str, value: &str) -> Result<()> {
    let mut settings = ClientConfig::new();
    settings.set(setting, value);
    let Err(error) = settings.create_native_config() else {
        return Ok(());
    };
    let mut found = "librdkafka refuses it".to_owned();
    if let KafkaError::ClientConfig(_, words, _, _) = &error
        && !is_secret(setting)
    {
        found = format!("{found}: {words}");
    }
    Err(field.wrong(&found, "see librdkafka's CONFIGURATION.md for names and values"))
}
