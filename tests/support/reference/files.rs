//! Writes a case as the files that a replay reads.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::reference::input::{
    DAY, DirectoryLine, Event, Field, HOUR, Line, MINUTE, Metric, Nanos, OriginMatch, Policy,
    SECOND, Scenario, Settings,
};

/// Writes configuration, directory and usage into `folder`; gives the paths of the usage files.
pub(crate) fn write(scenario: &Scenario, folder: &Path) -> Vec<PathBuf> {
    let save = |name: &str, text: String| {
        let path = folder.join(name);
        std::fs::write(&path, text).expect("the temporary folder can be written");
        path
    };
    save("flopwatch.toml", configuration(scenario));
    let entries = scenario.directory.iter().map(|line| directory_line(line).to_string() + "\n");
    save("accounts.ndjson", entries.collect());
    let partitions = scenario.partitions.iter().enumerate();
    let files = partitions.map(|(place, lines)| {
        let text = lines.iter().map(|line| usage_line(line) + "\n").collect();
        save(&format!("usage-{place}.ndjson"), text)
    });
    files.collect()
}

/// The text of one record, without its line end.
pub(crate) fn usage_line(line: &Line) -> String {
    match line {
        Line::Garbage(text) => (*text).to_owned(),
        Line::Event(event) => event_json(event).to_string(),
    }
}

/// A span in the largest unit that divides it.
pub(crate) fn span(length: Nanos) -> String {
    for (unit, name) in [(DAY, "d"), (HOUR, "h"), (MINUTE, "m"), (SECOND, "s")] {
        if length != 0 && length % unit == 0 {
            return format!("{}{name}", length / unit);
        }
    }
    assert_eq!(length, 0, "configured spans are whole seconds");
    "0s".to_owned()
}

pub(crate) fn rfc3339(instant: Nanos) -> String {
    jiff::Timestamp::from_nanosecond(instant).expect("an instant of this era").to_string()
}

fn quoted(names: impl IntoIterator<Item = &'static str>) -> String {
    let names: Vec<String> = names.into_iter().map(|name| format!("\"{name}\"")).collect();
    format!("[{}]", names.join(", "))
}

fn configuration(scenario: &Scenario) -> String {
    let Settings { epoch, lateness, dedup_horizon, max_future, max_interval, .. } =
        scenario.settings;
    let settings = &scenario.settings;
    let mut text = String::from("[time]\n");
    let spans = [
        ("epoch", epoch),
        ("lateness", lateness),
        ("dedup_horizon", dedup_horizon),
        ("max_future", max_future),
        ("max_interval", max_interval),
    ];
    for (name, length) in spans {
        line(&mut text, name, &format!("\"{}\"", span(length)));
    }
    for tier in &settings.tiers {
        text += "[[tier]]\n";
        line(&mut text, "slice", &format!("\"{}\"", span(tier.slice)));
        line(&mut text, "keep", &format!("\"{}\"", span(tier.keep)));
    }
    text += "[origin]\n";
    let names = |fields: &[Field]| quoted(fields.iter().map(|field| field.name()));
    line(&mut text, "home", &quoted(settings.home.iter().copied()));
    line(&mut text, "basis", &names(&settings.basis));
    line(&mut text, "foreign_if_any", &names(&settings.foreign_if_any));
    line(&mut text, "unknown_is_foreign", &settings.unknown_is_foreign.to_string());
    text += "[utilization]\n";
    line(&mut text, "low", &format!("{:?}", settings.low));
    line(&mut text, "central", &format!("{:?}", settings.central));
    line(&mut text, "high", &format!("{:?}", settings.high));
    text += "[catalogue]\n";
    line(&mut text, "unknown", &format!("\"{}\"", settings.unknown));
    line(&mut text, "unknown_count", &settings.unknown_count.to_string());
    text += "[run]\n";
    line(&mut text, "min_accelerators", &format!("{:?}", settings.min_accelerators));
    line(&mut text, "max_gap", &format!("\"{}\"", span(settings.max_gap)));
    for policy in &scenario.policies {
        text += &policy_text(policy);
    }
    text
}

fn line(text: &mut String, name: &str, value: &str) {
    writeln!(text, "{name} = {value}").expect("a string can be written");
}

fn policy_text(policy: &Policy) -> String {
    let mut text = String::from("[[policy]]\n");
    line(&mut text, "id", &format!("\"{}\"", policy.id));
    line(&mut text, "version", &policy.version.to_string());
    line(&mut text, "title", "\"A policy of the reference model\"");
    line(&mut text, "severity", "\"warning\"");
    line(&mut text, "mode", &format!("\"{}\"", policy.mode.name()));
    line(&mut text, "scope", &format!("\"{}\"", policy.scope.name()));
    let origin = match &policy.origin {
        OriginMatch::Any => "\"any\"".to_owned(),
        OriginMatch::Home => "\"home\"".to_owned(),
        OriginMatch::Foreign => "\"foreign\"".to_owned(),
        OriginMatch::Unknown => "\"unknown\"".to_owned(),
        OriginMatch::Countries(list) => quoted(list.iter().copied()),
    };
    line(&mut text, "origin", &origin);
    let spans = [
        ("window", policy.window),
        ("hold", Some(policy.hold).filter(|hold| *hold > 0)),
        ("keep_firing", Some(policy.keep_firing).filter(|keep| *keep > 0)),
        ("renotify", policy.renotify),
        ("report_within", policy.report_within),
    ];
    for (name, length) in spans {
        if let Some(length) = length {
            line(&mut text, name, &format!("\"{}\"", span(length)));
        }
    }
    for condition in &policy.conditions {
        text += "[[policy.all]]\n";
        let metric = condition.metric;
        line(&mut text, "metric", &format!("\"{}\"", metric.name()));
        if let Some(length) = condition.window.filter(|_| !metric.is_run()) {
            line(&mut text, "window", &format!("\"{}\"", span(length)));
        }
        if let Metric::Sustained(accelerators) = metric {
            line(&mut text, "accelerators", &format!("{accelerators:?}"));
        }
        if let Metric::ProjectedRunFlop(horizon) = metric {
            line(&mut text, "horizon", &format!("\"{}\"", span(horizon)));
        }
        line(&mut text, "at_least", &format!("{:?}", condition.at_least));
    }
    text
}

fn directory_line(line: &DirectoryLine) -> Value {
    if line.deleted {
        return json!({"account_id": line.account, "deleted": true});
    }
    let mut entry = Map::new();
    entry.insert("account_id".to_owned(), json!(line.account));
    if !line.owner.is_empty() {
        entry.insert("owner_id".to_owned(), json!(line.owner));
    }
    for (field, country) in Field::ALL.iter().zip(line.countries) {
        if !country.is_empty() {
            entry.insert(field.name().to_owned(), json!(country));
        }
    }
    entry.insert("updated_unix_nano".to_owned(), instant(line.updated));
    Value::Object(entry)
}

/// Nanoseconds as a JSON number.
fn instant(nanos: Nanos) -> Value {
    json!(u64::try_from(nanos).expect("instants after 1970"))
}

/// The event in one of four spellings: snake case with numbers, camel case with strings, snake case
/// with RFC 3339, camel case with numbers.
fn event_json(event: &Event) -> Value {
    let camel = event.spelling % 2 == 1;
    let mut fields = Map::new();
    let mut put = |name: &str, value: Value| {
        fields.insert(if camel { camel_case(name) } else { name.to_owned() }, value);
    };
    put("id", json!(event.id));
    put("source", json!(event.source));
    put("account_id", json!(event.account));
    let names = [
        ("region", &event.region),
        ("fabric_id", &event.fabric),
        ("accelerator", &event.accelerator),
        ("instance_type", &event.instance_type),
    ];
    for (name, value) in names {
        if !value.is_empty() || event.spelling == 3 {
            put(name, json!(value));
        }
    }
    put("quantity", json!(event.quantity));
    for (name, nanos) in [("start", event.start), ("end", event.end), ("time", event.time)] {
        let long = if name == "time" { name.to_owned() } else { format!("{name}_time") };
        match event.spelling {
            _ if nanos == 0 => {}
            1 => put(&format!("{long}_unix_nano"), json!(nanos.to_string())),
            2 => put(&long, json!(rfc3339(nanos))),
            _ => put(&format!("{long}_unix_nano"), instant(nanos)),
        }
    }
    match (event.correction, event.spelling) {
        (true, 3) => put("kind", json!(1)),
        (true, _) => put("kind", json!("CORRECTION")),
        (false, 1) => put("kind", json!("USAGE")),
        (false, _) => {}
    }
    let ratios = [("utilization", event.utilization), ("tensor_active", event.tensor_active)];
    let mut telemetry = Map::new();
    for (name, ratio) in ratios {
        if let Some(ratio) = ratio {
            let name = if camel { camel_case(name) } else { name.to_owned() };
            // The shortest decimal that means this f32, as a meter would print it.
            let decimal: f64 = ratio.to_string().parse().expect("a decimal");
            telemetry.insert(name, json!(decimal));
        }
    }
    if !telemetry.is_empty() {
        put("telemetry", Value::Object(telemetry));
    }
    Value::Object(fields)
}

fn camel_case(name: &str) -> String {
    let mut words = name.split('_');
    let mut camel = words.next().unwrap_or_default().to_owned();
    for word in words {
        let (first, rest) = word.split_at(1);
        camel += &first.to_uppercase();
        camel += rest;
    }
    camel
}
