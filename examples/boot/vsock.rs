//! What `--vsock` says.

use hyperkit::vsock::Vsock;

use super::words;

/// The sockets that `--vsock` describes.
pub fn vsock(text: &str) -> Result<Vsock, String> {
    words(text).iter().filter(|word| !word.is_empty()).try_fold(Vsock::new(), |vsock, word| {
        let (name, value) = word.split_once('=').unwrap_or((word, ""));
        Ok(match name {
            "cid" => vsock.cid(number(value)?),
            "connections" => vsock.connections(number(value)? as usize),
            "hyperkit" => vsock.hyperkit(value),
            "forward" => vsock.hyperkit_forward(number(value)?),
            "hybrid" => vsock.hybrid(value),
            "guest" => {
                let (port, path) = port_and_path(value)?;
                vsock.guest_port(port, path)
            }
            "host" => {
                let (port, path) = port_and_path(value)?;
                vsock.host_port(port, path)
            }
            _ => return Err(format!("sockets have no option {word:?}")),
        })
    })
}

fn port_and_path(text: &str) -> Result<(u32, &str), String> {
    match text.split_once(':') {
        Some((port, path)) if !path.is_empty() => Ok((number(port)?, path)),
        _ => Err(format!("{text:?} is not PORT:PATH")),
    }
}

fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("{text:?} is not a number up to 4294967295"))
}
