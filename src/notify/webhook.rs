//! The webhook: each revision as the CloudEvent that it is, signed.
//!
//! The body is the record's value, unchanged, in the mode in which it was published (CloudEvents
//! HTTP binding): structured JSON, or protobuf with the attributes as `ce-` headers. Identity and
//! signature are those of Standard Webhooks, for which receivers have libraries: `webhook-id` is
//! `<alert_id>/<revision>`, `webhook-timestamp` the second of this try, and `webhook-signature`
//! `v1,` and the base64 of HMAC-SHA256 over `<id>.<timestamp>.<body>`. A revision may be posted
//! more than once, always under the same id.

use std::fs;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, Private};
use openssl::sign::Signer;

use super::http::{Client, Failure};
use super::log::Delivery;
use super::notice::Form;
use crate::config;
use crate::detector::time::Timestamp;
use crate::error::Fatal;

/// A secret in this form is the base64 of the key; any other is the key itself.
const ENCODED: &str = "whsec_";
/// Fewer bytes could be guessed.
const SHORTEST_SECRET: usize = 16;

/// The key that signs; never shown.
pub struct Secret(PKey<Private>);

impl Secret {
    /// The key that a text stands for.
    pub fn new(text: &str) -> Result<Self, String> {
        let bytes = match text.strip_prefix(ENCODED) {
            Some(encoded) => STANDARD.decode(encoded).map_err(|_| "no base64 after whsec_")?,
            None => text.as_bytes().to_vec(),
        };
        if bytes.len() < SHORTEST_SECRET {
            return Err(format!("fewer than {SHORTEST_SECRET} bytes"));
        }
        PKey::hmac(&bytes).map(Self).map_err(|_| "not usable as a key".into())
    }

    fn read(path: &Path) -> Result<Self, Fatal> {
        let wrong = |found: String| {
            Fatal::Config(format!(
                "notify.webhook.secret_file: {}: {found}; right would be a file with a secret of \
                 at least {SHORTEST_SECRET} bytes, or whsec_ and its base64",
                path.display()
            ))
        };
        let text = fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        Self::new(text.trim_end_matches(['\r', '\n'])).map_err(wrong)
    }

    /// The value of `webhook-signature`.
    pub fn sign(&self, id: &str, seconds: u64, body: &[u8]) -> String {
        let mac = || {
            let mut signer = Signer::new(MessageDigest::sha256(), &self.0)?;
            signer.update(format!("{id}.{seconds}.").as_bytes())?;
            signer.update(body)?;
            signer.sign_to_vec()
        };
        let mac = mac().expect("HMAC-SHA256 takes every input");
        format!("v1,{}", STANDARD.encode(mac))
    }
}

pub(crate) struct Webhook {
    client: Client,
    secret: Secret,
}

impl Webhook {
    pub(crate) fn new(config: &config::Webhook) -> Result<Self, Fatal> {
        Ok(Self {
            client: Client::new(config.url.clone(), config.timeout),
            secret: Secret::read(&config.secret_file)?,
        })
    }

    pub(crate) fn post(&self, delivery: &Delivery, now: Timestamp) -> Result<(), Failure> {
        let seconds = now.0 / 1_000_000_000;
        let id = delivery.notice.id();
        let mut headers = vec![
            ("webhook-id".to_owned(), id.clone()),
            ("webhook-timestamp".to_owned(), seconds.to_string()),
            ("webhook-signature".to_owned(), self.secret.sign(&id, seconds, &delivery.value)),
        ];
        headers.extend(event_headers(delivery));
        let headers: Vec<(&str, &str)> =
            headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        self.client.post(&headers, &delivery.value)
    }
}

/// The record's headers as those of HTTP.
fn event_headers(delivery: &Delivery) -> Vec<(String, String)> {
    match delivery.form {
        Form::Structured => {
            let value = "application/cloudevents+json; charset=UTF-8".to_owned();
            vec![("content-type".to_owned(), value)]
        }
        Form::Binary => delivery
            .headers
            .iter()
            .filter(|(name, _)| name == "content-type" || name.starts_with("ce_"))
            .map(|(name, value)| (name.replace("ce_", "ce-"), percent_encoded(value)))
            .collect(),
    }
}

/// What a header cannot hold, as the CloudEvents HTTP binding writes it.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_graphic() && byte != b'"' && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            encoded += &format!("%{byte:02X}");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the Standard Webhooks specification's own libraries.
    #[test]
    fn the_signature_is_that_of_standard_webhooks() {
        let secret = Secret::new("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").expect("a secret");
        let body = br#"{"test": 2432232314}"#;
        let signature = secret.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", 1_614_265_330, body);
        assert_eq!(signature, "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=");
    }

    #[test]
    fn a_secret_without_prefix_is_the_key_itself() {
        let secret = Secret::new(&"k".repeat(32)).expect("a secret");
        // by Python's hmac: base64 of HMAC-SHA256("kk…", "a/1.7.body")
        assert_eq!(
            secret.sign("a/1", 7, b"body"),
            "v1,Yop/o+M+DNMVqCQPgRLl8bRW37WHgsi/5DIpzjlvAy8="
        );
    }

    #[test]
    fn a_short_or_broken_secret_is_refused_without_showing_it() {
        for text in ["", "hush", "whsec_aHVzaA==", "whsec_not base64 at all, and long enough"] {
            let found = Secret::new(text).err().expect(text);
            assert!(!found.contains("hush") && !found.contains("long enough"), "{found}");
        }
    }

    #[test]
    fn headers_hold_what_ascii_cannot_say_in_percent() {
        assert_eq!(percent_encoded("owner/acme-große 5%"), "owner/acme-gro%C3%9Fe%205%25");
    }
}
