//! The example that exposes a unix socket of the guest, with a stand-in for Docker behind it.

use std::process::{Command, Stdio};

use super::super::common::example;
use super::*;

#[test]
fn a_unix_socket_of_the_guest_is_one_of_the_host() {
    if !in_lab() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("docker.sock");
    let script = r#"
        cat > /tmp/docker <<'END'
#!/bin/sh
read -r line
while read -r more && [ ${#more} -gt 1 ]; do :; done
printf 'HTTP/1.0 200 OK\r\n\r\n{"Version":"0.0","Asked":"%s"}' "${line%?}"
[ "${line#GET /stop}" = "$line" ] || touch /tmp/stop
END
        chmod +x /tmp/docker
        in-tools /dev/vda socat UNIX-LISTEN:/run/docker.sock,fork EXEC:/tmp/docker &
        while [ ! -S /run/docker.sock ]; do sleep 0.1; done
        in-tools /dev/vda socat VSOCK-LISTEN:2376,fork UNIX-CONNECT:/run/docker.sock &
        for _ in $(seq 6000); do [ -e /tmp/stop ] && break; sleep 0.2; done
    "#;
    let (kernel, initrd) = Flavour::Cloud.files();
    let mut child = Command::new(example("docker_sock"))
        .arg("--kernel")
        .arg(kernel)
        .arg("--initrd")
        .arg(initrd)
        .args(["--cmdline", &scripted(QUIET, script)])
        .arg("--disk")
        .arg(std::env::var_os("HK_ROOT").unwrap())
        .arg("--socket")
        .arg(&socket)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = std::io::BufReader::new(child.stdout.take().unwrap());
    let mut line = || {
        let mut line = String::new();
        std::io::BufRead::read_line(&mut output, &mut line).unwrap();
        line
    };
    assert_eq!(line(), format!("ready: unix://{}\n", socket.display()));
    assert_eq!(line(), "{\"Version\":\"0.0\",\"Asked\":\"GET /version HTTP/1.0\"}\n");
    let ask = |what: &str| {
        let mut stream = UnixStream::connect(&socket).unwrap();
        write!(stream, "GET {what} HTTP/1.0\r\n\r\n").unwrap();
        stream
    };
    let mut answer = String::new();
    ask("/containers").read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with("\"Asked\":\"GET /containers HTTP/1.0\"}"), "{answer}");
    // The guest may be off before it has said anything to this.
    let _ = ask("/stop").read_to_string(&mut answer);
    assert!(child.wait().unwrap().success());
    assert!(!socket.exists());
}
