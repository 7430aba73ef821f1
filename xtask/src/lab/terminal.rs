//! The caller's terminal, while the lab's command has it: every key goes to the command, ctrl-C too.
//!
//! The settings come back when the guard is dropped and when a signal ends xtask.

use super::wire::Window;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use std::sync::{Mutex, PoisonError};

static SAVED: Mutex<Option<Termios>> = Mutex::new(None);

pub struct Raw;

impl Raw {
    /// Makes the terminal on standard input raw.
    pub fn enter() -> Raw {
        let stdin = std::io::stdin();
        if let Ok(cooked) = tcgetattr(&stdin) {
            let mut raw = cooked.clone();
            raw.make_raw();
            *SAVED.lock().unwrap_or_else(PoisonError::into_inner) = Some(cooked);
            let _ = tcsetattr(&stdin, OptionalActions::Now, &raw);
        }
        Raw
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Gives the terminal its settings back, if they were changed.
pub fn restore() {
    if let Some(cooked) = SAVED.lock().unwrap_or_else(PoisonError::into_inner).take() {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, &cooked);
    }
}

/// The size of the terminal on standard input, if it is one and has one.
pub fn window() -> Option<Window> {
    let size = tcgetwinsize(std::io::stdin()).ok()?;
    Some((size.ws_col, size.ws_row)).filter(|(columns, rows)| *columns > 0 && *rows > 0)
}
