//! What ships with flopwatch as data: facts with a source for each, which operators extend or
//! replace by configuration. Nothing is computed here.

/// Accelerators: key, dense peaks, names.
pub const ACCELERATORS: &str = include_str!("accelerators.csv");

/// Instance types: accelerator and count.
pub const INSTANCES: &str = include_str!("instances.csv");

/// Named country lists: a table for each `@name`, with `countries`, `source` and `date`.
pub const LISTS: &str = include_str!("lists.toml");

/// Shipped policy sets by name, as `preset:<name>` says it: a `[preset]` table and `[[policy]]`.
pub const PRESETS: &[(&str, &str)] = &[];
