//! `[notify]`: where `flopwatch notify` takes alerts.
//!
//! The webhook's secret is read when `notify` starts, not here: `run` loads the same file and need
//! not be able to read it. It may stand in a file alone, so an address with a login is refused.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ureq::http::Uri;

use super::field::Field;
use super::tree::Node;
use super::{Result, Topics, field_of, sections};
use crate::detector::time::Span;

/// A process that stops waits for the answer that is under way.
const LONGEST_TIMEOUT: Span = Span::seconds(30);

/// Where alerts go; a target that is `None` is off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notify {
    pub listen: SocketAddr,
    /// Alerts of shadow policies too.
    pub shadow: bool,
    pub alertmanager: Option<Alertmanager>,
    pub webhook: Option<Webhook>,
    /// The topic of OCSF findings.
    pub ocsf: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alertmanager {
    /// Without a slash at its end.
    pub url: String,
    pub resend_interval: Duration,
    /// `{policy}` in it stands for the policy's id.
    pub runbook_url: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Webhook {
    pub url: String,
    pub secret_file: PathBuf,
    pub timeout: Duration,
}

pub(super) fn read(tree: &Node, topics: &Topics, directory: &Path) -> Result<Notify> {
    Ok(Notify {
        listen: sections::address(tree, "notify.listen")?,
        shadow: field_of(tree, "notify.shadow").boolean()?,
        alertmanager: alertmanager(tree)?,
        webhook: webhook(tree, directory)?,
        ocsf: ocsf(tree, topics)?,
    })
}

fn alertmanager(tree: &Node) -> Result<Option<Alertmanager>> {
    let field = |name: &str| field_of(tree, &format!("notify.alertmanager.{name}"));
    let interval = field("resend_interval");
    let resend_interval = interval.duration()?;
    if resend_interval < Span::seconds(1) {
        return Err(interval.refuse("right would be at least 1s"));
    }
    let runbook = field("runbook_url");
    let runbook_url = match runbook.text()? {
        "" => None,
        text => Some(text.to_owned()),
    };
    let Some(url) = address(&field("url"))? else { return Ok(None) };
    Ok(Some(Alertmanager {
        url: url.trim_end_matches('/').to_owned(),
        resend_interval: sections::wall_clock(resend_interval),
        runbook_url,
    }))
}

fn webhook(tree: &Node, directory: &Path) -> Result<Option<Webhook>> {
    let field = |name: &str| field_of(tree, &format!("notify.webhook.{name}"));
    let timeout_field = field("timeout");
    let timeout = timeout_field.positive_duration()?;
    if timeout > LONGEST_TIMEOUT {
        return Err(timeout_field.refuse("right would be at most 30s: a stop waits for it"));
    }
    let url_field = field("url");
    let Some(url) = address(&url_field)? else { return Ok(None) };
    let secret = field("secret_file");
    let file = secret.text()?;
    if file.is_empty() {
        let right = "right would be a file with the secret that the receiver checks them with";
        return Err(Field::misfit(&[&secret, &url_field], "nothing signs what is posted", right));
    }
    Ok(Some(Webhook {
        url: url.to_owned(),
        secret_file: directory.join(file),
        timeout: sections::wall_clock(timeout),
    }))
}

fn ocsf(tree: &Node, topics: &Topics) -> Result<Option<String>> {
    let field = field_of(tree, "notify.ocsf.topic");
    if field.text()?.is_empty() {
        return Ok(None);
    }
    let name = sections::topic_name(&field)?;
    let Topics { usage, accounts, account_usage, group_usage, alerts, shadow_alerts, dead_letters } =
        topics;
    let taken = [usage, accounts, account_usage, group_usage, alerts, shadow_alerts, dead_letters];
    if taken.into_iter().any(|other| other == name) {
        let found = format!("{name:?} is another topic of this configuration");
        return Err(field.wrong(&found, "right would be a topic of its own"));
    }
    Ok(Some(name.to_owned()))
}

/// An address for HTTP; its value may not be shown when it holds a login.
fn address<'a>(field: &Field<'a>) -> Result<Option<&'a str>> {
    const RIGHT: &str = "right would be an address such as \"http://127.0.0.1:9093\"";
    let text = field.text()?;
    if text.is_empty() {
        return Ok(None);
    }
    if text.contains('@') {
        return Err(field.wrong("a login in an address, which is shown", RIGHT));
    }
    let uri: Uri = text.parse().map_err(|_| field.refuse(RIGHT))?;
    let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
    if is_http && uri.host().is_some_and(|host| !host.is_empty()) {
        Ok(Some(text))
    } else {
        Err(field.refuse(RIGHT))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    fn load(text: &str) -> std::result::Result<Notify, String> {
        Config::from_text("test", text)
            .map(|config| config.notify)
            .map_err(|error| error.to_string())
    }

    #[test]
    fn every_target_is_off_until_it_is_configured() {
        let notify = load("").expect("defaults load");
        assert_eq!((notify.alertmanager, notify.webhook, notify.ocsf), (None, None, None));
        assert!(!notify.shadow);
    }

    #[test]
    fn a_configured_target_is_on() {
        let text = "[notify.alertmanager]\nurl = \"http://am:9093/\"\nresend_interval = \"30s\"\n\
                    [notify.webhook]\nurl = \"https://hook/in?x=1\"\nsecret_file = \"/s\"\n\
                    [notify.ocsf]\ntopic = \"findings\"\n";
        let notify = load(text).expect("it is valid");
        let alertmanager = notify.alertmanager.expect("on");
        assert_eq!(alertmanager.url, "http://am:9093");
        assert_eq!(alertmanager.resend_interval, Duration::from_secs(30));
        let webhook = notify.webhook.expect("on");
        assert_eq!(webhook.secret_file, Path::new("/s"));
        assert_eq!(webhook.timeout, Duration::from_secs(10));
        assert_eq!(notify.ocsf.as_deref(), Some("findings"));
    }

    #[test]
    fn what_cannot_work_is_refused_and_no_login_is_shown() {
        for (text, said) in [
            ("[notify.webhook]\nurl = \"http://hook/\"\n", "nothing signs what is posted"),
            ("[notify.webhook]\nurl = \"hook\"\n", "right would be an address"),
            ("[notify.webhook]\nurl = \"ftp://hook\"\n", "right would be an address"),
            ("[notify.webhook]\ntimeout = \"31s\"\n", "at most 30s"),
            ("[notify.alertmanager]\nresend_interval = \"0s\"\n", "at least 1s"),
            ("[notify.ocsf]\ntopic = \"usage\"\n", "a topic of its own"),
            ("[notify.ocsf]\ntopic = \"a b\"\n", "at most 200"),
            ("[notify]\nwebhok = 1\n", "did you mean \"webhook\"?"),
        ] {
            let error = load(text).expect_err(text);
            assert!(error.contains(said), "{text}: {error}");
        }
        let error =
            load("[notify.webhook]\nurl = \"http://me:hush@hook/\"\n").expect_err("refused");
        assert!(!error.contains("hush"), "{error}");
    }
}
