//! Countries of access addresses, by an MMDB file: a hint beside what the customer declared, never
//! the only ground of an alert's origin.

use std::net::IpAddr;
use std::path::Path;

use maxminddb::Reader;

use crate::detector::directory::{AccountRecord, Country};
use crate::error::Fatal;

/// An opened MMDB file.
#[derive(Debug)]
pub struct GeoIp(Reader<Vec<u8>>);

/// The two layouts in use: `country.iso_code` (MaxMind) and `country_code` (ip-location-db).
#[derive(serde::Deserialize)]
struct Location {
    country: Option<Nested>,
    country_code: Option<String>,
}

#[derive(serde::Deserialize)]
struct Nested {
    iso_code: Option<String>,
}

impl GeoIp {
    pub fn open(path: &Path) -> Result<Self, Fatal> {
        let refuse = |error: maxminddb::MaxMindDbError| {
            Fatal::Config(format!(
                "origin.geoip: {} is not a readable MMDB file: {error}",
                path.display()
            ))
        };
        Reader::open_readfile(path).map(Self).map_err(refuse)
    }

    /// Fills in the countries of an entry's access addresses; an address that is none, or that
    /// the file does not know, has no country.
    pub fn locate(&self, record: &mut AccountRecord) {
        let Some(entry) = &mut record.entry else { return };
        let countries = entry.access_ips.iter().filter_map(|address| self.country(address));
        entry.access_countries = countries.collect();
        entry.access_countries.sort_unstable();
        entry.access_countries.dedup();
    }

    fn country(&self, address: &str) -> Option<Country> {
        let address: IpAddr = address.trim().parse().ok()?;
        let location: Location = self.0.lookup(address).ok()?.decode().ok()??;
        let code =
            location.country.and_then(|country| country.iso_code).or(location.country_code)?;
        Country::parse(&code)
    }
}
