//! The configuration tree.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::detector::policy::Policies;
use crate::detector::rules::Rules;
use crate::detector::time::Span;

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
}

#[derive(Debug, Clone)]
pub struct Kafka {
    pub bootstrap_servers: String,
    pub group_id: String,
    /// Threads; already resolved: never 0.
    pub workers: usize,
    /// Already resolved: random when the configuration leaves it empty.
    pub instance: String,
    pub commit_interval: Duration,
    /// Verbatim librdkafka settings.
    pub client: BTreeMap<String, String>,
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
