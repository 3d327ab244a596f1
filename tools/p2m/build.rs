// SPDX-License-Identifier: GPL-2.0

//! Makes the raw ABI from `include/uapi/p2m.h`, which is its one source.

use std::process::ExitCode;

fn main() -> ExitCode {
    p2m_abi::generate("p2m.h", "P2M_.*|p2m_.*")
}
