// SPDX-License-Identifier: GPL-2.0

//! Makes Rust of the C headers of ioctls: [`generate()`] is for build scripts, [`commands!`] for what
//! they have made.
//!
//! It runs the `bindgen` program, as the kernel's build does, rather than to link the library of that
//! name: one version of it serves the modules and the tools.

use std::env;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

#[doc(hidden)]
pub use rustix;

/// Makes `abi.rs`, in the directory that cargo gives to a build script, of those items of a header of
/// `include/uapi` that a regular expression matches. Prints what is wrong if that can't be done.
pub fn generate(header: &str, allowlist: &str) -> ExitCode {
    match try_generate(header, allowlist) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn try_generate(header: &str, allowlist: &str) -> Result<(), String> {
    let directory = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            .ok_or_else(|| format!("{name} is not set: run cargo"))
    };
    let header = directory("CARGO_MANIFEST_DIR")?
        .join("../../include/uapi")
        .join(header);
    let output = directory("OUT_DIR")?.join("abi.rs");
    let bindgen = env::var_os("BINDGEN").unwrap_or_else(|| "bindgen".into());

    println!("cargo::rerun-if-env-changed=BINDGEN");
    println!("cargo::rerun-if-changed={}", header.display());

    let status = Command::new(&bindgen)
        .args(["--use-core", "--with-derive-default", "--no-doc-comments"])
        .args(["--rust-target", "1.85"])
        .args(["--allowlist-item", allowlist])
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

/// Returns what a string of a header says, without the byte that ends it. For constants: what is no
/// string doesn't compile.
pub const fn text(string: &[u8]) -> &str {
    match string.split_last() {
        Some((0, text)) => match core::str::from_utf8(text) {
            Ok(text) => text,
            Err(_) => panic!("not UTF-8"),
        },
        _ => panic!("not a C string"),
    }
}

/// Makes commands of structures that begin with their own size.
///
/// Each gets its `OPCODE`, `new()`, and `call()`. The structures have to be plain ones: all bits of
/// them may be anything.
#[macro_export]
macro_rules! commands {
    (type $type:ident; $($structure:ident = $command:ident;)*) => {$(
        impl $structure {
            pub const OPCODE: $crate::rustix::ioctl::Opcode =
                $crate::rustix::ioctl::opcode::none($type as u8, $command as u8);

            /// Returns the structure with its size filled in, and all else 0.
            pub fn new() -> Self {
                Self {
                    size: size_of::<Self>() as u32,
                    ..Self::default()
                }
            }

            /// Runs the command on an open device.
            ///
            /// # Safety
            ///
            /// A pointer in the structure points to an array of as many elements as the structure
            /// says, which may be written to if the command fills it in; so do those in the elements.
            pub unsafe fn call(
                &mut self,
                fd: std::os::fd::BorrowedFd<'_>,
            ) -> $crate::rustix::io::Result<()> {
                use $crate::rustix::ioctl::{Updater, ioctl};

                // SAFETY: The header defines command and structure by one name, and the kernel
                // writes to no more of the structure than its size says.
                let command = unsafe { Updater::<{ Self::OPCODE }, Self>::new(self) };
                // SAFETY: By the safety requirements of this function.
                unsafe { ioctl(fd, command) }
            }
        }
    )*};
}
