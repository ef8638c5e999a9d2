//! The program as operators meet it: exit codes, what goes to which stream.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn flopwatch(arguments: &[&str], variables: &[(&str, &str)]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flopwatch"));
    command.args(arguments).env_clear().envs(variables.iter().copied());
    command.output().expect("the program starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("output is UTF-8")
}

fn check(file: &Path, variables: &[(&str, &str)]) -> Output {
    flopwatch(&["check", "--config", file.to_str().expect("UTF-8")], variables)
}

/// The lines of a failure: none on standard output.
fn error_of(output: &Output, code: i32) -> String {
    assert_eq!(output.status.code(), Some(code), "{output:?}");
    assert_eq!(text(&output.stdout), "");
    text(&output.stderr)
}

#[test]
fn without_a_file_the_defaults_are_in_effect() {
    // a Kafka of this machine may answer at the default address: its topics are not at issue
    let output = flopwatch(&["check"], &[]);
    let printed = text(&output.stdout);
    assert!(printed.contains("bootstrap_servers = \"127.0.0.1:9092\""), "{printed}");
    assert!(printed.contains("preset:default"), "{printed}");
}

#[test]
fn what_check_prints_is_a_configuration_that_checks_to_itself() {
    let directory = tempfile::tempdir().expect("a directory");
    let variables = [
        ("FLOPWATCH__KAFKA__WORKERS", "3"),
        ("FLOPWATCH__KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1"),
    ];
    let printed = flopwatch(&["check"], &variables).stdout;
    let file = directory.path().join("effective.toml");
    fs::write(&file, &printed).expect("written");
    let again = check(&file, &[]);
    assert_eq!(again.status.code(), Some(0), "{again:?}");
    assert_eq!(text(&again.stdout), text(&printed));
    assert!(text(&printed).contains("workers = 3"));
}

#[test]
fn a_wrong_key_is_one_line_and_exit_code_2() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("flopwatch.toml");
    fs::write(&file, "[kafka]\n\nworker = 2\n").expect("written");
    let expected = format!(
        "error: configuration: {}:3: kafka.worker: unknown key; did you mean \"workers\"?\n",
        file.display()
    );
    assert_eq!(error_of(&check(&file, &[]), 2), expected);
}

#[test]
fn a_wrong_policy_file_is_one_line_and_exit_code_2() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("flopwatch.toml");
    let policy = directory.path().join("mine.toml");
    fs::write(&file, "policies = [\"*.policy\", \"mine.toml\"]\n").expect("written");
    let error = error_of(&check(&file, &[]), 2);
    assert!(error.contains(":1: policies: \"*.policy\" matches no file; looked in "), "{error}");
    fs::write(&file, "policies = [\"mine.toml\"]\n").expect("written");
    let text = "[[policy]]\nid = \"x\"\nseverity = \"info\"\nwindow = \"72h\"\n\
                [[policy.all]]\nmetric = \"flops\"\nat_least = 1\n";
    fs::write(&policy, text).expect("written");
    let expected = format!(
        "error: configuration: {}:6: policy.all.metric: unknown metric \"flops\"; did you mean \
         \"flop\"?\n",
        policy.display()
    );
    assert_eq!(error_of(&check(&file, &[]), 2), expected);
}

#[test]
fn a_missing_file_and_a_wrong_variable_are_exit_code_2() {
    let error = error_of(&check(Path::new("/no/such.toml"), &[]), 2);
    assert!(error.starts_with("error: configuration: /no/such.toml: cannot read"), "{error}");
    let error = error_of(&flopwatch(&["check"], &[("FLOPWATCH__KAFKA__WORKER", "1")]), 2);
    assert_eq!(
        error,
        "error: configuration: FLOPWATCH__KAFKA__WORKER: environment: unknown variable; did you \
         mean FLOPWATCH__KAFKA__WORKERS?\n"
    );
    let error = error_of(&flopwatch(&["check"], &[("FLOPWATCH_LOG", "xml")]), 2);
    assert!(error.contains("FLOPWATCH_LOG: unknown form"), "{error}");
}

#[test]
fn a_broker_that_does_not_answer_is_a_note_and_no_failure() {
    // nothing listens on port 1
    let variables = [("FLOPWATCH__KAFKA__BOOTSTRAP_SERVERS", "127.0.0.1:1")];
    let output = flopwatch(&["check"], &variables);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let printed = text(&output.stdout);
    assert!(printed.contains("bootstrap_servers = \"127.0.0.1:1\""), "{printed}");
    let note = text(&output.stderr);
    assert_eq!(note.lines().count(), 1, "{note}");
    assert!(note.starts_with("note: topics were not checked: kafka: no broker answers"), "{note}");
}

#[test]
fn bad_usage_is_exit_code_2() {
    for arguments in [&["chekc"][..], &[], &["check", "--confg", "x"], &["check", "--log", "xml"]] {
        let error = error_of(&flopwatch(arguments, &[]), 2);
        assert!(error.contains("--help"), "{error}");
    }
}

#[test]
fn version_and_help_are_on_standard_output() {
    let output = flopwatch(&["--version"], &[]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(text(&output.stdout), concat!("flopwatch ", env!("CARGO_PKG_VERSION"), "\n"));
    let help = text(&flopwatch(&["--help"], &[]).stdout);
    assert!(help.contains("check"), "{help}");
    assert!(help.lines().count() < 40, "one screen: {help}");
}
