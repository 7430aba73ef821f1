//! What Linux keeps of files in its memory.

use std::fs::File;

use rustix::fs::{Advice, fadvise};

/// Makes the host forget what it has of a file in memory; whether it does.
pub fn forget(file: &File) -> bool {
    file.sync_data().expect("it can be stored");
    fadvise(file, 0, None, Advice::DontNeed).is_ok()
}
