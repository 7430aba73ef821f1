//! Messages to the user-mode network's own services, and replies from the host's name server: any bytes.
//!
//! The first byte says which. They arrive in good packets, so that all that is looked at is the message. Afterwards a good question is answered.

use hyperkit::net::Offloads;

use crate::user_frames::{Session, good, question, seal, udp};

/// Whom messages are for: our DHCP server, our name server, or whoever waits for the host's name server.
pub const DHCP: u8 = 0;
/// See [`DHCP`].
pub const DNS: u8 = 1;
/// See [`DHCP`].
pub const REPLY: u8 = 2;

/// Messages are not larger.
const MOST: usize = 1400;

/// Carries out an input.
pub fn run(data: &[u8]) {
    let Some((service, message)) = data.split_first() else { return };
    let message = &message[..message.len().min(MOST)];
    let mut session = Session::new(Offloads::empty());
    session.turn();
    let gateway = [192, 168, 65, 1];
    match service % 3 {
        DHCP | DNS => {
            let port = if service % 3 == DHCP { 67 } else { 53 };
            let mut frame = udp(gateway, port, message);
            seal(&mut frame);
            session.send(&frame, 0);
        }
        _ => {
            let mut frame = udp(gateway, 53, &question(b"\x07example\x03org"));
            seal(&mut frame);
            session.send(&frame, 0);
            let (asked, from) = session.question().expect("the server is asked");
            // The number is right, and the question may be.
            let mut reply = message.to_vec();
            if let Some(number) = reply.get_mut(..2) {
                number.copy_from_slice(&asked[..2]);
            }
            session.answer(&reply, from);
        }
    }
    session.turn();
    session.send(&good(0), 0);
    session.works();
}
