//! What `--disk` says.

use hyperkit::disk::{Disk, Engine, Flush};

use super::words;

/// A disk as `--disk` describes it.
pub fn disk(text: &str) -> Result<Disk, String> {
    let mut words = words(text).into_iter();
    let path = words.next().unwrap_or_default();
    let (mut format, mut backing, mut backing_format) = ("raw".to_owned(), None, "raw".to_owned());
    let mut changes: Vec<Box<dyn FnOnce(Disk) -> Disk>> = Vec::new();
    for word in words {
        let (name, value) = word.split_once('=').unwrap_or((&word, ""));
        let (name, value) = (name.to_owned(), value.to_owned());
        let number = || value.parse::<u64>().map_err(|_| format!("{value:?} is no number"));
        match (&*name, &*value) {
            ("format", _) => format = value,
            ("backing", _) => backing = Some(value),
            ("backing-format", _) => backing_format = value,
            ("ro", "") => changes.push(Box::new(Disk::read_only)),
            ("flush", "fsync") => changes.push(Box::new(|disk| disk.flush(Flush::Fsync))),
            ("flush", "full") => changes.push(Box::new(|disk| disk.flush(Flush::Full))),
            ("flush", "none") => changes.push(Box::new(|disk| disk.flush(Flush::None))),
            ("engine", "auto") => changes.push(Box::new(|disk| disk.engine(Engine::Auto))),
            ("engine", "io_uring") => changes.push(Box::new(|disk| disk.engine(Engine::IoUring))),
            ("engine", "threads") => changes.push(Box::new(|disk| disk.engine(Engine::Threads))),
            ("serial", _) => changes.push(Box::new(|disk| disk.serial(value))),
            ("queues", _) => {
                let queues = u16::try_from(number()?).unwrap_or(u16::MAX);
                changes.push(Box::new(move |disk| disk.queues(queues)));
            }
            ("mbps", _) => {
                let bytes = number()?.saturating_mul(1_000_000);
                changes.push(Box::new(move |disk| disk.limit_bytes(bytes)));
            }
            ("iops", _) => {
                let operations = number()?;
                changes.push(Box::new(move |disk| disk.limit_operations(operations)));
            }
            _ => return Err(format!("a disk has no option {word:?}")),
        }
    }
    let mut disk = image(&path, &format)?;
    if let Some(backing) = backing {
        disk = disk.backing(image(&backing, &backing_format)?);
    }
    Ok(changes.into_iter().fold(disk, |disk, change| change(disk)))
}

fn image(path: &str, format: &str) -> Result<Disk, String> {
    match format {
        "raw" => Disk::raw(path).map_err(|error| error.to_string()),
        "qcow2" => Disk::qcow2(path).map_err(|error| error.to_string()),
        _ => Err(format!("disks are raw or qcow2, not {format:?}")),
    }
}
