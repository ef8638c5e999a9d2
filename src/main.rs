//! The verbs. Exit codes: 0 done, 1 failed, 2 bad usage or configuration.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use flopwatch::cli::{
    backtest, check, demo, explain, logging, notify, policies, replay, run, simulate, topics,
    validate,
};
use flopwatch::error::Fatal;

/// Watches a cloud's compute metering for foreign accounts that use compute at the scale of large
/// AI training.
#[derive(Debug, Parser)]
#[command(name = "flopwatch", version)]
struct Cli {
    #[command(flatten)]
    logging: logging::Args,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Validate configuration and policies, and topics if reachable; print what is in effect
    Check(check::Args),
    /// The service: usage from Kafka, alerts to Kafka
    Run(run::Args),
    /// Take alerts from Kafka to Alertmanager, a webhook and OCSF findings
    Notify(notify::Args),
    /// Make the topics that are missing and verify the others
    Topics(topics::Args),
    /// Watch a simulated cloud: no broker, no configuration
    Demo(demo::Args),
    /// Run the production pipeline over files
    Replay(replay::Args),
    /// Run the numbers of one alert again, and say line by line whether they are equal
    Explain(explain::Args),
    /// Judge a history by candidate policies and by the current ones
    Backtest(backtest::Args),
    /// Compare what live and shadow policies have said
    Policies(policies::Args),
    /// Make up the usage of a cloud, with ground truth, or turn a job trace into usage
    Simulate(simulate::Args),
    /// Hold the pipeline against plain sums over public traces
    Validate(validate::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let quiet = matches!(cli.verb, Verb::Demo(_));
    match logging::init(cli.logging, quiet).and_then(|()| execute(cli.verb)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(fatal) => {
            eprintln!("error: {fatal}");
            ExitCode::from(fatal.exit_code())
        }
    }
}

fn execute(verb: Verb) -> Result<(), Fatal> {
    match verb {
        Verb::Check(args) => check::execute(args),
        Verb::Run(args) => run::execute(&args),
        Verb::Notify(args) => notify::execute(&args),
        Verb::Topics(args) => topics::execute(&args),
        Verb::Demo(args) => demo::execute(&args),
        Verb::Replay(args) => replay::execute(&args),
        Verb::Explain(args) => explain::execute(&args),
        Verb::Backtest(args) => backtest::execute(&args),
        Verb::Policies(args) => policies::execute(&args),
        Verb::Simulate(args) => simulate::execute(args),
        Verb::Validate(args) => validate::execute(args),
    }
}
