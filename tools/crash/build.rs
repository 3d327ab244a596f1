// SPDX-License-Identifier: GPL-2.0

//! Makes the raw ABI from `include/uapi/p2m_crash.h`, which is its one source.

use std::process::ExitCode;

fn main() -> ExitCode {
    p2m_abi::generate("p2m_crash.h", "P2M_CRASH_.*|p2m_crash_.*")
}
