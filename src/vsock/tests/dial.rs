//! Where connections of the guest go.

use std::io::Write;
use std::os::unix::net::UnixListener;
use std::path::Path;

use super::*;

pub const PORT: u32 = 1024;
pub const FROM: u32 = 0x1234_5678;

pub fn everything(dir: &Path) -> Vsock {
    Vsock::new().hyperkit(dir).hybrid(dir.join("v")).host_port(PORT, dir.join("own"))
}

pub fn dial(open: &OpenVsock) -> Dial {
    open.dial(Kind::Stream, PORT, FROM)
}

#[track_caller]
pub fn connected(dial: Dial) -> OwnedFd {
    match dial {
        Dial::Connected(socket) => socket,
        dial => panic!("{dial:?}"),
    }
}

/// Asserts that what is dialled now arrives at `listener`, and that bytes pass.
#[track_caller]
fn arrives(open: &OpenVsock, listener: &UnixListener) {
    let ours = connected(dial(open));
    let (mut theirs, _) = listener.accept().unwrap();
    rustix::io::write(&ours, b"from the guest").unwrap();
    let mut heard = [0; 14];
    theirs.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"from the guest");
    assert!(
        rustix::io::read(&ours, &mut [0; 1]).is_err_and(|error| error == rustix::io::Errno::AGAIN)
    );
    theirs.write_all(b"to the guest").unwrap();
    assert_eq!(read_now(&ours), b"to the guest");
}

#[test]
fn a_port_is_looked_for_in_this_program_then_where_it_was_named_then_by_convention() {
    let dir = folder();
    let open = everything(dir.path()).open().unwrap();
    assert!(matches!(dial(&open), Dial::Refused));

    let hyperkit = UnixListener::bind(dir.path().join("00000002.00000400")).unwrap();
    arrives(&open, &hyperkit);
    let hybrid = UnixListener::bind(dir.path().join("v_1024")).unwrap();
    arrives(&open, &hybrid);
    let own = UnixListener::bind(dir.path().join("own")).unwrap();
    arrives(&open, &own);
    let listener = open.handle().listen(PORT).unwrap();
    let _ours = connected(dial(&open));
    assert_eq!(listener.accept().unwrap().1, FROM);

    drop(listener);
    arrives(&open, &own);
    // A socket that was left behind counts for nothing.
    drop(own);
    arrives(&open, &hybrid);
    std::fs::remove_file(dir.path().join("v_1024")).unwrap();
    arrives(&open, &hyperkit);
    drop(hyperkit);
    assert!(matches!(dial(&open), Dial::Refused));
}

#[test]
fn a_port_that_was_not_named_is_refused() {
    let dir = folder();
    let open = everything(dir.path()).open().unwrap();
    let _own = UnixListener::bind(dir.path().join("own")).unwrap();
    assert!(matches!(open.dial(Kind::Stream, PORT + 1, FROM), Dial::Refused));
    let nothing = Vsock::new().open().unwrap();
    assert!(matches!(dial(&nothing), Dial::Refused));
}

#[test]
fn a_file_that_is_no_socket_is_nobody() {
    let dir = folder();
    let open = everything(dir.path()).open().unwrap();
    std::fs::write(dir.path().join("own"), "mine").unwrap();
    assert!(matches!(dial(&open), Dial::Refused));
}
