//! One `[[policy]]` table, with everything that can be wrong with it.

use std::collections::BTreeMap;

use serde_json::{Value as Json, json};
use xxhash_rust::xxh3::xxh3_128;

use super::Result;
use super::field::{Field, Table};
use super::tree::Value;
use super::{countries, suggest};
use crate::detector::directory::Country;
use crate::detector::policy::{
    Condition, Metric, Mode, OriginMatch, Policy, Scope, Severity, Window,
};
use crate::detector::rules::TierRules;
use crate::detector::time::Span;

pub(super) const POLICY_KEYS: [&str; 14] = [
    "id",
    "version",
    "title",
    "severity",
    "mode",
    "scope",
    "origin",
    "window",
    "hold",
    "keep_firing",
    "renotify",
    "report_within",
    "references",
    "all",
];
pub(super) const CONDITION_KEYS: [&str; 5] =
    ["metric", "window", "at_least", "accelerators", "horizon"];
/// Longest id: it is part of every alert's key.
const ID_LIMIT: usize = 128;
/// The estimate's window of a policy that has none.
const ESTIMATE_WINDOW: Span = Span::hours(24);

/// What a policy is checked against.
#[derive(Debug, Clone, Copy)]
pub(super) struct Surroundings<'a> {
    pub(super) tiers: &'a [TierRules],
    pub(super) lists: &'a BTreeMap<String, Vec<Country>>,
}

/// Reads a policy, hash included.
pub(super) fn read(table: &Table<'_>, around: Surroundings<'_>) -> Result<Policy> {
    table.refuse_unknown(&POLICY_KEYS)?;
    let id = read_id(table)?;
    let scope = match table.field("scope") {
        Some(field) => field.choice(&Scope::ALL, Scope::name)?,
        None => Scope::Account,
    };
    let span = |name: &str| table.field(name).map(|field| field.duration()).transpose();
    let window = read_window(table, around.tiers)?;
    let conditions = read_conditions(table, scope, window.as_ref(), around.tiers)?;
    let mut policy = Policy {
        version: match table.field("version") {
            Some(field) => u32::try_from(field.integer(1, u64::from(u32::MAX))?)
                .expect("the range is that of u32"),
            None => 1,
        },
        title: match table.field("title") {
            Some(field) => field.nonempty_text()?.to_owned(),
            None => id.clone(),
        },
        severity: table
            .required("severity", "right would be one of \"critical\", \"warning\", \"info\"")?
            .choice(&Severity::ALL, Severity::name)?,
        mode: match table.field("mode") {
            Some(field) => field.choice(&Mode::ALL, Mode::name)?,
            None => Mode::Live,
        },
        origin: match table.field("origin") {
            Some(field) => read_origin(&field, around.lists)?,
            None => OriginMatch::Any,
        },
        hold: span("hold")?.unwrap_or_default(),
        keep_firing: span("keep_firing")?.unwrap_or_default(),
        renotify: span("renotify")?,
        report_within: span("report_within")?,
        references: match table.field("references") {
            Some(field) => field.texts()?.into_iter().map(str::to_owned).collect(),
            None => Vec::new(),
        },
        hash: String::new(),
        id,
        scope,
        window: window.map(|window| window.length),
        conditions,
    };
    policy.hash = hash(&policy);
    Ok(policy)
}

/// Whether every window of the policy is kept, its estimate's included.
pub(super) fn fits(policy: &Policy, tiers: &[TierRules]) -> bool {
    let own = policy.window.unwrap_or(ESTIMATE_WINDOW);
    let windows = policy.conditions.iter().filter_map(Condition::length);
    std::iter::once(own).chain(windows).all(|window| tier_for(window, tiers))
}

fn read_id(table: &Table<'_>) -> Result<String> {
    let field =
        table.required("id", "right would be a name of its own: id = \"large-training\"")?;
    let id = field.nonempty_text()?;
    let is_plain = id.chars().all(|c| !c.is_whitespace() && !c.is_control() && c != '/');
    if is_plain && id.len() <= ID_LIMIT {
        Ok(id.to_owned())
    } else {
        Err(field.refuse("right would be at most 128 bytes without blanks and slashes"))
    }
}

fn read_window(table: &Table<'_>, tiers: &[TierRules]) -> Result<Option<Window>> {
    if let Some(field) = table.field("window") {
        return kept_window(&field, tiers).map(Some);
    }
    match tier_for(ESTIMATE_WINDOW, tiers) {
        true => Ok(None),
        false => {
            let found = "it is missing, and the estimate's 24h is kept by no tier";
            Err(table.wrong("window", found, &windows_that_do(tiers)))
        }
    }
}

/// A window that some tier keeps.
fn kept_window(field: &Field<'_>, tiers: &[TierRules]) -> Result<Window> {
    let length = field.positive_duration()?;
    match tier_for(length, tiers) {
        true => Ok(Window { length, text: field.text()?.to_owned() }),
        false => {
            let found = format!("{}, which no tier keeps", field.node.value.describe());
            Err(field.wrong(&found, &windows_that_do(tiers)))
        }
    }
}

/// As `Rules::tier_of`. Each slice is a multiple of the finer ones, so that a tier that divides the
/// window means that the finest with room for it does.
fn tier_for(window: Span, tiers: &[TierRules]) -> bool {
    tiers.iter().any(|tier| tier.keep >= window && window.is_multiple_of(tier.slice))
}

fn windows_that_do(tiers: &[TierRules]) -> String {
    let windows: Vec<String> = tiers
        .iter()
        .map(|tier| format!("a multiple of {} up to {}", tier.slice, tier.keep))
        .collect();
    format!("right would be {} (see [[tier]])", windows.join(", or "))
}

fn read_origin(field: &Field<'_>, lists: &BTreeMap<String, Vec<Country>>) -> Result<OriginMatch> {
    if let Value::Text(name) = &field.node.value {
        return Ok(match name.as_str() {
            "any" => OriginMatch::Any,
            "home" => OriginMatch::Home,
            "foreign" => OriginMatch::Foreign,
            "unknown" => OriginMatch::Unknown,
            _ => return Err(field.refuse(ORIGIN)),
        });
    }
    let mut matched = Vec::new();
    for item in field.list().map_err(|_| field.refuse(ORIGIN))? {
        let text = item.text()?;
        match text.strip_prefix('@') {
            Some(name) => matched.extend(read_list(&item, name, lists)?),
            None => matched.push(countries::parse(text).map_err(|right| item.refuse(&right))?),
        }
    }
    if matched.is_empty() {
        return Err(field.wrong("found an empty list", ORIGIN));
    }
    matched.sort_unstable();
    matched.dedup();
    Ok(OriginMatch::Countries(matched))
}

const ORIGIN: &str = "right would be \"any\", \"home\", \"foreign\", \"unknown\" \
                      or a list such as [\"CN\", \"@d5\"]";

fn read_list<'a>(
    item: &Field<'_>,
    name: &str,
    lists: &'a BTreeMap<String, Vec<Country>>,
) -> Result<&'a [Country]> {
    lists.get(name).map(Vec::as_slice).ok_or_else(|| {
        let names: Vec<String> = lists.keys().map(|name| format!("@{name}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let right = suggest::did_you_mean(&format!("@{name}"), &names);
        item.wrong(&format!("no list is named \"@{name}\""), &right)
    })
}

fn read_conditions(
    table: &Table<'_>,
    scope: Scope,
    window: Option<&Window>,
    tiers: &[TierRules],
) -> Result<Vec<Condition>> {
    const RIGHT: &str = "right would be at least one [[policy.all]] with metric and at_least";
    let field = table.required("all", RIGHT)?;
    let conditions = field.tables()?;
    if conditions.is_empty() {
        return Err(field.wrong("found no condition", RIGHT));
    }
    conditions.iter().map(|condition| read_condition(condition, scope, window, tiers)).collect()
}

fn read_condition(
    table: &Table<'_>,
    scope: Scope,
    policy_window: Option<&Window>,
    tiers: &[TierRules],
) -> Result<Condition> {
    table.refuse_unknown(&CONDITION_KEYS)?;
    let field = table.required("metric", &suggest::one_of(&Metric::NAMES))?;
    let metric = read_metric(&field, table)?;
    if metric.is_run() && !matches!(scope, Scope::Account | Scope::Owner) {
        let found = format!("{} at scope {:?}", metric.name(), scope.name());
        let right = "runs are kept per account and owner: right would be scope \"account\" or \
                     \"owner\"";
        return Err(field.wrong(&found, right));
    }
    let own_window = table.field("window");
    let window = match own_window {
        Some(field) if metric.is_run() => field.positive_duration().map(|_| None)?,
        Some(field) => Some(kept_window(&field, tiers)?),
        None if metric.is_run() => None,
        None => match policy_window {
            Some(window) => Some(window.clone()),
            None => {
                let found = format!("neither {} nor its policy has a window", metric.name());
                return Err(table.wrong("window", &found, &windows_that_do(tiers)));
            }
        },
    };
    let field = table.required("at_least", "right would be a threshold: at_least = 1e23")?;
    let at_least = field.positive()?;
    if matches!(metric, Metric::Sustained { .. }) && at_least > 1.0 {
        return Err(field.refuse("sustained is a share: right would be above 0 and at most 1"));
    }
    Ok(Condition { metric, window, at_least })
}

fn read_metric(field: &Field<'_>, table: &Table<'_>) -> Result<Metric> {
    let name = field.text()?;
    // Each metric takes only what it needs: a field that would be ignored is a misunderstanding.
    for (extra, owner) in [("accelerators", "sustained"), ("horizon", "projected_run_flop")] {
        match table.field(extra) {
            Some(field) if name != owner && Metric::NAMES.contains(&name) => {
                let found = format!("metric {name:?} takes no {extra}");
                return Err(field.wrong(&found, &format!("only {owner:?} does: leave it out")));
            }
            Some(_) | None => {}
        }
    }
    Ok(match name {
        "accelerators" => Metric::Accelerators,
        "accelerator_hours" => Metric::AcceleratorHours,
        "flop" => Metric::Flop,
        "flop_low" => Metric::FlopLow,
        "flop_high" => Metric::FlopHigh,
        "flop_allocated" => Metric::FlopAllocated,
        "flop_theoretical" => Metric::FlopTheoretical,
        "flop_rate" => Metric::FlopRate,
        "flop_rate_theoretical" => Metric::FlopRateTheoretical,
        "sustained" => {
            let right = "right would be how many at once: accelerators = 512";
            Metric::Sustained { accelerators: table.required("accelerators", right)?.positive()? }
        }
        "run_flop" => Metric::RunFlop,
        "run_flop_low" => Metric::RunFlopLow,
        "run_flop_high" => Metric::RunFlopHigh,
        "run_hours" => Metric::RunHours,
        "projected_run_flop" => {
            let right = "right would be how far ahead: horizon = \"90d\"";
            Metric::ProjectedRunFlop {
                horizon: table.required("horizon", right)?.positive_duration()?,
            }
        }
        "training_score" => {
            return Err(field.wrong(
                "metric \"training_score\" is not available yet",
                "leave the condition out, or use \"sustained\"",
            ));
        }
        _ => {
            let found = format!("unknown metric {name:?}");
            return Err(field.wrong(&found, &suggest::did_you_mean(name, &Metric::NAMES)));
        }
    })
}

/// xxh3-128, lower-case hex, of the policy as JSON with sorted keys, defaults filled in, lists of
/// countries resolved and durations as `Span` prints them.
fn hash(policy: &Policy) -> String {
    let span = |span: Option<Span>| span.map_or(Json::Null, |span| json!(span.to_string()));
    let conditions: Vec<Json> = policy
        .conditions
        .iter()
        .map(|condition| {
            let mut fields = json!({
                "metric": condition.metric.name(),
                "window": span(condition.length()),
                "at_least": condition.at_least,
            });
            if let Metric::Sustained { accelerators } = condition.metric {
                fields["accelerators"] = json!(accelerators);
            }
            if let Metric::ProjectedRunFlop { horizon } = condition.metric {
                fields["horizon"] = json!(horizon.to_string());
            }
            fields
        })
        .collect();
    let origin = match &policy.origin {
        OriginMatch::Any => json!("any"),
        OriginMatch::Home => json!("home"),
        OriginMatch::Foreign => json!("foreign"),
        OriginMatch::Unknown => json!("unknown"),
        OriginMatch::Countries(countries) => json!(countries),
    };
    let canonical = json!({
        "id": policy.id,
        "version": policy.version,
        "title": policy.title,
        "severity": policy.severity.name(),
        "mode": policy.mode.name(),
        "scope": policy.scope.name(),
        "origin": origin,
        "window": span(policy.window),
        "hold": policy.hold.to_string(),
        "keep_firing": policy.keep_firing.to_string(),
        "renotify": span(policy.renotify),
        "report_within": span(policy.report_within),
        "references": policy.references,
        "all": conditions,
    });
    format!("{:032x}", xxh3_128(canonical.to_string().as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tree::parse_document;

    const TIERS: [TierRules; 2] = [
        TierRules { slice: Span::hours(1), keep: Span::days(8) },
        TierRules { slice: Span::days(1), keep: Span::days(400) },
    ];

    fn policy(text: &str) -> Policy {
        let lists = BTreeMap::from([("x".to_owned(), vec![country("CN"), country("MO")])]);
        let document = parse_document("p.toml", text).expect("valid TOML");
        let table = Field::new("policy", &document).table().expect("a table");
        read(&table, Surroundings { tiers: &TIERS, lists: &lists }).expect("a valid policy")
    }

    fn country(code: &str) -> Country {
        Country::parse(code).expect("a code")
    }

    const WHOLE: &str = r#"
        id = "us-large-training"
        version = 3
        title = "Foreign account"
        severity = "critical"
        mode = "shadow"
        scope = "owner"
        origin = ["RU", "@x", "CN"]
        window = "72h"
        hold = "6h"
        keep_firing = "24h"
        renotify = "1d"
        report_within = "15d"
        references = ["89 FR 5698"]
        [[all]]
        metric = "sustained"
        accelerators = 512
        at_least = 0.9
        [[all]]
        metric = "projected_run_flop"
        horizon = "90d"
        window = "5m"
        at_least = 1e25
    "#;

    #[test]
    fn a_policy_is_read_as_it_is_written() {
        let policy = policy(WHOLE);
        assert_eq!(policy.version, 3);
        assert_eq!(policy.mode, Mode::Shadow);
        assert_eq!(policy.scope, Scope::Owner);
        let countries = ["CN", "MO", "RU"].map(country).to_vec();
        assert_eq!(policy.origin, OriginMatch::Countries(countries));
        assert_eq!(policy.renotify, Some(Span::days(1)));
        assert_eq!(policy.conditions.len(), 2);
        assert_eq!(policy.conditions[0].length(), Some(Span::hours(72)));
        assert_eq!(policy.conditions[1].window, None, "run metrics ignore windows");
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let policy = policy(
            "id = \"p\"\nseverity = \"info\"\n[[all]]\nmetric = \"run_hours\"\nat_least = 1\n",
        );
        assert_eq!((policy.version, policy.title.as_str()), (1, "p"));
        assert_eq!((policy.mode, policy.scope), (Mode::Live, Scope::Account));
        assert_eq!(policy.origin, OriginMatch::Any);
        assert_eq!((policy.hold, policy.keep_firing), (Span(0), Span(0)));
        assert_eq!((policy.renotify, policy.report_within, policy.window), (None, None, None));
    }

    #[test]
    fn the_hash_sees_meaning_and_not_spelling() {
        let hash = policy(WHOLE).hash;
        // Pinned: alerts carry it, and a changed one claims that the policy was edited.
        assert_eq!(hash, "c8e9bd1971e0e8ef593d1a1f39c7e850");
        for (from, to) in
            [("\"1d\"", "\"24h\""), ("512", "512.0"), ("\"RU\", \"@x\"", "\"@x\", \"RU\"")]
        {
            assert_eq!(policy(&WHOLE.replace(from, to)).hash, hash, "{to}");
        }
        for (from, to) in [
            ("version = 3", "version = 4"),
            ("\"shadow\"", "\"live\""),
            ("0.9", "0.91"),
            ("512", "513"),
            ("\"90d\"", "\"91d\""),
            ("[\"89 FR 5698\"]", "[]"),
            ("\"RU\", ", ""),
            ("\"15d\"", "\"16d\""),
        ] {
            assert_ne!(policy(&WHOLE.replace(from, to)).hash, hash, "{to}");
        }
    }
}
