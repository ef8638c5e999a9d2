//! The house rules that a compiler does not check: what the detector may not use, how files begin,
//! how long they are, where unsafe code is, and that the commands of every page exist.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use flopwatch::config::{Config, KEYS, Kind};

/// A file over this is split by responsibility; STYLE asks for about 500.
const MOST_LINES: usize = 650;

/// What would make a stage's outputs depend on anything but its records. Hash maps are for lookup,
/// with a fixed hasher; those that iterate over one are found below.
const FORBIDDEN_IN_DETECTOR: [&str; 25] = [
    "std::thread",
    "std::net",
    "std::fs",
    "std::env",
    "std::process",
    "std::sync::Mutex",
    "std::sync::RwLock",
    "Mutex<",
    "RwLock<",
    "Instant::now",
    "SystemTime",
    "Timestamp::now",
    "Zoned::now",
    "RandomState",
    "HashMap::new(",
    "HashSet::new(",
    "rand::",
    "rand_chacha",
    "tokio",
    "rdkafka",
    "tracing::",
    "metrics::",
    "dashmap",
    "crate::kafka",
    "unsafe {",
];

/// Methods of maps whose order is the hash's.
const ITERATING: [&str; 10] = [
    ".iter()",
    ".iter_mut()",
    ".keys()",
    ".values()",
    ".values_mut()",
    ".into_iter()",
    ".into_keys()",
    ".into_values()",
    ".drain()",
    ".retain(",
];

/// A line says so when it iterates over a hash map and order cannot show: the reason follows.
const ORDER_FREE: &str = "order-free:";

/// Maps that are iterated over in several places, each of them reviewed, and why order cannot show.
const ORDER_FREE_MAPS: [(&str, &str, &str); 2] = [
    ("account.rs", "accounts", "alerts and ledger are sorted by key, all else is per account"),
    ("group.rs", "groups", "alerts and ledger are sorted by key, all else is per group"),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Every Rust file below a folder of the project, in order.
fn rust_files(folder: &str) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.expect("a folder can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    files
}

/// The lines that are code, numbered from 1: no comments, and nothing from `mod tests` on.
fn code(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .enumerate()
        .map(|(index, line)| (index + 1, line))
        .take_while(|(_, line)| !line.trim_start().starts_with("#[cfg(test)]"))
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
}

/// One finding a line, so that a failure lists them all.
fn assert_none(rule: &str, findings: &[String]) {
    assert!(findings.is_empty(), "{rule}:\n{}", findings.join("\n"));
}

fn place(path: &Path, line: usize) -> String {
    format!("{}:{line}", path.strip_prefix(root()).unwrap_or(path).display())
}

fn is_test_file(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name == "tests.rs")
}

fn detector_files() -> impl Iterator<Item = PathBuf> {
    rust_files("src/detector").into_iter().filter(|path| !is_test_file(path))
}

#[test]
fn the_detector_has_no_clock_thread_lock_file_or_randomness() {
    let mut findings = Vec::new();
    for path in detector_files() {
        let text = read(&path);
        for (number, line) in code(&text) {
            for forbidden in FORBIDDEN_IN_DETECTOR.iter().filter(|word| line.contains(**word)) {
                findings.push(format!("{} uses {forbidden}", place(&path, number)));
            }
        }
    }
    assert_none("src/detector is a pure function of its records", &findings);
}

/// Names declared with a hash map or set type in a file.
fn hash_maps(text: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for (_, line) in code(text) {
        let Some(kind) = ["HashMap", "HashSet"].iter().find_map(|kind| line.find(kind)) else {
            continue;
        };
        let before = &line[..kind];
        let declared = before.rsplit_once(':').map(|(name, _)| name);
        let bound = before.split_once("let ").map(|(_, name)| name);
        for name in [declared, bound].into_iter().flatten() {
            let name = name.trim_start_matches("mut ").trim_end_matches([':', ' ', '=', '&']);
            let name: String = name
                .chars()
                .rev()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect::<String>()
                .chars()
                .rev()
                .collect();
            if !name.is_empty() {
                names.insert(name);
            }
        }
    }
    names
}

/// Lines that iterate over a hash map or set declared in the same file, and its name.
fn hash_iterations(text: &str) -> Vec<(usize, String)> {
    let names = hash_maps(text);
    let mut found = Vec::new();
    let mut previous = "";
    for (number, line) in text.lines().enumerate() {
        let excused = line.contains(ORDER_FREE) || previous.contains(ORDER_FREE);
        previous = line;
        if excused || line.trim_start().starts_with("//") {
            continue;
        }
        for name in &names {
            let called = ITERATING.iter().any(|method| {
                line.match_indices(&format!("{name}{method}"))
                    .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_'))
            });
            let looped = [" in &", " in &mut ", " in "].iter().any(|prefix| {
                [name.clone(), format!("self.{name}")]
                    .iter()
                    .any(|name| line.contains(&format!("{prefix}{name} {{")))
            });
            if called || looped {
                found.push((number + 1, name.clone()));
            }
        }
    }
    found
}

#[test]
fn the_detector_iterates_over_no_hash_map() {
    let mut findings = Vec::new();
    for path in detector_files() {
        let file = path.file_name().unwrap_or_default();
        for (line, name) in hash_iterations(&read(&path)) {
            if ORDER_FREE_MAPS.iter().any(|(at, map, _)| file == *at && name == *map) {
                continue;
            }
            findings.push(format!("{} iterates over {name}", place(&path, line)));
        }
    }
    let rule = "a hash map's order must not reach an output; sort, use a BTreeMap, or say in a \
                comment `order-free: why`";
    assert_none(rule, &findings);
}

#[test]
fn a_planted_iteration_is_seen() {
    let text = "struct S {\n    sums: HashMap<u32, u64>,\n    list: Vec<u8>,\n}\n\
                fn f(s: &S) {\n    for n in s.sums.values() {}\n    for n in s.list.iter() {}\n\
                // order-free: only counted\n    s.sums.iter().count();\n    s.resums.iter();\n\
                let mut seen = HashSet::new();\n    for x in &seen {\n}";
    let found = hash_iterations(text);
    assert_eq!(found, [(6, "sums".to_owned()), (12, "seen".to_owned())]);
}

#[test]
fn every_module_opens_by_saying_what_it_is() {
    let mut findings = Vec::new();
    for folder in ["src", "tests", "benches"] {
        for path in rust_files(folder) {
            let text = read(&path);
            let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
            // main.rs and lib.rs take their documentation from a file
            let opens = first.starts_with("//!") || first.starts_with("#![doc = include_str!(");
            if !opens {
                findings.push(place(&path, 1));
            }
        }
    }
    assert_none("every module opens with //!", &findings);
}

#[test]
fn files_stay_readable_in_one_sitting() {
    let mut findings = Vec::new();
    for path in rust_files("src") {
        let text = read(&path);
        let lines = text.lines().take_while(|line| line.trim() != "#[cfg(test)]").count();
        if lines > MOST_LINES && !is_test_file(&path) {
            findings.push(format!("{} has {lines} lines before its tests", place(&path, 1)));
        }
        for (number, line) in text.lines().enumerate() {
            // rustfmt breaks code, not comments
            if line.trim_start().starts_with("//") && line.chars().count() > 100 {
                findings.push(format!("{} is over 100 columns", place(&path, number + 1)));
            }
        }
    }
    assert_none("split by responsibility", &findings);
}

#[test]
fn unsafe_code_is_in_the_batch_consumer_only_and_says_why_it_is_sound() {
    let batch = root().join("src/kafka/batch.rs");
    let mut findings = Vec::new();
    for path in rust_files("src") {
        let text = read(&path);
        let lines: Vec<&str> = text.lines().collect();
        for (number, line) in code(&text) {
            let found = line.contains("unsafe {")
                || line.contains("unsafe fn")
                || line.contains("unsafe impl")
                || line.contains("unsafe extern");
            if !found {
                continue;
            }
            if path != batch {
                findings.push(format!("{}: unsafe", place(&path, number)));
                continue;
            }
            let above = lines[..number - 1].iter().rev().take(8);
            let reasoned = above
                .take_while(|line| !line.trim().is_empty())
                .any(|line| line.contains("SAFETY:") || line.contains("# Safety"));
            if !reasoned && !line.contains("SAFETY:") {
                findings.push(format!("{}: unsafe without SAFETY", place(&path, number)));
            }
        }
    }
    assert_none("unsafe code is in src/kafka/batch.rs only, each block with SAFETY", &findings);
}

#[test]
fn nothing_is_left_for_later_in_silence() {
    let words = ["todo!(", "unimplemented!(", "TODO", "FIXME", "XXX"];
    let mut findings = Vec::new();
    for path in rust_files("src") {
        for (number, line) in read(&path).lines().enumerate() {
            if words.iter().any(|word| line.contains(word)) {
                findings.push(place(&path, number + 1));
            }
        }
    }
    assert_none("src holds no stub", &findings);
}

/// Words after `make` in the code of a page.
fn make_targets(page: &str) -> BTreeSet<String> {
    let mut targets = BTreeSet::new();
    for (at, _) in page.match_indices("make ") {
        let quoted = page[..at].ends_with('`') || page[..at].ends_with('\n');
        let word: String = page[at + 5..].chars().take_while(char::is_ascii_lowercase).collect();
        if quoted && !word.is_empty() {
            targets.insert(word);
        }
    }
    targets
}

#[test]
fn the_commands_of_the_readme_exist() {
    let makefile = read(&root().join("Makefile"));
    let targets = make_targets(&read(&root().join("README.md")));
    for expected in ["demo", "test"] {
        assert!(targets.contains(expected), "the README no longer says make {expected}");
    }
    let findings: Vec<String> = targets
        .iter()
        .filter(|target| !makefile.lines().any(|line| line.starts_with(&format!("{target}:"))))
        .cloned()
        .collect();
    assert_none("README.md names make targets that the Makefile lacks", &findings);
    let run = read(&root().join(".ci/run"));
    assert!(run.lines().any(|line| line == "make test"), ".ci/run runs the README's test command");
}

/// Programs that pages for operators call, beside ours: they come with Kafka, Kubernetes, systemd,
/// a container's runtime or the system.
const PROGRAMS: [&str; 14] = [
    "curl",
    "docker",
    "grep",
    "journalctl",
    "kafka-configs.sh",
    "kafka-console-consumer.sh",
    "kafka-consumer-groups.sh",
    "kafka-topics.sh",
    "kubectl",
    "podman",
    "promtool",
    "sed",
    "systemctl",
    "export",
];

/// Pages whose commands are checked.
fn pages() -> Vec<PathBuf> {
    let mut pages = vec![root().join("README.md")];
    let mut folders = vec![root().join("deploy")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder can be listed") {
            let path = entry.expect("a folder can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                pages.push(path);
            }
        }
    }
    pages.sort();
    pages
}

/// The commands of a page's `sh` blocks, joined where a backslash breaks them, split at pipes.
fn commands(page: &str) -> Vec<String> {
    let mut commands = Vec::new();
    // a block within a list is indented
    let unindented: Vec<&str> = page.lines().map(str::trim_start).collect();
    let text = unindented.join("\n");
    for block in blocks(&text, "sh") {
        let block = block.replace("\\\n", " ");
        for line in block.lines().map(|line| line.split(" # ").next().unwrap_or_default()) {
            let parts = line.split(" | ").map(str::trim);
            commands.extend(parts.filter(|part| !part.is_empty()).map(str::to_owned));
        }
    }
    commands
}

/// What `flopwatch VERB… --help` says.
fn help_of(verbs: &[&str]) -> Option<String> {
    let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_flopwatch"));
    let output = program.args(verbs).arg("--help").output().expect("the program starts");
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What is wrong with a call of ours: an unknown verb or option.
fn unknown_call(words: &[&str]) -> Option<String> {
    let Some(mut help) = words.get(1).and_then(|_| help_of(&words[1..2])) else {
        return Some(format!("no verb {:?}", words.get(1)));
    };
    if help.contains("<COMMAND>") {
        let Some(of_second) = words.get(2).and_then(|_| help_of(&words[1..3])) else {
            return Some(format!("no verb {:?} of {}", words.get(2), words[1]));
        };
        help = of_second;
    }
    let options = words.iter().filter_map(|word| word.strip_prefix("--"));
    options.map(|option| option.split('=').next().unwrap_or_default()).find_map(|option| {
        let known =
            help.contains(&format!("--{option} ")) || help.contains(&format!("--{option}\n"));
        (!known).then(|| format!("{} has no --{option}", words[1]))
    })
}

fn unknown_command(command: &str, makefile: &str) -> Option<String> {
    let words: Vec<&str> = command.split_whitespace().collect();
    match words.first().copied().unwrap_or_default() {
        "flopwatch" => unknown_call(&words),
        "make" => {
            let target = words.get(1)?;
            let known = makefile.lines().any(|line| line.starts_with(&format!("{target}:")));
            (!known).then(|| format!("no target {target}"))
        }
        program if PROGRAMS.contains(&program) => None,
        program => Some(format!("{program} is no program that an operator has")),
    }
}

#[test]
fn the_commands_of_all_pages_exist_with_their_options() {
    let makefile = read(&root().join("Makefile"));
    let mut findings = Vec::new();
    let mut seen = 0;
    for page in pages() {
        let text = read(&page);
        for command in commands(&text) {
            seen += 1;
            if let Some(finding) = unknown_command(&command, &makefile) {
                findings.push(format!("{}: {command}: {finding}", place(&page, 1)));
            }
        }
        // and those within sentences
        for code in text.split('`').skip(1).step_by(2).filter(|code| !code.contains('\n')) {
            let words: Vec<&str> = code.split_whitespace().collect();
            if words.first() == Some(&"flopwatch")
                && words.get(1).is_some_and(|verb| verb.chars().all(|c| c.is_ascii_lowercase()))
            {
                seen += 1;
                if let Some(finding) = unknown_call(&words) {
                    findings.push(format!("{}: {code}: {finding}", place(&page, 1)));
                }
            }
        }
    }
    assert_none("commands on pages", &findings);
    assert!(seen > 60, "{seen} commands");
}

#[test]
fn a_command_that_does_not_exist_is_seen() {
    let page = "1. a list\n\n   ```sh\n   flopwatch check \\\n     --confg F | grep x\n   frobnicate\n   \
                flopwatch chek\n   ```\n";
    let found: Vec<String> =
        commands(page).iter().filter_map(|command| unknown_command(command, "")).collect();
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(found[0].contains("check has no --confg"), "{found:?}");
}

#[test]
fn the_readme_has_every_configuration_key_with_its_default() {
    let readme = read(&root().join("README.md"));
    let mut findings = Vec::new();
    for key in KEYS {
        let starts = [
            format!("| `{}` |", key.path),
            format!("| `[{}]` |", key.path),
            format!("| `[[{}]]` ", key.path),
        ];
        let row = readme.lines().find(|line| starts.iter().any(|start| line.starts_with(start)));
        let scalar = !matches!(key.kind, Kind::List | Kind::Table | Kind::Tables);
        match row {
            None => findings.push(format!("{} is missing", key.path)),
            Some(row) if scalar && !row.contains(&format!("| `{}` |", key.default)) => {
                findings.push(format!("{}: its default is {}", key.path, key.default));
            }
            Some(_) => {}
        }
    }
    assert_none("the table in README.md and config::KEYS", &findings);
}

/// The fenced blocks of one language on a page.
fn blocks<'a>(page: &'a str, language: &str) -> Vec<&'a str> {
    let fence = format!("```{language}\n");
    page.split(fence.as_str()).skip(1).filter_map(|rest| rest.split("```").next()).collect()
}

#[test]
fn configurations_that_are_shown_or_shipped_load() {
    let readme = read(&root().join("README.md"));
    let folder = tempfile::tempdir().expect("a temporary folder can be made");
    let shipped = ["flopwatch.toml", "kubernetes/config/flopwatch.toml", "compose/flopwatch.toml"];
    let mut files: Vec<PathBuf> =
        shipped.iter().map(|file| root().join("deploy").join(file)).collect();
    for (number, block) in blocks(&readme, "toml").into_iter().enumerate() {
        let path = folder.path().join(format!("readme-{number}.toml"));
        std::fs::write(&path, block).expect("a temporary file can be written");
        files.push(path);
    }
    assert!(files.len() > 4, "the README shows a policy and a mapping");
    for path in files {
        if let Err(error) = Config::load(Some(&path)) {
            panic!("{error}");
        }
    }
    for block in blocks(&readme, "json") {
        if let Err(error) = serde_json::from_str::<serde_json::Value>(block) {
            panic!("{error} in {block}");
        }
    }
}

#[test]
fn the_files_that_pages_link_to_exist() {
    let mut findings = Vec::new();
    let mut linking = pages();
    linking.push(root().join("src/ARCHITECTURE.md"));
    for path in linking {
        let page = place(&path, 1);
        let text = read(&path);
        let folder = path.parent().expect("a page has a folder");
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap_or_default();
            let elsewhere = target.is_empty() || target.contains("://");
            if !elsewhere && !folder.join(target).exists() {
                findings.push(format!("{page} links to {target}"));
            }
        }
    }
    assert_none("broken links", &findings);
}

#[test]
fn the_container_runs_without_root_on_a_file_system_that_it_does_not_write() {
    let file = read(&root().join("deploy/container/Containerfile"));
    let last = file.rsplit("\nFROM ").next().expect("a stage");
    let user = last.lines().rfind(|line| line.starts_with("USER ")).expect("a user");
    let ids = user["USER ".len()..].split(':').map(str::parse::<u32>);
    let ids: Vec<u32> = ids.map(|id| id.expect("numbers, which Kubernetes can check")).collect();
    assert!(ids.len() == 2 && ids.iter().all(|id| *id >= 1000), "{user}");
    let (before, after) = last.split_once(user).expect("found above");
    assert!(after.contains("ENTRYPOINT") && !before.contains("ENTRYPOINT"), "{last}");
    for word in ["VOLUME", "ADD ", "ENV ", "chmod", "setcap", "sudo"] {
        assert!(!last.contains(word), "{word} in the image that is shipped");
    }
    assert!(file.contains("--read-only") && file.contains("no-new-privileges"), "how to run it");
    let unit = read(&root().join("deploy/systemd/flopwatch.service"));
    for line in ["ProtectSystem=strict", "NoNewPrivileges=yes", "DynamicUser=yes"] {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
    // what the service runs opens no file for writing; these verbs and their parts do
    let writers = ["src/cli/", "src/record_file/writer.rs", "src/simulate/"];
    let mut findings = Vec::new();
    for path in rust_files("src").into_iter().filter(|path| {
        !path.components().any(|part| part.as_os_str() == "tests") && !is_test_file(path)
    }) {
        let shown = place(&path, 1);
        for (number, line) in code(&read(&path)) {
            let writes = ["File::create", "fs::write", "create_dir", "OpenOptions"];
            if writes.iter().any(|call| line.contains(call))
                && (shown.contains("src/cli/run.rs")
                    || !writers.iter().any(|writer| shown.starts_with(writer)))
            {
                findings.push(place(&path, number));
            }
        }
    }
    assert_none("the service writes no file", &findings);
}

/// What a unified diff takes for granted: each hunk's old lines, under the file they are of.
fn old_sides(patch: &str) -> Vec<(String, String)> {
    let mut sides: Vec<(String, String)> = Vec::new();
    let mut file = "";
    for line in patch.lines() {
        if let Some(name) = line.strip_prefix("--- a/") {
            file = name;
        } else if line.starts_with("@@ ") {
            sides.push((file.to_owned(), String::new()));
        } else if let Some((_, old)) = sides.last_mut()
            && !line.starts_with("+++ ")
            && let Some(kept) = line.strip_prefix([' ', '-']).or(line.is_empty().then_some(""))
        {
            *old += &format!("{kept}\n");
        }
    }
    sides
}

#[test]
fn the_mistakes_that_chaos_plants_fit_the_sources_as_they_are() {
    let folder = root().join("tests/chaos/plants");
    let mut findings = Vec::new();
    let mut hunks = 0;
    for entry in std::fs::read_dir(&folder).expect("the folder of plants") {
        let path = entry.expect("a folder can be listed").path();
        for (file, old) in old_sides(&read(&path)) {
            hunks += 1;
            let source = read(&root().join(&file));
            if source.matches(&old).count() != 1 {
                findings.push(format!("{}: not once in {file}:\n{old}", place(&path, 1)));
            }
        }
    }
    assert!(hunks >= 4, "{hunks} hunks");
    assert_none("make chaos-plants cannot plant", &findings);
}

/// `a_{b,c}_*` as the names it stands for, each with a `*` for anything.
fn spelled_out(name: &str) -> Vec<String> {
    let Some((before, rest)) = name.split_once('{') else { return vec![name.to_owned()] };
    let (choices, after) = rest.split_once('}').expect("a brace is closed");
    choices.split(',').flat_map(|choice| spelled_out(&format!("{before}{choice}{after}"))).collect()
}

#[test]
fn the_tests_that_the_architecture_names_exist() {
    let page = read(&root().join("src/ARCHITECTURE.md"));
    let tests: Vec<String> = ["src", "tests"]
        .into_iter()
        .flat_map(rust_files)
        .flat_map(|path| {
            let text = read(&path);
            let names = text.split("#[test]\n").skip(1).filter_map(|test| {
                let (_, test) = test.split_once("fn ")?;
                Some(test.split('(').next()?.to_owned())
            });
            names.collect::<Vec<_>>()
        })
        .collect();
    let (mut findings, mut named) = (Vec::new(), 0);
    // in the tables alone: rows of faults and crash points
    let rows = page.lines().filter(|line| line.starts_with("| "));
    for word in rows.flat_map(|row| row.split('`').skip(1).step_by(2)) {
        let is_test = word.matches('_').count() >= 2
            && word.chars().all(|c| c.is_ascii_lowercase() || "_{},*0123456789".contains(c))
            && !word.starts_with("flopwatch_");
        for name in spelled_out(word).into_iter().filter(|_| is_test) {
            named += 1;
            let known = match name.split_once('*') {
                None => tests.contains(&name),
                Some((start, end)) => {
                    tests.iter().any(|test| test.starts_with(start) && test.ends_with(end))
                }
            };
            if !known && name != "time_in_future" {
                findings.push(name);
            }
        }
    }
    assert!(named > 20, "{named} tests are named");
    assert_none("src/ARCHITECTURE.md names tests that are not there", &findings);
}
