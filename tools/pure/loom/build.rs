// SPDX-License-Identifier: GPL-2.0

//! Makes the pure part use the atomics of the model checker.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(loom)");
    println!("cargo::rustc-cfg=loom");
}
