//! Files by glob, one path component at a time: `policies/*.toml`, `/etc/flopwatch/**/*.toml`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Component, Path, PathBuf};

use globset::{Glob, GlobMatcher};

/// How deep `**` looks: a link that leads back up must end somewhere.
const DEPTH_LIMIT: usize = 16;

enum Step {
    /// A name as it stands.
    Name(PathBuf),
    /// Names that match.
    Pattern(GlobMatcher),
    /// Any number of directories.
    Anywhere,
}

/// Matching files in order of path. A name that starts with a dot needs a pattern that does: what a
/// mounted volume keeps for itself (`..data`) must not be read twice.
pub(super) fn find(directory: &Path, glob: &str) -> Result<Vec<PathBuf>, String> {
    let steps = steps(glob)?;
    let mut found = BTreeSet::from([directory.to_owned()]);
    for step in &steps {
        let mut next = BTreeSet::new();
        for path in found {
            match step {
                Step::Name(name) => drop(next.insert(path.join(name))),
                Step::Pattern(pattern) => {
                    next.extend(entries(&path).into_iter().filter(|entry| has_name(entry, pattern)))
                }
                Step::Anywhere => add_below(&path, DEPTH_LIMIT, &mut next),
            }
        }
        found = next;
    }
    Ok(found.into_iter().filter(|path| path.is_file()).collect())
}

/// The directory from which the glob looks.
pub(super) fn root(directory: &Path, glob: &str) -> PathBuf {
    let mut root = directory.to_owned();
    for step in steps(glob).unwrap_or_default() {
        match step {
            Step::Name(name) => root.push(name),
            Step::Pattern(_) | Step::Anywhere => return root,
        }
    }
    root.pop();
    root
}

/// A path as a glob that matches it alone.
pub(super) fn escape(path: &Path) -> String {
    globset::escape(&path.to_string_lossy())
}

fn steps(glob: &str) -> Result<Vec<Step>, String> {
    let mut steps = Vec::new();
    for component in Path::new(glob).components() {
        let text = component.as_os_str().to_string_lossy();
        steps.push(match component {
            Component::Normal(_) if text == "**" => Step::Anywhere,
            Component::Normal(_) if text.contains(['*', '?', '[', '{', '\\']) => {
                let pattern = Glob::new(&text)
                    .map_err(|error| format!("{glob:?} is not a glob: {}", error.kind()))?;
                Step::Pattern(pattern.compile_matcher())
            }
            Component::Normal(_)
            | Component::Prefix(_)
            | Component::RootDir
            | Component::CurDir
            | Component::ParentDir => Step::Name(PathBuf::from(text.as_ref())),
        });
    }
    Ok(steps)
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    // `read_dir("")` fails where "" means here.
    let named = if directory.as_os_str().is_empty() { Path::new(".") } else { directory };
    let Ok(entries) = fs::read_dir(named) else {
        return Vec::new();
    };
    entries.flatten().map(|entry| directory.join(entry.file_name())).collect()
}

fn has_name(path: &Path, pattern: &GlobMatcher) -> bool {
    let asks_for_dot = pattern.glob().glob().starts_with('.');
    path.file_name()
        .is_some_and(|name| pattern.is_match(name) && (asks_for_dot || !is_hidden(path)))
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."))
}

fn add_below(path: &Path, depth: usize, found: &mut BTreeSet<PathBuf>) {
    found.insert(path.to_owned());
    if depth > 0 {
        for entry in entries(path) {
            if entry.is_dir() && !is_hidden(&entry) {
                add_below(&entry, depth - 1, found);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path, glob: &str) -> Vec<String> {
        let files = find(directory, glob).expect("a glob");
        let name = |file: &PathBuf| {
            file.strip_prefix(directory).expect("below").to_string_lossy().into_owned()
        };
        files.iter().map(name).collect()
    }

    #[test]
    fn globs_find_files_in_order_and_leave_hidden_ones_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        for file in
            ["b.toml", "a.toml", "c.txt", ".d.toml", "sub/e.toml", "..data/a.toml", "[x].toml"]
        {
            let path = directory.path().join(file);
            fs::create_dir_all(path.parent().expect("a parent")).expect("created");
            fs::write(path, "").expect("written");
        }
        let found = |glob: &str| names(directory.path(), glob);
        assert_eq!(found("*.toml"), ["[x].toml", "a.toml", "b.toml"]);
        assert_eq!(found("{a,b}.toml"), ["a.toml", "b.toml"]);
        assert_eq!(found("a.toml"), ["a.toml"]);
        assert_eq!(found("**/*.toml"), ["[x].toml", "a.toml", "b.toml", "sub/e.toml"]);
        assert_eq!(found("*/e.toml"), ["sub/e.toml"]);
        assert_eq!(found(".*.toml"), [".d.toml"]);
        assert_eq!(found(&escape(Path::new("[x].toml"))), ["[x].toml"]);
        assert_eq!(found("none/*.toml"), Vec::<String>::new());
        assert!(find(directory.path(), "[a.toml").is_err());
    }
}
