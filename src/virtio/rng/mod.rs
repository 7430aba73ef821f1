//! The entropy device (§5.4): gives the guest random bytes from the host's generator.

use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;

use super::{Chain, Context, Error, VirtioDevice};

/// A request gets no more than this, however much room it has: the driver asks again if it wants more.
pub const MAX_BYTES: usize = 64 << 10;

/// What the host gives at a time (POSIX's limit for `getentropy`).
const STEP: usize = 256;

const QUEUES: [u16; 1] = [64];

/// An entropy device.
#[derive(Debug, Default)]
pub struct Rng(());

impl Rng {
    /// An entropy device, fed by the host's generator.
    pub fn new() -> Self {
        Self::default()
    }
}

impl VirtioDevice for Rng {
    fn id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn name(&self) -> &str {
        "rng"
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUES
    }

    fn queue_ready(&mut self, index: u16, cx: &mut Context<'_>) -> Result<(), Error> {
        let Some(queue) = cx.queue(index) else { return Ok(()) };
        while let Some(chain) = queue.pop()? {
            let written = fill(&chain)?;
            queue.push(chain, written)?;
        }
        Ok(())
    }
}

fn fill(chain: &Chain) -> Result<u32, Error> {
    let mut writer = chain.writer();
    let mut bytes = [0; STEP];
    let mut left = writer.remaining().min(MAX_BYTES);
    while left > 0 {
        let Some(bytes) = bytes.get_mut(..left.min(STEP)) else { break };
        entropy(bytes)?;
        left -= writer.write(bytes);
    }
    Ok(writer.written())
}

/// Fills `bytes`, at most [`STEP`] of them, with random ones.
fn entropy(bytes: &mut [u8]) -> Result<(), Error> {
    // SAFETY: the pointer and the length are those of a slice that may be written.
    match unsafe { libc::getentropy(bytes.as_mut_ptr().cast(), bytes.len()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error().into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::feature;
    use crate::virtio::testing::{Buffer, Guest};
    use vm_memory::{Bytes, GuestAddress};

    fn bytes(guest: &Guest, at: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        guest.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        bytes
    }

    #[test]
    fn fills_requests_of_any_shape_and_nothing_beside_them() {
        for event_idx in [false, true] {
            let mut guest = Guest::new(Rng::new());
            let extra = feature::INDIRECT_DESC | if event_idx { feature::EVENT_IDX } else { 0 };
            let ring = &mut guest.start(extra, 64)[0];
            ring.event_idx = event_idx;
            let (at, table) = (guest.alloc(0x4000), guest.alloc(0x1000));
            let shapes: [&[Buffer]; 4] = [
                &[Buffer::In(at, 64)],
                &[Buffer::In(at, 1), Buffer::In(at + 2, 0), Buffer::In(at + 1, 999)],
                &[Buffer::Out(at + 0x3000, 16), Buffer::In(at, 300)],
                &[Buffer::Out(at, 16)],
            ];
            for (shape, len) in shapes.iter().zip([64, 1000, 300, 0]) {
                for indirect in [false, true] {
                    guest.memory.write_slice(&[0; 0x4000], GuestAddress(at)).unwrap();
                    let head = match indirect {
                        true => ring.request_indirect(table, shape),
                        false => ring.request(shape),
                    };
                    guest.kick(ring);
                    assert_eq!(guest.wait(ring), (head, len as u32));
                    let got = bytes(&guest, at, 0x4000);
                    assert!(got[len..].iter().all(|&byte| byte == 0), "written beyond {len}");
                    // 64 random bytes are all zero once in 2^512 runs.
                    assert_eq!(got[..len].iter().all(|&byte| byte == 0), len == 0);
                }
            }
        }
    }

    #[test]
    fn a_request_is_bounded() {
        let mut guest = Guest::new(Rng::new());
        let ring = &mut guest.start(0, 64)[0];
        let at = guest.alloc(1 << 20);
        ring.request(&[Buffer::In(at, 1000), Buffer::In(at + 1000, (1 << 20) - 1000)]);
        guest.kick(ring);
        assert_eq!(guest.wait(ring).1 as usize, MAX_BYTES);
        assert_eq!(bytes(&guest, at + MAX_BYTES as u64, 64), [0; 64]);
    }

    #[test]
    fn bytes_differ_from_request_to_request() {
        let mut guest = Guest::new(Rng::new());
        let ring = &mut guest.start(0, 64)[0];
        let at = guest.alloc(64);
        ring.request(&[Buffer::In(at, 32)]);
        ring.request(&[Buffer::In(at + 32, 32)]);
        guest.kick(ring);
        guest.wait(ring);
        guest.wait(ring);
        assert_ne!(bytes(&guest, at, 32), bytes(&guest, at + 32, 32));
    }
}
