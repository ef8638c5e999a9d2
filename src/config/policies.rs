//! The set of policies: files by glob, presets, tables in the main file; all or nothing; read again
//! by a running process when a file changes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use xxhash_rust::xxh3::Xxh3;

use super::field::{Field, Table};
use super::policy::{self, Surroundings};
use super::tree::{Node, parse_document, wrong};
use super::{Result, globs, shipped};
use crate::data::DEFAULT_PRESET;
use crate::detector::directory::Country;
use crate::detector::policy::{Policies, Policy};
use crate::detector::rules::TierRules;
use crate::detector::time::Span;
use crate::error::Fatal;

pub(super) const PRESET: &str = "preset:";

/// What the environment overrides.
#[derive(Clone)]
pub(super) enum Base {
    Defaults,
    File(PathBuf),
    Text { name: String, text: String },
}

/// Without the text, which may hold secrets.
impl fmt::Debug for Base {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Defaults => f.write_str("Defaults"),
            Self::File(path) => f.debug_tuple("File").field(path).finish(),
            Self::Text { name, .. } => f.debug_tuple("Text").field(name).finish(),
        }
    }
}

/// Where the policies came from, and what they are checked against: enough to read them again.
#[derive(Debug, Clone)]
pub struct ConfigSource {
    pub(super) base: Base,
    /// The environment's variables that matter to policies.
    pub(super) variables: Vec<(String, String)>,
    /// Of the running process: a changed `[[tier]]` waits for a restart.
    pub(super) tiers: Vec<TierRules>,
}

impl ConfigSource {
    /// Every file that a reload would read: the configuration file and the policy files as they
    /// are now.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files: BTreeSet<PathBuf> = self.file().map(Path::to_owned).into_iter().collect();
        let Ok(tree) = self.tree() else {
            return files.into_iter().collect();
        };
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
                Ok(bytes) => {
                    hash.update(&bytes.len().to_le_bytes());
                    hash.update(&bytes);
                }
                Err(error) => hash.update(error.kind().to_string().as_bytes()),
            }
        }
        hash.digest()
    }

    pub(super) fn directory(&self) -> &Path {
        self.file().and_then(Path::parent).unwrap_or(Path::new(""))
    }

    fn file(&self) -> Option<&Path> {
        match &self.base {
            Base::File(path) => Some(path),
            Base::Defaults | Base::Text { .. } => None,
        }
    }

    fn tree(&self) -> Result<Node> {
        super::layers(&self.base, &self.variables)
    }
}

/// Reads the policies again, for a running process; on an error it keeps those that it has. All
/// that is not `policies`, `[[policy]]` or `[lists]` stays as it was at the start.
pub fn load_policies(source: &ConfigSource) -> Result<Policies> {
    let tree = source.tree()?;
    let lists = read_lists(&tree)?;
    let around = Surroundings { tiers: &source.tiers, lists: &lists };
    Ok(read(&tree, source.directory(), around)?.in_force())
}

/// Policies of other files and sets (`preset:NAME`), under the tiers and lists of this
/// configuration: a candidate for its own.
pub fn load_candidate(source: &ConfigSource, files: &[String]) -> Result<Policies> {
    let tree = source.tree()?;
    let lists = read_lists(&tree)?;
    let around = Surroundings { tiers: &source.tiers, lists: &lists };
    let mut reader = Reader { around, list: Vec::new(), seen: BTreeMap::new() };
    for file in files {
        match file.strip_prefix(PRESET) {
            Some(name) => {
                let entries = super::field_of(&tree, "policies");
                reader.add_document(&shipped::preset(&entries, name)?, file)?;
            }
            None => reader.add_file(Path::new(file))?,
        }
    }
    Ok(Set { list: reader.list, left_out: Vec::new() }.in_force())
}

/// A policy and where it stands: a file, `preset:NAME`, or the configuration file itself.
#[derive(Debug)]
pub(super) struct Sourced {
    pub(super) policy: Policy,
    pub(super) source: Option<String>,
}

/// What was read.
#[derive(Debug)]
pub(super) struct Set {
    pub(super) list: Vec<Sourced>,
    /// Of the default set: no tier keeps their windows.
    pub(super) left_out: Vec<Sourced>,
}

impl Set {
    pub(super) fn in_force(self) -> Policies {
        for Sourced { policy, .. } in &self.left_out {
            tracing::warn!(
                policy = policy.id,
                "left out of the default set: no [[tier]] keeps its window"
            );
        }
        Policies { list: self.list.into_iter().map(|sourced| sourced.policy).collect() }
    }
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

/// Every configured policy, in the order of `policies` and then of `[[policy]]`; the shipped
/// default set if there is none.
pub(super) fn read(tree: &Node, directory: &Path, around: Surroundings<'_>) -> Result<Set> {
    let mut reader = Reader { around, list: Vec::new(), seen: BTreeMap::new() };
    let mut read_files = BTreeSet::new();
    let inline = super::field_of(tree, "policy").tables()?;
    let entries = super::field_of(tree, "policies");
    if entries.list()?.is_empty() && inline.is_empty() {
        return default_set(&entries, around);
    }
    for entry in entries.list()? {
        let text = entry.nonempty_text()?;
        if let Some(name) = text.strip_prefix(PRESET) {
            reader.add_document(&shipped::preset(&entry, name)?, text)?;
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
                reader.add_file(&file)?;
            }
        }
    }
    for table in inline {
        reader.add(&table, None)?;
    }
    Ok(Set { list: reader.list, left_out: Vec::new() })
}

/// The set that nobody asked for must not refuse tiers that somebody did: a policy of it whose
/// windows no tier keeps is left out, and said to be. Named as `preset:default` it is refused.
fn default_set(entries: &Field<'_>, around: Surroundings<'_>) -> Result<Set> {
    const ANY_WINDOW: [TierRules; 1] = [TierRules { slice: Span(1), keep: Span::LONGEST }];
    let around_default = Surroundings { tiers: &ANY_WINDOW, ..around };
    let mut reader = Reader { around: around_default, list: Vec::new(), seen: BTreeMap::new() };
    let document = shipped::preset(entries, DEFAULT_PRESET)?;
    reader.add_document(&document, &format!("{PRESET}{DEFAULT_PRESET}"))?;
    let (list, left_out) = reader
        .list
        .into_iter()
        .partition(|sourced: &Sourced| policy::fits(&sourced.policy, around.tiers));
    Ok(Set { list, left_out })
}

fn configured_globs(tree: &Node) -> Result<Vec<String>> {
    let texts = super::field_of(tree, "policies").texts()?;
    Ok(texts.into_iter().filter(|text| !text.starts_with(PRESET)).map(str::to_owned).collect())
}

struct Reader<'a> {
    around: Surroundings<'a>,
    list: Vec<Sourced>,
    /// Id -> where it stands.
    seen: BTreeMap<String, String>,
}

impl Reader<'_> {
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
