//! Soon.

pub fn init() -> ! {
    std::process::exit(1)
}

pub fn main(_args: lexopt::Parser) -> anyhow::Result<u8> {
    anyhow::bail!("not yet")
}
