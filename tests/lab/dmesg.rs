//! What a kernel may complain about on this machine, and why that is all right.

/// Parts of lines that the kernel logs as warnings or errors, each with its reason.
const ALLOWED: &[(&str, &str)] = &[];

/// The lines of `dmesg -r` in `text` that are warnings or worse and not on the list. Lines come marked `dmesg:`.
pub fn complaints(text: &str) -> Vec<String> {
    text.lines()
        .filter_map(|line| line.trim_end().strip_prefix("dmesg:"))
        .filter(|line| !ALLOWED.iter().any(|(part, _)| line.contains(part)))
        .map(str::to_owned)
        .collect()
}

/// For a guest's script: prints what [`complaints`] looks through.
pub const SCRIPT: &str = "dmesg -r | grep '^<[0-4]>' | sed 's/^/dmesg:/'\n";
