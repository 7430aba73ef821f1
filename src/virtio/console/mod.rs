//! The console device (§5.3), with one port: a fast terminal, `hvc0` to Linux.
//!
//! The host side is a [`Port`]: what the guest writes goes there, and waits a tenth of a second at most for a host that
//! is behind; input waits there until the driver has given buffers for it. So no input is kept in here, and a guest
//! that stops reading, or is reset in between, loses none. Of output there is one chain at most: that which a turn did
//! not come to the end of.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;

use super::{Chain, ConfigSpace, Context, Error, HostEvent, Interest, Sources, VirtioDevice};
use crate::console::Port;
use crate::sys::Notifier;

/// VIRTIO_CONSOLE_F_SIZE: the configuration space has the size of the terminal.
pub const F_SIZE: u64 = 1 << 0;

/// receiveq(port0): input.
const RECEIVE: u16 = 0;
/// transmitq(port0): output.
const TRANSMIT: u16 = 1;
const QUEUES: [u16; 2] = [64, 64];

/// Bytes copied at a time.
const STEP: usize = 4096;

/// Output of one turn. A chain may have 4 GiB, and there are 64 of them: whoever wants the device to pause, stop or be
/// reset is not to wait for that.
const TURN: usize = 512 << 10;
/// A turn ends as well after so long, with a host that is slow.
const TURN_TIME: Duration = Duration::from_millis(20);

/// A driver that has written nothing for so long has started, on a slow machine too.
const SETTLED: Duration = Duration::from_millis(500);
/// A driver that was made ready so long ago has started in any case.
const PATIENCE: Duration = Duration::from_secs(5);

/// A console device.
pub struct Console {
    port: Port,
    config: Arc<ConfigSpace>,
    /// Set by the port when there is input or another size.
    changed: Option<Arc<Notifier>>,
    /// The driver may still be starting.
    settling: Option<Settling>,
    /// Output that the last turn did not come to the end of, and how many bytes of it the host has.
    unfinished: Option<(Chain, usize)>,
}

/// How long input waits for a driver that starts.
///
/// Linux's throws away what comes before its probe has ended (`in_intr` in drivers/char/virtio_console.c), and has no
/// way to say when that is, with one port. But it writes the kernel's log out meanwhile, if it has any part in
/// that. So input begins when the driver has been silent for a moment.
struct Settling {
    until: Instant,
    limit: Instant,
}

impl Console {
    /// A console device with `port` as its host side.
    pub fn new(port: Port) -> Self {
        // cols, rows, max_nr_ports (one: F_MULTIPORT is not offered), emerg_wr.
        let config = ConfigSpace::new([0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        let config = Arc::new(config);
        let console = Self { port, config, changed: None, settling: None, unfinished: None };
        console.resize();
        console
    }

    /// Takes over the size of the terminal, and tells whether it is another one.
    fn resize(&self) -> bool {
        // A port without a terminal leaves 0 by 0, which drivers take for unknown.
        let Some((columns, rows)) = self.port.size() else { return false };
        let [[a, b], [c, d]] = [columns, rows].map(u16::to_le_bytes);
        self.config.set(0, &[a, b, c, d])
    }

    /// Input, as far as there are bytes and buffers.
    fn receive(&self, cx: &mut Context<'_>) -> Result<(), Error> {
        if self.settling.is_some() {
            return Ok(());
        }
        let Some(queue) = cx.queue(RECEIVE) else { return Ok(()) };
        let mut bytes = [0; STEP];
        while let Some(chain) = queue.pop()? {
            let mut writer = chain.writer();
            if writer.remaining() == 0 {
                return Err(Error::Driver("a buffer for input has no room"));
            }
            while let Some(bytes) = bytes.get_mut(..writer.remaining().min(STEP)) {
                let count = self.port.read(bytes);
                let Some(bytes) = bytes.get(..count).filter(|_| count > 0) else { break };
                writer.write(bytes);
            }
            let written = writer.written();
            if written == 0 {
                return Ok(queue.put_back(chain)?);
            }
            queue.push(chain, written)?;
        }
        Ok(())
    }

    /// Output, as much as a turn may have.
    fn transmit(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        let start = Instant::now();
        if let Some(settling) = &mut self.settling {
            settling.until = settling.limit.min(start + SETTLED);
        }
        let Some(queue) = cx.queue(TRANSMIT) else { return Ok(()) };
        let mut left = TURN;
        let mut bytes = [0; STEP];
        loop {
            let (chain, mut done) = match self.unfinished.take() {
                Some(unfinished) => unfinished,
                None => match queue.pop()? {
                    Some(chain) => (chain, 0),
                    None => return Ok(()),
                },
            };
            let mut reader = chain.reader();
            reader.skip(done);
            while reader.remaining() > 0 {
                let late = left < TURN && start.elapsed() >= TURN_TIME;
                if left == 0 || late {
                    // It stays in flight, as it is: the driver could change one that was put back.
                    self.unfinished = Some((chain, done));
                    queue.end_turn();
                    return Ok(());
                }
                let count = reader.read(&mut bytes);
                self.port.write_patiently(bytes.get(..count).unwrap_or_default());
                done += count;
                left = left.saturating_sub(count);
            }
            queue.push(chain, 0)?;
        }
    }
}

impl VirtioDevice for Console {
    fn id(&self) -> u32 {
        VIRTIO_ID_CONSOLE
    }

    fn name(&self) -> &str {
        "console"
    }

    fn features(&self) -> u64 {
        F_SIZE
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn config(&self) -> Arc<ConfigSpace> {
        self.config.clone()
    }

    fn start(&mut self, sources: Sources<'_>) -> io::Result<()> {
        let changed = Arc::new(Notifier::new()?);
        sources.add(&*changed, 0, Interest::READABLE)?;
        let [on_input, on_resize] = [changed.clone(), changed.clone()];
        self.changed = Some(changed);
        self.port.on_input(move || on_input.notify());
        self.port.on_resize(move || on_resize.notify());
        Ok(())
    }

    fn activate(&mut self, _features: u64, _cx: &mut Context<'_>) -> Result<(), Error> {
        let now = Instant::now();
        self.settling = Some(Settling { until: now + SETTLED, limit: now + PATIENCE });
        Ok(())
    }

    fn deadline(&self) -> Option<Instant> {
        self.settling.as_ref().map(|settling| settling.until)
    }

    fn timer(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        self.settling = None;
        self.receive(cx)
    }

    fn resume(&mut self, cx: &mut Context<'_>) -> Result<(), Error> {
        if cx.queue(TRANSMIT).is_none() {
            // The driver has given the queue up meanwhile, and its chains with it.
            self.unfinished = None;
        }
        Ok(())
    }

    fn reset(&mut self) {
        self.settling = None;
        self.unfinished = None;
    }

    fn queue_ready(&mut self, index: u16, cx: &mut Context<'_>) -> Result<(), Error> {
        match index {
            RECEIVE => self.receive(cx),
            _ => self.transmit(cx),
        }
    }

    fn host_ready(&mut self, _event: HostEvent, cx: &mut Context<'_>) -> Result<(), Error> {
        if let Some(changed) = &self.changed {
            changed.clear();
        }
        if self.resize() {
            cx.config_changed();
        }
        self.receive(cx)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        // The port may live on; the notifier, and its descriptor, are not to.
        self.port.on_input(|| {});
        self.port.on_resize(|| {});
    }
}
