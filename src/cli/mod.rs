//! The verbs: one file each, with its arguments and what it does.

pub mod backtest;
pub mod check;
pub mod demo;
mod duration;
pub mod explain;
pub mod logging;
pub mod notify;
pub mod policies;
pub mod replay;
pub mod run;
pub mod show;
pub mod simulate;
pub mod topics;
pub mod validate;

use std::io::{self, Write};

use crate::error::Fatal;

/// Prints to standard output. A reader that has gone (`| head`) is no failure.
pub(crate) fn print(text: &str) -> Result<(), Fatal> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Fatal::Input(format!("cannot write to standard output: {error}")))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
