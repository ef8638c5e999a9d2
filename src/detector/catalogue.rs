//! Accelerators and instance types, and the names by which the field knows them.
//!
//! A name is looked up as given, then without case, spaces and punctuation, then without what
//! schedulers put around a product's name (`name.rs`). A name that the catalogue lacks is never a
//! zero: it counts at the peaks of `catalogue.unknown` and says so. Nothing here changes after
//! loading; a lookup allocates nothing.

mod load;
mod name;

use std::collections::HashMap;

use foldhash::fast::FixedState;

pub use load::LoadError;

use self::name::Name;
use super::measure::Peaks;

/// Accelerators and instance types with every name they answer to.
#[derive(Debug)]
pub struct Catalogue {
    accelerators: Vec<Accelerator>,
    instances: Vec<Instance>,
    accelerator_names: Index,
    instance_names: Index,
    /// Position of the accelerator whose peaks stand for every unknown one.
    unknown: usize,
    /// Accelerators that an unknown instance type counts as.
    unknown_count: f64,
}

/// Positions by name: keys as written, every name normalised.
type Index = HashMap<Box<[u8]>, usize, FixedState>;

/// One product.
#[derive(Debug, Clone, PartialEq)]
pub struct Accelerator {
    pub key: String,
    pub vendor: String,
    /// The product's name without its vendor.
    pub name: String,
    pub peaks: Peaks,
    pub memory_gb: Option<f64>,
    /// Further names.
    pub aliases: Vec<String>,
    /// Where the figures come from.
    pub source: String,
    place: load::Place,
}

/// One type of instance that a cloud rents.
#[derive(Debug, Clone, PartialEq)]
pub struct Instance {
    pub key: String,
    pub cloud: String,
    /// Accelerators in one instance; less than one where they are shared.
    pub count: f64,
    pub aliases: Vec<String>,
    pub source: String,
    accelerator: usize,
    place: load::Place,
}

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
    /// `accelerator` wins; `instance_type` is used when it is empty. Without either the accelerator
    /// is unknown and its key empty.
    pub fn resolve<'a>(&'a self, accelerator: &'a str, instance_type: &'a str) -> Resolved<'a> {
        if accelerator.is_empty() && !instance_type.is_empty() {
            return match find(&self.instance_names, instance_type) {
                Some(position) => {
                    let instance = &self.instances[position];
                    self.known(instance.accelerator, instance.count)
                }
                None => self.unknown(instance_type, self.unknown_count),
            };
        }
        match find(&self.accelerator_names, accelerator) {
            Some(position) => self.known(position, 1.0),
            None => self.unknown(accelerator, 1.0),
        }
    }

    /// The accelerator of that key or other name.
    pub fn accelerator(&self, name: &str) -> Option<&Accelerator> {
        find(&self.accelerator_names, name).map(|position| &self.accelerators[position])
    }

    /// All accelerators, in the order of their files.
    pub fn accelerators(&self) -> impl Iterator<Item = &Accelerator> {
        self.accelerators.iter()
    }

    /// All instance types with their accelerators, in the order of their files.
    pub fn instances(&self) -> impl Iterator<Item = (&Instance, &Accelerator)> {
        let accelerators = &self.accelerators;
        self.instances.iter().map(|instance| (instance, &accelerators[instance.accelerator]))
    }

    /// The key of the accelerator that unknown ones count as.
    pub fn unknown_key(&self) -> &str {
        &self.accelerators[self.unknown].key
    }

    /// Accelerators that an unknown instance type counts as.
    pub fn unknown_count(&self) -> f64 {
        self.unknown_count
    }

    fn known(&self, position: usize, count: f64) -> Resolved<'_> {
        let accelerator = &self.accelerators[position];
        Resolved { key: &accelerator.key, count, peaks: accelerator.peaks, unknown: false }
    }

    fn unknown<'a>(&self, name: &'a str, count: f64) -> Resolved<'a> {
        let peaks = self.accelerators[self.unknown].peaks;
        Resolved { key: name, count, peaks, unknown: true }
    }
}

/// The names are tried from the cheapest and most exact to the most lenient.
fn find(index: &Index, text: &str) -> Option<usize> {
    if let Some(position) = index.get(text.as_bytes()) {
        return Some(*position);
    }
    let name = Name::of(text)?;
    let found = index.get(name.as_bytes());
    found.or_else(|| index.get(name.undecorated()?)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Spellings as tools and clouds write them, with the key each must find.
    const SPELLINGS: &str = include_str!("catalogue/spellings.csv");

    #[test]
    fn every_listed_spelling_resolves_to_its_key() {
        let catalogue = Catalogue::shipped();
        let mut spellings = 0;
        for line in SPELLINGS.lines().filter(|line| !line.starts_with('#')) {
            let (spelling, key) = line.rsplit_once(',').expect("spelling,key");
            let resolved = catalogue.resolve(spelling, "");
            assert_eq!((resolved.key, resolved.unknown), (key, false), "{spelling}");
            spellings += 1;
        }
        assert!(spellings >= 120, "only {spellings} spellings");
    }

    #[test]
    fn every_shipped_key_and_instance_type_resolves_as_written() {
        let catalogue = Catalogue::shipped();
        for accelerator in catalogue.accelerators() {
            assert_eq!(catalogue.resolve(&accelerator.key, "ignored").key, accelerator.key);
            assert!(!accelerator.source.is_empty(), "{} names no source", accelerator.key);
        }
        for (instance, accelerator) in catalogue.instances() {
            let resolved = catalogue.resolve("", &instance.key);
            assert_eq!((resolved.key, resolved.count), (&*accelerator.key, instance.count));
            assert!(!instance.source.is_empty(), "{} names no source", instance.key);
        }
    }

    #[test]
    fn peaks_are_the_decimal_figure_times_1e12() {
        let catalogue = Catalogue::shipped();
        let peaks = catalogue.resolve("nvidia-h100-sxm", "").peaks;
        assert_eq!(peaks, Peaks { dense16: 989.4 * 1e12, dense_max: 1978.9 * 1e12, is_cpu: false });
        assert!(catalogue.resolve("vcpu", "").peaks.is_cpu);
    }

    #[test]
    fn an_instance_type_gives_its_count_unless_an_accelerator_is_named() {
        let catalogue = Catalogue::shipped();
        let instance = catalogue.resolve("", "p5.48xlarge");
        assert_eq!((instance.key, instance.count), ("nvidia-h100-sxm", 8.0));
        assert_eq!(catalogue.resolve("", "ND96isr_H100_v5").count, 8.0);
        assert_eq!(catalogue.resolve("", "G6F.large").count, 0.125);
        let named = catalogue.resolve("A100-SXM4-40GB", "p5.48xlarge");
        assert_eq!((named.key, named.count), ("nvidia-a100-40-sxm", 1.0));
    }

    #[test]
    fn unknown_names_count_at_the_configured_accelerator_and_keep_their_name() {
        let catalogue =
            Catalogue::shipped().with_unknown("NVIDIA B200", 4.0).expect("a shipped name");
        let b200 = catalogue.resolve("nvidia-b200", "").peaks;
        let chip = catalogue.resolve("Warp Core 9", "");
        assert_eq!(chip, Resolved { key: "Warp Core 9", count: 1.0, peaks: b200, unknown: true });
        let instance = catalogue.resolve("", "warp.large");
        assert_eq!(
            instance,
            Resolved { key: "warp.large", count: 4.0, peaks: b200, unknown: true }
        );
        let nothing = catalogue.resolve("", "");
        assert_eq!(nothing, Resolved { key: "", count: 1.0, peaks: b200, unknown: true });
        assert_eq!(catalogue.resolve("???", "p5.48xlarge").key, "???");
    }

    #[test]
    fn a_named_accelerator_the_catalogue_lacks_is_unknown_even_beside_a_known_instance_type() {
        let catalogue = Catalogue::shipped();
        let resolved = catalogue.resolve("Warp Core 9", "p5.48xlarge");
        assert_eq!((resolved.count, resolved.unknown), (1.0, true));
    }
}
