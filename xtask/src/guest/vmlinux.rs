//! The ELF kernel inside a bzImage, as a loader of ELF kernels wants it.
//!
//! The boot protocol's header says where the compressed payload lies; its first bytes say how it
//! was compressed, its last four how long it is unpacked. Debian's cloud kernel is packed with lz4,
//! the generic one with xz.

use anyhow::{Context, Result, bail, ensure};
use std::io::Write;
use std::process::{Command, Stdio};

/// Takes the ELF file out of a bzImage.
pub fn extract(bzimage: &[u8]) -> Result<Vec<u8>> {
    let payload = payload(bzimage).context("the kernel is no bzImage with a payload")?;
    let (packed, length) = payload.split_at(payload.len() - 4);
    let length = u32::from_le_bytes(length.try_into()?) as usize;
    let elf = match packed {
        [0x02, 0x21, 0x4c, 0x18, ..] => lz4(packed)?,
        [0xfd, b'7', b'z', ..] => filter(&["xz", "-dc", "--single-stream"], packed)?,
        [0x1f, 0x8b, ..] => filter(&["gzip", "-dc"], packed)?,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => filter(&["zstd", "-dcq"], packed)?,
        _ => bail!("the kernel is packed in an unknown way: {:02x?}", &packed[..4]),
    };
    ensure!(elf.len() == length, "the kernel unpacks to {} bytes, not {length}", elf.len());
    ensure!(elf.starts_with(b"\x7fELF"), "the kernel unpacks to something that is no ELF file");
    Ok(elf)
}

fn payload(bzimage: &[u8]) -> Option<&[u8]> {
    let word = |at: usize| bzimage.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes);
    if bzimage.get(0x202..0x206)? != b"HdrS" {
        return None;
    }
    let sectors = match bzimage[0x1f1] {
        0 => 4,
        count => usize::from(count),
    };
    let start = (sectors + 1) * 512 + word(0x248)? as usize;
    let payload = bzimage.get(start..start + word(0x24c)? as usize)?;
    (payload.len() >= 8).then_some(payload)
}

/// The frame that `lz4 -l` writes: a magic number, then blocks, each after its packed length.
fn lz4(packed: &[u8]) -> Result<Vec<u8>> {
    const BLOCK: usize = 8 << 20;
    let mut unpacked = Vec::new();
    let mut rest = &packed[4..];
    while let Some((length, tail)) = rest.split_first_chunk() {
        let length = u32::from_le_bytes(*length) as usize;
        let block = tail.get(..length).context("the kernel's lz4 stream is cut short")?;
        unpacked.extend(lz4_flex::block::decompress(block, BLOCK)?);
        rest = &tail[length..];
    }
    Ok(unpacked)
}

/// Sends bytes through a tool that every Debian machine with a compiler has.
pub fn filter(tool: &[&str], packed: &[u8]) -> Result<Vec<u8>> {
    let mut command = Command::new(tool[0]);
    command.args(&tool[1..]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("cannot run {}", tool[0]))?;
    let mut stdin = child.stdin.take().context("a child without a standard input")?;
    let done = std::thread::scope(|scope| {
        // A tool that stops reading early says why itself.
        scope.spawn(move || drop(stdin.write_all(packed)));
        child.wait_with_output()
    })?;
    ensure!(done.status.success(), "{}: {}", tool[0], done.status);
    Ok(done.stdout)
}
