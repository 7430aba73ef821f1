//! Calling cargo, and finding what it has built.

use crate::{host, lab};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Command, Stdio};

/// cargo in the checkout, without the variables that tell a program what package it is of. Whichever workspace it
/// builds, it does so in one folder, as most of what they are made of is the same.
pub fn cargo() -> Command {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os().filter(|(name, _)| lab::is_of_xtask(name)) {
        cargo.env_remove(name);
    }
    cargo.env("CARGO_TARGET_DIR", host::cargo_target());
    cargo.current_dir(host::root()).stdin(Stdio::null());
    cargo
}

/// Something that cargo has built and that can be run.
pub struct Executable {
    /// Of the target: `boot` for `examples/boot/`.
    pub name: String,
    /// What sort of target it is: `example`, `test`, `bench`, `bin` …
    pub kind: String,
    pub path: PathBuf,
}

/// Builds, and tells what can be run. cargo's own messages go to standard error.
pub fn build(cargo: &mut Command) -> Result<Vec<Executable>> {
    cargo.arg("--message-format=json-render-diagnostics").stderr(Stdio::inherit());
    let done = cargo.output().context("cannot run cargo")?;
    ensure!(done.status.success(), "cargo could not build it");
    let text = String::from_utf8(done.stdout)?;
    let messages = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    Ok(messages.filter_map(|message| executable(&message)).collect())
}

fn executable(message: &Value) -> Option<Executable> {
    let target = &message["target"];
    Some(Executable {
        name: target["name"].as_str()?.to_owned(),
        kind: target["kind"][0].as_str()?.to_owned(),
        path: message["executable"].as_str()?.into(),
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_what_can_be_run_is_an_executable() {
        let parse = |text| super::executable(&serde_json::from_str(text).unwrap());
        let boot = parse(
            r#"{"reason":"compiler-artifact","target":{"kind":["example"],"name":"boot"},
               "executable":"/x/boot"}"#,
        );
        let boot = boot.unwrap();
        assert_eq!(
            (&*boot.name, &*boot.kind, boot.path.to_str()),
            ("boot", "example", Some("/x/boot"))
        );
        let library = r#"{"target":{"kind":["lib"],"name":"x"},"executable":null}"#;
        assert!(parse(library).is_none());
        assert!(parse(r#"{"reason":"build-finished","success":true}"#).is_none());
    }
}
