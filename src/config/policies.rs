//! The set of policies: files by glob, presets, tables in the main file; all or nothing; read again
//! by a running process when a file changes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use super::field::{Field, Table};
use super::policy::{self, Surroundings};
use super::tree::{Node, parse_document, wrong};
use super::{Result, globs, shipped};
use crate::detector::directory::Country;
use crate::detector::policy::{Policies, Policy};
use crate::detector::rules::TierRules;
use crate::error::Fatal;

pub(super) const PRESET: &str = "preset:";
/// What applies when nothing is configured.
const DEFAULT_PRESET: &str = "default";

/// Where the policies came from, and what they are checked against: enough to read them again.
#[derive(Debug, Clone, Default)]
pub struct ConfigSource {
    /// The configuration file.
    pub(super) file: Option<PathBuf>,
    /// The environment's variables that matter to policies.
    pub(super) variables: Vec<(String, String)>,
    /// Of the running process: a changed `[[tier]]` waits for a restart.
    pub(super) tiers: Vec<TierRules>,
}

impl ConfigSource {
    /// Every file that a reload would read: the configuration file and the policy files as they
    /// are now.
    pub fn files(&self) -> Vec<PathBuf> {
        let Ok(tree) = self.tree() else {
            return self.file.iter().cloned().collect();
        };
        let mut files: BTreeSet<PathBuf> = self.file.iter().cloned().collect();
        for glob in configured_globs(&tree).unwrap_or_default() {
            files.extend(globs::find(self.directory(), &glob).unwrap_or_default());
        }
        files.into_iter().collect()
    }

    /// The directories in which a file may appear that a glob matches.
    pub fn directories(&self) -> Vec<PathBuf> {
        let globs = self.tree().and_then(|tree| configured_globs(&tree)).unwrap_or_default();
        let roots: BTreeSet<PathBuf> =
            globs.iter().map(|glob| globs::root(self.directory(), glob)).collect();
        roots.into_iter().collect()
    }

    /// Changes when a file of `files` appears, goes or has other bytes. Contents rather than
    /// times: a mounted directory is swapped as a whole and may carry any time.
    pub fn fingerprint(&self) -> u64 {
        let mut hash = Xxh3::new();
        for file in self.files() {
            hash.update(file.as_os_str().as_encoded_bytes());
            match fs::read(&file) {
                Ok(bytes) => hash.update(&bytes),
                Err(error) => hash.update(error.kind().to_string().as_bytes()),
            }
        }
        hash.digest()
    }

    pub(super) fn directory(&self) -> &Path {
        self.file.as_deref().and_then(Path::parent).unwrap_or(Path::new(""))
    }

    fn tree(&self) -> Result<Node> {
        super::layers(self.file.as_deref(), &self.variables)
    }
}

/// Reads the policies again, for a running process; on an error it keeps those that it has. All
/// that is not `policies`, `[[policy]]` or `[lists]` stays as it was at the start.
pub fn load_policies(source: &ConfigSource) -> Result<Policies> {
    let tree = source.tree()?;
    let lists = read_lists(&tree)?;
    let around = Surroundings { tiers: &source.tiers, lists: &lists };
    Ok(in_force(read(&tree, source.directory(), around)?))
}

pub(super) fn in_force(list: Vec<Sourced>) -> Policies {
    Policies { list: list.into_iter().map(|sourced| sourced.policy).collect() }
}

/// A policy and where it stands: a file, `preset:NAME`, or the configuration file itself.
#[derive(Debug)]
pub(super) struct Sourced {
    pub(super) policy: Policy,
    pub(super) source: Option<String>,
}

/// The shipped country lists and the operator's over them.
pub(super) fn read_lists(tree: &Node) -> Result<BTreeMap<String, Vec<Country>>> {
    let mut lists = shipped::lists()?;
    for (name, field) in super::field_of(tree, "lists").table()?.fields() {
        if name.is_empty() || name.starts_with('@') {
            return Err(field.wrong("not a name for a list", "right would be it without the @"));
        }
        lists.insert(name.clone(), field.countries()?);
    }
    Ok(lists)
}

/// Every configured policy, in the order of `policies` and then of `[[policy]]`.
pub(super) fn read(
    tree: &Node,
    directory: &Path,
    around: Surroundings<'_>,
) -> Result<Vec<Sourced>> {
    let mut set = Set { around, list: Vec::new(), seen: BTreeMap::new() };
    let mut read_files = BTreeSet::new();
    let inline = super::field_of(tree, "policy").tables()?;
    let entries = super::field_of(tree, "policies");
    for entry in entries.list()? {
        let text = entry.nonempty_text()?;
        if let Some(name) = text.strip_prefix(PRESET) {
            set.add_document(&shipped::preset(&entry, name)?, text)?;
            continue;
        }
        let files = globs::find(directory, text).map_err(|found| {
            entry.wrong(&found, "right would be a glob such as \"policies/*.toml\"")
        })?;
        if files.is_empty() {
            let found = format!("{text:?} matches no file");
            let right = format!("looked in {}", globs::root(directory, text).display());
            return Err(entry.wrong(&found, &right));
        }
        for file in files {
            if read_files.insert(file.clone()) {
                set.add_file(&file)?;
            }
        }
    }
    if entries.list()?.is_empty() && inline.is_empty() {
        let default = shipped::preset(&entries, DEFAULT_PRESET)?;
        set.add_document(&default, &format!("{PRESET}{DEFAULT_PRESET}"))?;
    }
    for table in inline {
        set.add(&table, None)?;
    }
    Ok(set.list)
}

fn configured_globs(tree: &Node) -> Result<Vec<String>> {
    let texts = super::field_of(tree, "policies").texts()?;
    Ok(texts.into_iter().filter(|text| !text.starts_with(PRESET)).map(str::to_owned).collect())
}

struct Set<'a> {
    around: Surroundings<'a>,
    list: Vec<Sourced>,
    /// Id -> where it stands.
    seen: BTreeMap<String, String>,
}

impl Set<'_> {
    fn add_file(&mut self, file: &Path) -> Result<()> {
        let name = file.display().to_string();
        let text = fs::read_to_string(file).map_err(|error| {
            Fatal::Config(format!("{name}: cannot read this policy file: {error}"))
        })?;
        let absolute = std::path::absolute(file).unwrap_or_else(|_| file.to_owned());
        self.add_document(&parse_document(&name, &text)?, &absolute.display().to_string())
    }

    fn add_document(&mut self, document: &Node, source: &str) -> Result<()> {
        let table = Field::new("", document).table()?;
        table.refuse_unknown(&["preset", "policy"])?;
        if let Some(header) = table.field("preset") {
            header.table()?;
        }
        let right = "right would be at least one [[policy]]";
        let policies = table.required("policy", right)?.tables()?;
        policies.iter().try_for_each(|policy| self.add(policy, Some(source)))
    }

    fn add(&mut self, table: &Table<'_>, source: Option<&str>) -> Result<()> {
        let policy = policy::read(table, self.around)?;
        let id = table.required("id", "")?;
        let place = id.node.place.to_string();
        if let Some(first) = self.seen.insert(policy.id.clone(), place) {
            let found = format!("{:?} stands at {first} already", policy.id);
            return Err(wrong(
                &id.node.place,
                "policy.id",
                &found,
                "an id may stand once, whatever its version: right would be another id",
            ));
        }
        self.list.push(Sourced { policy, source: source.map(str::to_owned) });
        Ok(())
    }
}
