//! Networks that only macOS has.

use hyperkit::net::{Net, Vmnet};

/// One of `kind`, which is `vmnet` or `tap`.
pub fn net(kind: &str, value: &str, options: &mut Vec<String>) -> Result<Net, String> {
    if kind != "vmnet" {
        return Err(format!("the network {kind} is for Linux only: here there are user and vmnet"));
    }
    let mut vmnet = match value.split_once(':').unwrap_or((value, "")) {
        ("" | "shared", "") => Net::vmnet(),
        ("host", "") => Vmnet::host(),
        ("bridged", interface) if !interface.is_empty() => Vmnet::bridged(interface),
        _ => return Err(format!("vmnet is shared, host or bridged:INTERFACE, not {value:?}")),
    };
    for option in std::mem::take(options) {
        vmnet = match option.split_once('=') {
            Some(("id", id)) => vmnet.id(id.parse().map_err(|error| format!("{id:?}: {error}"))?),
            _ => return Err(format!("the network vmnet has no option {option:?}")),
        };
    }
    Ok(vmnet.into())
}
