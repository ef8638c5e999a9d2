//! Records of the account directory: protobuf or JSON, entries and removals.

use std::borrow::Cow;

use prost::Message;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::{Body, scalar};
use crate::detector::directory::{AccountRecord, Country, Entry};
use crate::detector::event::NAME_LIMIT;
use crate::detector::invalid::{Invalid, Reason};
use crate::detector::time::Timestamp;
use crate::proto;

/// Decodes a record of the directory. `access_countries` stays empty: the shell looks them up.
///
/// Without a value it removes the account that the key names, and so does JSON with
/// `"deleted": true`. An entry without `account_id` is the key's. A country that is no
/// two-letter code is unknown.
pub fn decode_account(key: Option<&[u8]>, value: Option<&[u8]>) -> Result<AccountRecord, Invalid> {
    let mut record = match value {
        None => AccountRecord { account_id: String::new(), entry: None },
        Some(value) => match Body::sniff(value)? {
            Body::Json(text) => from_json(text)?,
            Body::Bare(bytes) | Body::Framed(bytes) => from_protobuf(bytes)?,
        },
    };
    if record.account_id.is_empty() {
        let key = std::str::from_utf8(key.unwrap_or_default())
            .map_err(|_| Invalid::undecodable("the key is not UTF-8"))?;
        record.account_id = key.to_owned();
    }
    match record.account_id.len() {
        0 => return Err(Invalid::new(Reason::AccountId, "account_id is empty")),
        1..=NAME_LIMIT => {}
        length => {
            let detail = format!("account_id has {length} bytes, at most {NAME_LIMIT}");
            return Err(Invalid::new(Reason::AccountId, detail));
        }
    }
    if let Some(entry) = &record.entry {
        check(entry)?;
    }
    Ok(record)
}

fn check(entry: &Entry) -> Result<(), Invalid> {
    if entry.owner_id.len() > NAME_LIMIT {
        let detail = format!("owner_id has {} bytes, at most {NAME_LIMIT}", entry.owner_id.len());
        return Err(Invalid::new(Reason::NameTooLong, detail));
    }
    if entry.updated >= Timestamp::LATEST {
        let detail = format!("updated {} lies after the year 2499", entry.updated);
        return Err(Invalid::new(Reason::TimeOutOfRange, detail));
    }
    Ok(())
}

fn from_protobuf(bytes: &[u8]) -> Result<AccountRecord, Invalid> {
    let account = proto::Account::decode(bytes)
        .map_err(|error| Invalid::undecodable(format!("protobuf: {error}")))?;
    let entry = Entry {
        owner_id: account.owner_id,
        country: Country::parse(&account.country),
        incorporation_country: Country::parse(&account.incorporation_country),
        ultimate_parent_country: Country::parse(&account.ultimate_parent_country),
        payment_country: Country::parse(&account.payment_country),
        access_ips: account.access_ips,
        access_countries: Vec::new(),
        updated: Timestamp(account.updated_unix_nano),
    };
    Ok(AccountRecord { account_id: account.account_id, entry: Some(entry) })
}

/// The fields that the detector needs; all others are ignored.
#[derive(Deserialize)]
struct Fields<'a> {
    #[serde(borrow, alias = "accountId")]
    account_id: Option<&'a RawValue>,
    #[serde(borrow, alias = "ownerId")]
    owner_id: Option<&'a RawValue>,
    #[serde(borrow)]
    country: Option<&'a RawValue>,
    #[serde(borrow, alias = "incorporationCountry")]
    incorporation_country: Option<&'a RawValue>,
    #[serde(borrow, alias = "ultimateParentCountry")]
    ultimate_parent_country: Option<&'a RawValue>,
    #[serde(borrow, alias = "paymentCountry")]
    payment_country: Option<&'a RawValue>,
    #[serde(alias = "accessIps")]
    access_ips: Option<Vec<String>>,
    #[serde(borrow, alias = "updatedUnixNano")]
    updated_unix_nano: Option<&'a RawValue>,
    #[serde(borrow)]
    updated: Option<&'a RawValue>,
    deleted: Option<bool>,
}

fn from_json(text: &str) -> Result<AccountRecord, Invalid> {
    let fields: Fields<'_> = serde_json::from_str(text)
        .map_err(|error| Invalid::undecodable(format!("json: {error}")))?;
    let account_id = name("account_id", fields.account_id)?.into_owned();
    if fields.deleted == Some(true) {
        return Ok(AccountRecord { account_id, entry: None });
    }
    let country = |field, raw| Ok::<_, Invalid>(Country::parse(&name(field, raw)?));
    let nanoseconds = match fields.updated_unix_nano {
        Some(raw) => scalar::unix_nano("updated_unix_nano", raw.get())?,
        None => None,
    };
    let updated = match fields.updated {
        Some(raw) => Some(scalar::date_time("updated", raw.get())?),
        None => None,
    };
    let entry = Entry {
        owner_id: name("owner_id", fields.owner_id)?.into_owned(),
        country: country("country", fields.country)?,
        incorporation_country: country("incorporation_country", fields.incorporation_country)?,
        ultimate_parent_country: country(
            "ultimate_parent_country",
            fields.ultimate_parent_country,
        )?,
        payment_country: country("payment_country", fields.payment_country)?,
        access_ips: fields.access_ips.unwrap_or_default(),
        access_countries: Vec::new(),
        updated: nanoseconds.or(updated).unwrap_or_default(),
    };
    Ok(AccountRecord { account_id, entry: Some(entry) })
}

fn name<'a>(field: &str, raw: Option<&'a RawValue>) -> Result<Cow<'a, str>, Invalid> {
    raw.map_or(Ok("".into()), |raw| scalar::text(field, raw.get()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::detector::time::SECOND_NS;

    fn entry() -> Entry {
        Entry {
            owner_id: "group".to_owned(),
            country: Country::parse("US"),
            incorporation_country: None,
            ultimate_parent_country: Country::parse("CN"),
            payment_country: None,
            access_ips: vec!["192.0.2.1".to_owned()],
            access_countries: Vec::new(),
            updated: Timestamp(1_717_200_000 * SECOND_NS),
        }
    }

    fn json(text: &str) -> Result<AccountRecord, Invalid> {
        decode_account(Some(b"acme"), Some(text.as_bytes()))
    }

    #[test]
    fn protobuf_and_json_give_the_same_entry() {
        let expected = AccountRecord { account_id: "acme".to_owned(), entry: Some(entry()) };
        let message = proto::Account {
            account_id: "acme".to_owned(),
            owner_id: "group".to_owned(),
            country: "us".to_owned(),
            incorporation_country: "USA".to_owned(),
            ultimate_parent_country: "CN".to_owned(),
            payment_country: "ZZ".to_owned(),
            access_ips: vec!["192.0.2.1".to_owned()],
            updated_unix_nano: 1_717_200_000 * SECOND_NS,
            ..Default::default()
        };
        let bytes = message.encode_to_vec();
        assert_eq!(decode_account(None, Some(&bytes)), Ok(expected.clone()));
        let mut framed = vec![0, 0, 0, 0, 7, 0];
        framed.extend(&bytes);
        assert_eq!(decode_account(None, Some(&framed)), Ok(expected.clone()));
        for text in [
            r#"{"account_id":"acme","owner_id":"group","country":"us","payment_country":null,
                "ultimate_parent_country":"CN","access_ips":["192.0.2.1"],"legal_name":5,
                "updated_unix_nano":1717200000000000000,"deleted":false}"#,
            r#"{"ownerId":"group","country":"US","ultimateParentCountry":"CN",
                "accessIps":["192.0.2.1"],"updatedUnixNano":"1717200000000000000"}"#,
            r#"{"owner_id":"group","country":"US","ultimate_parent_country":"CN",
                "access_ips":["192.0.2.1"],"updated":"2024-06-01T00:00:00Z"}"#,
        ] {
            assert_eq!(json(text), Ok(expected.clone()), "{text}");
        }
    }

    #[test]
    fn tombstones_and_deletions_remove() {
        let removal = Ok(AccountRecord { account_id: "acme".to_owned(), entry: None });
        assert_eq!(decode_account(Some(b"acme"), None), removal);
        let text = br#"{"account_id":"acme","deleted":true}"#;
        assert_eq!(decode_account(None, Some(text)), removal);
    }

    #[test]
    fn records_without_account_or_with_wrong_types_are_refused() {
        for (key, value) in [(None, None), (None, Some(&b"{}"[..])), (Some(&b""[..]), None)] {
            let refused = decode_account(key, value).expect_err("no account");
            assert_eq!(refused.reason, Reason::AccountId);
        }
        for text in [
            r#"{"account_id":5}"#,
            r#"{"country":["US"]}"#,
            r#"{"access_ips":"192.0.2.1"}"#,
            r#"{"deleted":"true"}"#,
            r#"{"updated":1717200000}"#,
            r#"{"country":"US","country":"CN"}"#,
            r#"{"country":"US""#,
        ] {
            let refused = json(text).expect_err(text);
            assert_eq!(refused.reason, Reason::Undecodable, "{text}");
        }
        let late = json(r#"{"updated":"2600-01-01T00:00:00Z"}"#).expect_err("too late");
        assert_eq!(late.reason, Reason::TimeOutOfRange);
    }
}
