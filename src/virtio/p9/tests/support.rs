//! A server under a test's control.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use crate::fs::{HEADER, Header, Scratch, Wait};
use crate::memory::Buffers;
use crate::virtio::p9::pool::Serve;
use crate::virtio::testing::PATIENCE;

/// A message whose reply is what it says itself.
pub const ECHO: u8 = 200;
/// A message that makes the server panic.
pub const FAULT: u8 = 202;
/// A message whose reply is as long as there is room.
pub const LONG: u8 = 204;
/// Like [`ECHO`], and it is certain to take no time, whatever the test has it do.
pub const SURE: u8 = 206;
/// Like [`ECHO`], and it most likely takes no time.
pub const LIKELY: u8 = 208;
/// Like [`FAULT`], and certain to take no time.
pub const SURE_FAULT: u8 = 210;

/// Answers what a test sends, when the test says so.
#[derive(Default)]
pub struct Script {
    state: Mutex<State>,
    changed: Condvar,
    /// Threads of the device's that have served and live.
    threads: Arc<AtomicUsize>,
}

#[derive(Default)]
struct State {
    /// Tags that are not answered yet.
    held: BTreeSet<u16>,
    /// Tags of messages that have begun and not ended.
    inside: Vec<u16>,
    served: usize,
    /// Of those, the ones that no thread of the device's had to do with.
    at_once: usize,
    resets: usize,
}

/// Counts a thread until it ends.
struct Alive(Arc<AtomicUsize>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

thread_local! {
    static ALIVE: RefCell<Option<Alive>> = const { RefCell::new(None) };
}

impl Script {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Keeps messages with these tags from being answered.
    pub fn hold(&self, tags: impl IntoIterator<Item = u16>) {
        self.lock().held.extend(tags);
    }

    /// Lets messages with this tag be answered.
    pub fn release(&self, tag: u16) {
        self.lock().held.remove(&tag);
        self.changed.notify_all();
    }

    pub fn release_all(&self) {
        self.lock().held.clear();
        self.changed.notify_all();
    }

    /// Waits until so many messages have begun and not ended, and returns their tags, sorted.
    pub fn wait_inside(&self, count: usize) -> Vec<u16> {
        let begun = |state: &mut State| state.inside.len() != count;
        let wait = self.changed.wait_timeout_while(self.lock(), PATIENCE, begun).unwrap();
        let mut inside = wait.0.inside.clone();
        inside.sort_unstable();
        assert_eq!(inside.len(), count, "messages that have begun and not ended: {inside:?}");
        inside
    }

    /// How many messages have been served.
    pub fn served(&self) -> usize {
        self.lock().served
    }

    /// How many of them at once.
    pub fn at_once(&self) -> usize {
        self.lock().at_once
    }

    pub fn resets(&self) -> usize {
        self.lock().resets
    }

    pub fn threads(&self) -> usize {
        self.threads.load(Ordering::SeqCst)
    }

    fn count_thread(&self) {
        ALIVE.with_borrow_mut(|alive| {
            alive.get_or_insert_with(|| {
                self.threads.fetch_add(1, Ordering::SeqCst);
                Alive(self.threads.clone())
            });
        });
    }
}

impl Serve for Script {
    fn serve(
        &self,
        request: Buffers<'_>,
        reply: Buffers<'_>,
        _: &mut Scratch,
        wait: Wait,
    ) -> Option<usize> {
        let mut message = vec![0; request.total()];
        request.copy_to(&mut message);
        let header = Header::decode(message[..HEADER].try_into().unwrap());
        let least = match header.kind {
            SURE | SURE_FAULT => Wait::No,
            LIKELY => Wait::Brief,
            _ => Wait::Long,
        };
        match wait {
            _ if wait < least => return None,
            Wait::Long => self.count_thread(),
            _ => self.lock().at_once += 1,
        }
        let mut state = self.lock();
        state.inside.push(header.tag);
        state.served += 1;
        self.changed.notify_all();
        let held = |state: &mut State| state.held.contains(&header.tag);
        let mut state = self.changed.wait_while(state, held).unwrap();
        let index = state.inside.iter().position(|&tag| tag == header.tag).unwrap();
        state.inside.remove(index);
        self.changed.notify_all();
        drop(state);
        Some(match header.kind {
            // Without a message: the test wants it.
            FAULT | SURE_FAULT => std::panic::resume_unwind(Box::new("a fault")),
            LONG => reply.fill_from(&vec![0x5a; reply.total()]),
            kind => {
                message[..HEADER].copy_from_slice(&Header { kind: kind + 1, ..header }.encode());
                if reply.total() < message.len() { 0 } else { reply.fill_from(&message) }
            }
        })
    }

    fn reset(&self) {
        self.lock().resets += 1;
    }
}
