//! HTTP to a target: one POST, and what its answer means.
//!
//! An answer of 2xx is a delivery. 400, 413 and 422 say that this body will never be taken. All
//! else (no answer, another status, a redirect) may change and is tried again: a wrong address or a
//! login that is missing must not throw alerts away.

use std::time::Duration;

use ureq::Agent;
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};

/// Why a delivery did not happen; the text is for the log and holds nothing of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Another try may work.
    Again(String),
    /// The target takes this one never.
    Refused(String),
}

/// Longest answer that is read, and the share of it that is logged.
const ANSWER_LIMIT: u64 = 64 * 1024;
const SHOWN: usize = 200;

pub(crate) struct Client {
    agent: Agent,
    url: String,
}

impl Client {
    pub(crate) fn new(url: String, timeout: Duration) -> Self {
        // the TLS and the authorities of the system, as librdkafka has them
        let tls = TlsConfig::builder()
            .provider(TlsProvider::NativeTls)
            .root_certs(RootCerts::PlatformVerifier)
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .timeout_global(Some(timeout))
            .http_status_as_error(false)
            // what is signed for one address is not for another
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("flopwatch/", env!("CARGO_PKG_VERSION")))
            .build()
            .new_agent();
        Self { agent, url }
    }

    pub(crate) fn post(&self, headers: &[(&str, &str)], body: &[u8]) -> Result<(), Failure> {
        let request = headers.iter().fold(self.agent.post(&self.url), |request, (name, value)| {
            request.header(*name, *value)
        });
        let mut response = request.send(body).map_err(|error| Failure::Again(error.to_string()))?;
        let status = response.status();
        // read to its end, so that the connection can be used again
        let body = response.body_mut().with_config().limit(ANSWER_LIMIT).read_to_vec();
        if status.is_success() {
            return Ok(());
        }
        let body = body.unwrap_or_default();
        let shown = String::from_utf8_lossy(&body[..body.len().min(SHOWN)]);
        let text = format!("{status}: {}", shown.trim());
        Err(if matches!(status.as_u16(), 400 | 413 | 422) {
            Failure::Refused(text)
        } else {
            Failure::Again(text)
        })
    }
}
