//! Who may be where at the same time.
//!
//! Between finding out where data is and reading or writing it there, nothing may move it or give its place to
//! something else. So whoever uses places has a [`Use`], many at a time; whoever changes them is alone while it does.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// A door that is open to users of places, and shut while they are changed.
#[derive(Debug, Default)]
pub(super) struct Gate(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    users: usize,
    shut: bool,
}

/// Keeps places as they are.
#[derive(Debug)]
pub(super) struct Use(Arc<Inner>);

/// Keeps everybody else out.
#[derive(Debug)]
pub(super) struct Shut<'a>(&'a Inner);

impl Gate {
    /// Waits until the door is open.
    pub fn enter(&self) -> Use {
        let state = self.0.changed.wait_while(self.0.lock(), |state| state.shut);
        state.unwrap_or_else(PoisonError::into_inner).users += 1;
        Use(self.0.clone())
    }

    /// Goes in if the door is open.
    pub fn try_enter(&self) -> Option<Use> {
        let mut state = self.0.lock();
        if state.shut {
            return None;
        }
        state.users += 1;
        Some(Use(self.0.clone()))
    }

    /// Shuts the door and waits until everybody has left. One at a time: the caller sees to that.
    pub fn shut(&self) -> Shut<'_> {
        let mut state = self.0.lock();
        state.shut = true;
        drop(self.0.changed.wait_while(state, |state| state.users > 0));
        Shut(&self.0)
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Use {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.users -= 1;
        if state.shut && state.users == 0 {
            self.0.changed.notify_all();
        }
    }
}

impl Drop for Shut<'_> {
    fn drop(&mut self) {
        self.0.lock().shut = false;
        self.0.changed.notify_all();
    }
}
