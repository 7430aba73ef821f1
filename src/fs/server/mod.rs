//! The 9P server: one guest, one folder.

use crate::memory::{BufferList, Buffers};

/// Serves a folder to one guest.
pub(crate) struct Server {}

/// Room that a thread needs to answer messages, used again for each.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    request: Vec<u8>,
    reply: Vec<u8>,
    list: BufferList<'static>,
}

impl Server {
    pub fn new() -> Self {
        Self {}
    }

    /// Answers one message, a whole T-message in `request`, with a whole R-message in `reply`, and returns how long
    /// that is. What cannot be understood, or whose answer finds no room, is answered with Rlerror; 0 if there is not
    /// even room for that.
    ///
    /// Takes as long as the host's file system does, so it is called by several threads at once. Tflush does not come
    /// here: whoever runs the threads answers it after the message that it names.
    pub fn serve(&self, request: Buffers<'_>, reply: Buffers<'_>, scratch: &mut Scratch) -> usize {
        /// Rlerror, EOPNOTSUPP.
        const REFUSED: [u8; 4] = 95_u32.to_le_bytes();
        let mut header = [0; 7];
        request.copy_to(&mut header);
        scratch.reply.clear();
        scratch.reply.extend_from_slice(&[11, 0, 0, 0, 7, header[5], header[6]]);
        scratch.reply.extend_from_slice(&REFUSED);
        if reply.total() < scratch.reply.len() { 0 } else { reply.fill_from(&scratch.reply) }
    }

    /// The driver is gone, and with it all that it held. Messages that are being answered end as they would.
    pub fn reset(&self) {}
}
