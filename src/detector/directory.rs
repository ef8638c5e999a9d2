//! The account directory: who owns an account and which countries are known of it.

use std::fmt;

use super::time::Timestamp;

/// An ISO 3166-1 alpha-2 code, upper case. User-assigned and withdrawn codes are kept.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Country([u8; 2]);

impl Country {
    /// The origin of an account of which no country is known.
    pub const UNKNOWN: Self = Self(*b"ZZ");

    /// Two ASCII letters of either case; anything else, `ZZ` included, is no known country.
    pub fn parse(text: &str) -> Option<Self> {
        let bytes: [u8; 2] = text.trim().as_bytes().try_into().ok()?;
        let country = Self(bytes.map(|byte| byte.to_ascii_uppercase()));
        let letters = country.0.iter().all(u8::is_ascii_uppercase);
        (letters && country != Self::UNKNOWN).then_some(country)
    }

    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("two ASCII letters")
    }
}

impl fmt::Debug for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Country {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl serde::Serialize for Country {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }
}

/// What the directory says of one account, as far as the detector needs it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Entry {
    /// Empty: the account is its own owner.
    pub owner_id: String,
    pub country: Option<Country>,
    pub incorporation_country: Option<Country>,
    pub ultimate_parent_country: Option<Country>,
    pub payment_country: Option<Country>,
    /// Addresses used for access, as given.
    pub access_ips: Vec<String>,
    /// Countries of `access_ips` by GeoIP, sorted, without repeats; the shell looks them up.
    pub access_countries: Vec<Country>,
    pub updated: Timestamp,
}

/// One record of the directory: an entry, or `None` for a removal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountRecord {
    pub account_id: String,
    pub entry: Option<Entry>,
}
