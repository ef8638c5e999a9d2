//! Logs go to standard error: for people on a terminal, else as JSON, one object a line.
//!
//! What is logged is chosen by `RUST_LOG` (default `info`), the form by `--log` or `FLOPWATCH_LOG`.
//! A verb that is quiet, because a person reads its output beside the log, starts from `warn`
//! unless a form is asked for.

use std::env::{self, VarError};
use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

use crate::error::Fatal;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Form of the log [default: human on a terminal, else json]
    #[arg(long, global = true, value_name = "FORM")]
    log: Option<Form>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Form {
    Human,
    Json,
}

/// Installs the log of this process.
pub fn init(args: Args, quiet: bool) -> Result<(), Fatal> {
    let level = if quiet && args.log.is_none() { "warn" } else { "info" };
    let form = match args.log {
        Some(form) => form,
        None => form_of_variable(env::var("FLOPWATCH_LOG"))?,
    };
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter(env::var("RUST_LOG"), level)?)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    match form {
        Form::Human => log.try_init(),
        Form::Json => log.json().flatten_event(true).try_init(),
    }
    .map_err(|error| Fatal::Internal(format!("cannot install the log: {error}")))
}

fn form_of_variable(variable: Result<String, VarError>) -> Result<Form, Fatal> {
    match variable.as_deref() {
        Ok("human") => Ok(Form::Human),
        Ok("json") => Ok(Form::Json),
        Ok("") | Err(VarError::NotPresent) => match io::stderr().is_terminal() {
            true => Ok(Form::Human),
            false => Ok(Form::Json),
        },
        Ok(_) | Err(VarError::NotUnicode(_)) => Err(Fatal::Config(
            "FLOPWATCH_LOG: unknown form; right would be \"human\" or \"json\"".to_owned(),
        )),
    }
}

fn filter(variable: Result<String, VarError>, level: &str) -> Result<EnvFilter, Fatal> {
    let directives = match variable {
        Ok(text) if !text.is_empty() => text,
        Ok(_) | Err(VarError::NotPresent) => level.to_owned(),
        Err(VarError::NotUnicode(_)) => {
            return Err(Fatal::Config("RUST_LOG: the value is not UTF-8".to_owned()));
        }
    };
    EnvFilter::try_new(&directives).map_err(|error| {
        Fatal::Config(format!(
            "RUST_LOG: {error}; right would be a level such as \"info\", or \
             \"info,flopwatch::kafka=debug\""
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_form_or_filter_is_bad_configuration() {
        assert_eq!(form_of_variable(Ok("json".to_owned())), Ok(Form::Json));
        assert_eq!(form_of_variable(Ok("human".to_owned())), Ok(Form::Human));
        assert!(form_of_variable(Ok("xml".to_owned())).is_err());
        assert!(filter(Ok("flopwatch=loud".to_owned()), "info").is_err());
        assert!(filter(Ok("info,flopwatch=debug".to_owned()), "warn").is_ok());
    }
}
