//! Accelerators and instance types, and the names by which the field knows them.

use super::measure::Peaks;

#[derive(Debug)]
pub struct Catalogue {}

/// What a pair of names means.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Resolved<'a> {
    /// The catalogue key, or the name as given when the catalogue lacks it.
    pub key: &'a str,
    /// Accelerators for each unit of quantity.
    pub count: f64,
    pub peaks: Peaks,
    /// Counted at `catalogue.unknown`.
    pub unknown: bool,
}

impl Catalogue {
    /// `accelerator` wins; `instance_type` is used when it is empty.
    pub fn resolve<'a>(&'a self, _accelerator: &'a str, _instance_type: &'a str) -> Resolved<'a> {
        unreachable!()
    }
}
