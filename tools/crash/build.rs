// SPDX-License-Identifier: GPL-2.0

//! Makes the raw ABI from `include/uapi/p2m_crash.h`, which is its one source.
//!
//! It runs the `bindgen` program, as the kernel's build does, rather than to link the library of
//! that name: one version of it serves the module and the tools.

use std::env;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    match generate() {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn generate() -> Result<(), String> {
    let directory = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            .ok_or_else(|| format!("{name} is not set: run cargo"))
    };
    let header = directory("CARGO_MANIFEST_DIR")?.join("../../include/uapi/p2m_crash.h");
    let output = directory("OUT_DIR")?.join("abi.rs");
    let bindgen = env::var_os("BINDGEN").unwrap_or_else(|| "bindgen".into());

    println!("cargo::rerun-if-env-changed=BINDGEN");
    println!("cargo::rerun-if-changed={}", header.display());

    let status = Command::new(&bindgen)
        .args(["--use-core", "--with-derive-default", "--no-doc-comments"])
        .args(["--rust-target", "1.85"])
        .args(["--allowlist-item", "P2M_CRASH_.*|p2m_crash_.*"])
        .arg("--output")
        .arg(&output)
        .arg(&header)
        .status()
        .map_err(|error| {
            format!(
                "cannot run {bindgen:?}: {error}\n\
                 Install it (Debian: apt install bindgen; else: cargo install bindgen-cli), \
                 or say where it is with the environment variable BINDGEN."
            )
        })?;
    if !status.success() {
        return Err(format!("{bindgen:?} failed on {}", header.display()));
    }
    Ok(())
}
