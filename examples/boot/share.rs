//! What `--share` says.

use hyperkit::fs::{Owner, RelayTo, Share};

use super::words;

/// The share that `--share` describes.
pub fn share(text: &str) -> Result<Share, String> {
    let mut words = words(text).into_iter();
    let first = words.next().unwrap_or_default();
    let mut options: Vec<String> = words.collect();
    let mut share = match first.split_once('=') {
        Some((tag, dir)) if !dir.is_empty() => Share::new(tag, dir),
        _ => {
            let to = if options.is_empty() { String::new() } else { options.remove(0) };
            match to.split_once('=') {
                Some(("unix", path)) => Share::relay(first, RelayTo::unix(path)),
                Some(("tcp", address)) => {
                    let address =
                        address.parse().map_err(|_| format!("{address:?} is not ADDRESS:PORT"))?;
                    Share::relay(first, RelayTo::tcp(address))
                }
                _ => {
                    return Err(format!(
                        "the share {first:?} needs =DIR, ,unix=PATH or ,tcp=ADDRESS"
                    ));
                }
            }
        }
    };
    for option in options {
        share = match option.split_once('=').unwrap_or((&option, "")) {
            ("ro", "") => share.read_only(),
            ("owner", owner) => share.owner(self::owner(owner)?),
            _ => return Err(format!("a share has no option {option:?}")),
        };
    }
    Ok(share)
}

fn owner(text: &str) -> Result<Owner, String> {
    match text.split(':').collect::<Vec<_>>()[..] {
        ["passthrough"] => Ok(Owner::passthrough()),
        ["mapped"] => Ok(Owner::mapped()),
        ["squash", uid, gid] => Ok(Owner::squash(number(uid)?, number(gid)?)),
        _ => Err(format!("the owner is passthrough, mapped or squash:UID:GID, not {text:?}")),
    }
}

fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("{text:?} is not a number of a user or a group"))
}
