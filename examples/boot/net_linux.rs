//! Networks that only Linux has.

use hyperkit::net::Net;

/// One of `kind`, which is `tap` or `vmnet`.
pub fn net(kind: &str, value: &str, _options: &mut Vec<String>) -> Result<Net, String> {
    match kind {
        "tap" => Ok(Net::tap(value)),
        _ => Err(format!("the network {kind} is for macOS only: here there are user and tap=NAME")),
    }
}
