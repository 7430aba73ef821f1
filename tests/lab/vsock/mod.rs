//! Sockets between programs of the host and of a stock guest, in every way there is to make them.

mod conventions;
mod docker;
mod endings;
mod loads;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use hyperkit::vm::End;
use hyperkit::vsock::{Vsock, VsockStream};

use super::disks::tools;
use super::session::*;

/// What the guest's scripts are made of.
const PRELUDE: &str = include_str!("../../common/vsock.pl");

/// The port that the guest takes its script from.
const SCRIPT_PORT: u32 = 1;

/// Boots a guest that runs a script of Perl, and powers off when that ends. Whatever it prints is on the screen.
pub fn start(script: &str, vsock: Vsock) -> Session {
    // The option is what the prelude sets as well, for a connection that takes longer than Linux's two seconds.
    let bootstrap = format!(
        "ulimit -n 8192; in-tools /dev/vda perl -e 'socket(S,40,1,0);setsockopt(S,40,6,pack(\"qq\",600,0))||die $!;\
         connect(S,pack(\"SSLLx4\",40,0,{SCRIPT_PORT},2))||die $!;undef $/;eval <S>;die $@ if $@'"
    );
    let kernel = Flavour::Cloud.kernel(&scripted(QUIET, &bootstrap));
    let session = Session::start(|builder| {
        builder.disk(tools()).memory(384 << 20).kernel(kernel).vsock(vsock)
    });
    let listener = session.vm.vsock().listen(SCRIPT_PORT).unwrap();
    let script = format!("{PRELUDE}{script}");
    std::thread::spawn(move || {
        // A guest that is gone before it asks is the test's to find out.
        if let Ok((mut stream, _)) = listener.accept() {
            stream.write_all(script.as_bytes()).unwrap();
        }
    });
    session
}

/// Waits for the end of a guest whose script is to succeed, and returns what was printed.
#[track_caller]
pub fn finish(session: &Session) -> String {
    let end = session.end();
    let text = session.screen.text().replace('\r', "");
    assert_eq!(end.unwrap(), End::PowerOff, "{text}");
    assert!(text.contains("hk-test: exit 0"), "{text}");
    text
}

/// Connects to a port of the guest, once somebody listens there.
#[track_caller]
pub fn connect(session: &Session, port: u32) -> VsockStream {
    let end = Instant::now() + PATIENCE;
    loop {
        match session.vm.vsock().connect(port) {
            Ok(stream) => return stream,
            Err(error) if Instant::now() > end => {
                panic!("port {port}: {error}; the console:\n{}", session.screen.text())
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
}

/// Connects to a unix socket and reads a greeting that the guest sends at once; again, as long as it is not there.
#[track_caller]
fn greeting(path: &Path, hello: &str, answer: &str) -> UnixStream {
    let end = Instant::now() + PATIENCE;
    loop {
        let mut stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(hello.as_bytes()).unwrap();
        let mut got = vec![0; answer.len()];
        match stream.read_exact(&mut got) {
            Ok(()) => {
                assert_eq!(String::from_utf8_lossy(&got), answer);
                return stream;
            }
            Err(error) => assert!(Instant::now() < end, "{}: {error}", path.display()),
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
