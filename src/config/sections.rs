//! From the merged tree to the rules of the detector and the settings of the shell, section by
//! section. Checks that concern two keys stand with the later one.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::field::Field;
use super::tree::Node;
use super::{AlertFormat, Kafka, Result, Topics, client, field_of, input, policies, suggest};
use crate::detector::catalogue::Catalogue;
use crate::detector::rules::{
    OriginField, OriginRules, Rules, RunRules, TierRules, TimeRules, UtilizationRules,
};
use crate::detector::time::Span;

pub(super) const TIER_KEYS: [&str; 2] = ["slice", "keep"];
/// More threads than any machine has cores.
const WORKERS_LIMIT: u64 = 1024;
/// Kafka's own limit is 249; this leaves room for `.account-state`.
const TOPIC_LIMIT: usize = 200;

pub(super) fn rules(tree: &Node, directory: &Path) -> Result<Rules> {
    let time = time(tree)?;
    let tiers = tiers(tree, time.epoch)?;
    let run = run(tree, &tiers)?;
    Ok(Rules {
        time,
        tiers,
        input: input::read(tree)?,
        origin: origin(tree, directory)?,
        utilization: utilization(tree)?,
        catalogue: catalogue(tree, directory)?,
        run,
        dead_letter_max_consecutive: field_of(tree, "dead_letter.max_consecutive")
            .integer(1, u64::from(u32::MAX))?,
    })
}

fn time(tree: &Node) -> Result<TimeRules> {
    let span = |name: &str| field_of(tree, &format!("time.{name}"));
    let epoch = span("epoch").positive_duration()?;
    if epoch < Span::seconds(1) {
        return Err(span("epoch").refuse("right would be at least 1s: time goes on by epochs"));
    }
    let lateness = span("lateness").duration()?;
    if !lateness.is_multiple_of(epoch) {
        let found = format!("time.lateness {lateness} is not a multiple of time.epoch {epoch}");
        let fields = [&span("lateness"), &span("epoch")];
        return Err(Field::misfit(&fields, &found, "right would be a multiple"));
    }
    Ok(TimeRules {
        epoch,
        lateness,
        dedup_horizon: span("dedup_horizon").duration()?,
        max_future: span("max_future").duration()?,
        max_interval: span("max_interval").positive_duration()?,
    })
}

/// Wall-clock silence that makes a partition idle, and how far METER may run ahead.
pub(super) fn pace(tree: &Node, epoch: Span) -> Result<(Duration, Span)> {
    let idle_timeout = field_of(tree, "time.idle_timeout").positive_duration()?;
    let field = field_of(tree, "time.max_skew");
    let max_skew = field.duration()?;
    if max_skew < epoch {
        let found = format!("time.max_skew {max_skew} is shorter than time.epoch {epoch}");
        let fields = [&field, &field_of(tree, "time.epoch")];
        return Err(Field::misfit(&fields, &found, "right would be at least one epoch"));
    }
    Ok((wall_clock(idle_timeout), max_skew))
}

pub(super) fn wall_clock(span: Span) -> Duration {
    Duration::from_nanos(span.0)
}

fn tiers(tree: &Node, epoch: Span) -> Result<Vec<TierRules>> {
    const SLICE: &str = "right would be the length of its slices: slice = \"1h\"";
    const KEEP: &str = "right would be how long they are kept: keep = \"8d\"";
    let field = field_of(tree, "tier");
    let mut tiers: Vec<TierRules> = Vec::new();
    for table in field.tables()? {
        table.refuse_unknown(&TIER_KEYS)?;
        let slice_field = table.required("slice", SLICE)?;
        let slice = slice_field.positive_duration()?;
        if !slice.is_multiple_of(epoch) {
            let found = format!("slice {slice} is not a multiple of time.epoch {epoch}");
            let fields = [&slice_field, &field_of(tree, "time.epoch")];
            return Err(Field::misfit(&fields, &found, "right would be a multiple"));
        }
        if let Some(finer) = tiers.last().map(|tier| tier.slice)
            && (slice <= finer || !slice.is_multiple_of(finer))
        {
            return Err(slice_field.refuse(&format!(
                "tiers go from the finest to the coarsest: right would be a multiple of the slice \
                 before it, {finer}, and longer"
            )));
        }
        let keep_field = table.required("keep", KEEP)?;
        let keep = keep_field.positive_duration()?;
        if !keep.is_multiple_of(slice) {
            return Err(keep_field.refuse(&format!("right would be a multiple of slice {slice}")));
        }
        tiers.push(TierRules { slice, keep });
    }
    if tiers.is_empty() {
        return Err(field.wrong("found no tier", "right would be at least one [[tier]]"));
    }
    Ok(tiers)
}

fn run(tree: &Node, tiers: &[TierRules]) -> Result<RunRules> {
    let field = field_of(tree, "run.max_gap");
    let max_gap = field.duration()?;
    let finest = tiers[0];
    let fields = [&field, &field_of(tree, "tier")];
    if max_gap < finest.slice {
        let found =
            format!("run.max_gap {max_gap} is shorter than the finest slice {}", finest.slice);
        let right = "right would be at least one slice: slices side by side are one run";
        return Err(Field::misfit(&fields, &found, right));
    }
    if finest.keep.0 <= max_gap.0 + Span::days(1).0 {
        let found = format!(
            "run.max_gap {max_gap} and a day do not fit into the finest tier's keep {}",
            finest.keep
        );
        let right = "right would be a longer keep or a shorter gap";
        return Err(Field::misfit(&fields, &found, right));
    }
    let min_accelerators = field_of(tree, "run.min_accelerators").positive()?;
    Ok(RunRules { min_accelerators, max_gap })
}

fn origin(tree: &Node, directory: &Path) -> Result<OriginRules> {
    let home = field_of(tree, "origin.home");
    let countries = home.countries()?;
    if countries.is_empty() {
        return Err(home.wrong("found an empty list", "right would be at least one country code"));
    }
    let has_geoip = geoip(tree, directory)?.is_some();
    let basis = field_of(tree, "origin.basis");
    let basis_fields = origin_fields(&basis, "an address is never the basis of an origin")?;
    if basis_fields.is_empty() {
        return Err(basis.wrong("found an empty list", "right would be at least one field"));
    }
    let foreign_if_any = field_of(tree, "origin.foreign_if_any");
    let mut foreign_fields = Vec::new();
    for item in foreign_if_any.list()? {
        // The GeoIP file alone decides whether addresses count: naming them as well is harmless.
        if item.text()? == OriginField::AccessIps.name() && has_geoip {
            continue;
        }
        let reason = "origin.geoip must name an MMDB file";
        foreign_fields.push(origin_field(&item, reason)?);
    }
    refuse_repeats(&foreign_if_any, &foreign_fields)?;
    if has_geoip {
        foreign_fields.push(OriginField::AccessIps);
    }
    Ok(OriginRules {
        home: countries,
        basis: basis_fields,
        foreign_if_any: foreign_fields,
        unknown_is_foreign: field_of(tree, "origin.unknown_is_foreign").boolean()?,
        lists: policies::read_lists(tree)?,
    })
}

fn origin_fields(field: &Field<'_>, no_addresses: &str) -> Result<Vec<OriginField>> {
    let fields: Vec<OriginField> =
        field.list()?.iter().map(|item| origin_field(item, no_addresses)).collect::<Result<_>>()?;
    refuse_repeats(field, &fields)?;
    Ok(fields)
}

fn origin_field(item: &Field<'_>, no_addresses: &str) -> Result<OriginField> {
    let text = item.text()?;
    let countries = [
        OriginField::UltimateParentCountry,
        OriginField::Country,
        OriginField::IncorporationCountry,
        OriginField::PaymentCountry,
    ];
    if text == OriginField::AccessIps.name() {
        return Err(item.refuse(no_addresses));
    }
    countries
        .iter()
        .copied()
        .find(|field| field.name() == text)
        .ok_or_else(|| item.refuse(&suggest::did_you_mean(text, &countries.map(OriginField::name))))
}

fn refuse_repeats(field: &Field<'_>, fields: &[OriginField]) -> Result<()> {
    let repeated = fields.iter().enumerate().find(|(at, one)| fields[..*at].contains(one));
    match repeated {
        Some((_, one)) => Err(field
            .wrong(&format!("{:?} stands twice", one.name()), "right would be each field once")),
        None => Ok(()),
    }
}

/// The GeoIP file, which must be one.
pub(super) fn geoip(tree: &Node, directory: &Path) -> Result<Option<PathBuf>> {
    let field = field_of(tree, "origin.geoip");
    let text = field.text()?;
    if text.is_empty() {
        return Ok(None);
    }
    let path = directory.join(text);
    match maxminddb::Reader::open_readfile(&path) {
        Ok(_) => Ok(Some(path)),
        Err(error) => {
            let found = format!("cannot use {}: {error}", path.display());
            Err(field.wrong(&found, "right would be a readable MMDB file with countries"))
        }
    }
}

fn utilization(tree: &Node) -> Result<UtilizationRules> {
    let fields =
        ["low", "central", "high"].map(|name| field_of(tree, &format!("utilization.{name}")));
    let [low, central, high] = &fields;
    let rules = UtilizationRules {
        low: low.positive()?,
        central: central.positive()?,
        high: high.positive()?,
    };
    let UtilizationRules { low, central, high } = rules;
    if low <= central && central <= high && high <= 1.0 {
        return Ok(rules);
    }
    let found = format!("low {low:?}, central {central:?}, high {high:?}");
    let right = "right would be 0 < low <= central <= high <= 1";
    Err(Field::misfit(&fields.each_ref(), &found, right))
}

fn catalogue(tree: &Node, directory: &Path) -> Result<Catalogue> {
    let mut files = Vec::new();
    for item in field_of(tree, "catalogue.files").list()? {
        let path = directory.join(item.nonempty_text()?);
        let text = fs::read_to_string(&path).map_err(|error| {
            let found = format!("cannot read {}: {error}", path.display());
            item.wrong(&found, "right would be a CSV file of accelerators or instance types")
        })?;
        files.push((path.display().to_string(), text));
    }
    let named: Vec<(&str, &str)> =
        files.iter().map(|(path, text)| (path.as_str(), text.as_str())).collect();
    let catalogue = Catalogue::shipped()
        .with_files(&named)
        .map_err(|error| crate::error::Fatal::Config(error.to_string()))?;
    let unknown = field_of(tree, "catalogue.unknown");
    let name = unknown.nonempty_text()?;
    let keys: Vec<&str> = catalogue.accelerators().map(|entry| entry.key.as_str()).collect();
    if catalogue.accelerator(name).is_none() {
        let right = suggest::nearest(name, keys).map_or_else(
            || "right would be a key of the catalogue such as \"nvidia-h100-sxm\"".to_owned(),
            |key| format!("did you mean {key:?}?"),
        );
        return Err(unknown.wrong(&format!("no accelerator is called {name:?}"), &right));
    }
    let count = field_of(tree, "catalogue.unknown_count");
    let place = if catalogue.accelerator(name).is_some_and(|entry| entry.peaks.is_cpu) {
        &unknown
    } else {
        &count
    };
    let number = count.positive()?;
    catalogue
        .with_unknown(name, number)
        .map_err(|error| place.wrong(&error.detail, "right would be an accelerator and its count"))
}

pub(super) fn kafka(tree: &Node, directory: &Path) -> Result<Kafka> {
    let field = |name: &str| field_of(tree, &format!("kafka.{name}"));
    let workers =
        usize::try_from(field("workers").integer(0, WORKERS_LIMIT)?).expect("the limit is small");
    let client_node = field("client");
    client_node.table()?;
    Ok(Kafka {
        bootstrap_servers: bootstrap_servers(&field("bootstrap_servers"))?.to_owned(),
        group_id: topic_name(&field("group_id"))?.to_owned(),
        workers: match workers {
            0 => cores(),
            chosen => chosen,
        },
        instance: match field("instance").text()? {
            "" => random_name(),
            _ => name(&field("instance"))?.to_owned(),
        },
        commit_interval: wall_clock(field("commit_interval").positive_duration()?),
        client: client::read(client_node.node, directory)?,
    })
}

pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Unlike any other process's: the standard library seeds its hasher from the system.
fn random_name() -> String {
    use std::hash::{BuildHasher, Hasher};
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    format!("{random:016x}")
}

/// What Kafka takes for a topic; the group's id is part of the changelogs' names.
pub(super) fn topic_name<'a>(field: &Field<'a>) -> Result<&'a str> {
    let name = field.nonempty_text()?;
    let is_plain = name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    if is_plain && name.len() <= TOPIC_LIMIT && name != "." && name != ".." {
        Ok(name)
    } else {
        Err(field.refuse("right would be at most 200 of the characters a-z A-Z 0-9 . _ -"))
    }
}

/// Part of a transactional id: anything that prints, without blanks.
fn name<'a>(field: &Field<'a>) -> Result<&'a str> {
    let text = field.nonempty_text()?;
    if text.len() <= TOPIC_LIMIT && text.chars().all(|c| c.is_ascii_graphic()) {
        Ok(text)
    } else {
        Err(field.refuse("right would be at most 200 printable ASCII characters without blanks"))
    }
}

fn bootstrap_servers<'a>(field: &Field<'a>) -> Result<&'a str> {
    const RIGHT: &str = "right would be \"host:port\", or several separated by commas";
    let text = field.nonempty_text()?;
    for server in text.split(',').map(str::trim) {
        // librdkafka adds port 9092; it also allows a protocol before the name.
        let host = server.rsplit_once("://").map_or(server, |(_, host)| host);
        let (host, port) = match host.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port),
            Some(_) | None => (host, "9092"),
        };
        let is_port = port.parse::<u16>().is_ok_and(|port| port > 0);
        if host.is_empty() || host.contains(char::is_whitespace) || !is_port {
            return Err(field.refuse(RIGHT));
        }
    }
    Ok(text)
}

pub(super) fn topics(tree: &Node) -> Result<Topics> {
    let mut seen: Vec<(&str, String)> = Vec::new();
    let mut topic = |key: &'static str| {
        let field = field_of(tree, &format!("topics.{key}"));
        let name = topic_name(&field)?;
        if let Some((other, _)) = seen.iter().find(|(_, seen)| seen == name) {
            let found = format!("{name:?} is topics.{other} as well");
            return Err(field.wrong(&found, "right would be a topic of its own"));
        }
        seen.push((key, name.to_owned()));
        Ok(name.to_owned())
    };
    Ok(Topics {
        usage: topic("usage")?,
        accounts: topic("accounts")?,
        account_usage: topic("account_usage")?,
        group_usage: topic("group_usage")?,
        alerts: topic("alerts")?,
        shadow_alerts: topic("shadow_alerts")?,
        dead_letters: topic("dead_letters")?,
    })
}

pub(super) fn alerts_format(tree: &Node) -> Result<AlertFormat> {
    let formats = [AlertFormat::Json, AlertFormat::Protobuf];
    field_of(tree, "alerts.format").choice(&formats, |format| match format {
        AlertFormat::Json => "json",
        AlertFormat::Protobuf => "protobuf",
    })
}

pub(super) fn address(tree: &Node, key: &str) -> Result<SocketAddr> {
    let field = field_of(tree, key);
    let right = "right would be an address and a port: \"127.0.0.1:9464\" or \"[::]:9464\"";
    field.text()?.parse().map_err(|_| field.refuse(right))
}
