// SPDX-License-Identifier: GPL-2.0

//! The raw ABI, as bindgen makes it from `include/uapi/p2m_crash.h`, and the numbers that can never
//! change again.

#![allow(missing_docs, non_camel_case_types, dead_code, unreachable_pub)]

use std::os::fd::BorrowedFd;

use rustix::io;
use rustix::ioctl::{self, Opcode, Updater, opcode};

include!(concat!(env!("OUT_DIR"), "/abi.rs"));

macro_rules! commands {
    ($($structure:ident = $command:ident;)*) => {$(
        impl $structure {
            pub const OPCODE: Opcode = opcode::none(P2M_CRASH_IOCTL_TYPE as u8, $command as u8);

            /// Returns the structure with its size filled in, and all else 0.
            pub fn new() -> Self {
                Self {
                    size: size_of::<Self>() as u32,
                    ..Self::default()
                }
            }

            /// Runs the command on an open /dev/p2m_crash.
            ///
            /// # Safety
            ///
            /// A pointer in the structure points to an array of as many elements as the structure
            /// says, and so do those in the elements.
            pub unsafe fn call(&mut self, fd: BorrowedFd<'_>) -> io::Result<()> {
                // SAFETY: The header defines command and structure by one name, and the kernel
                // writes to no more of the structure than its size says.
                let command = unsafe { Updater::<{ Self::OPCODE }, Self>::new(self) };
                // SAFETY: By the safety requirements of this function.
                unsafe { ioctl::ioctl(fd, command) }
            }
        }
    )*};
}

commands! {
    p2m_crash_info = P2M_CRASH_CMD_INFO;
    p2m_crash_load = P2M_CRASH_CMD_LOAD;
    p2m_crash_unload = P2M_CRASH_CMD_UNLOAD;
    p2m_crash_status = P2M_CRASH_CMD_STATUS;
}

// What is in use can't change: these are the numbers of the first release, not what the header
// happens to say.
const _: () = {
    assert!(p2m_crash_info::OPCODE == 0xbbe0);
    assert!(p2m_crash_load::OPCODE == 0xbbe1);
    assert!(p2m_crash_unload::OPCODE == 0xbbe2);
    assert!(p2m_crash_status::OPCODE == 0xbbe3);
    assert!(size_of::<p2m_crash_info>() == 56);
    assert!(size_of::<p2m_crash_load>() == 80);
    assert!(size_of::<p2m_crash_unload>() == 8);
    assert!(size_of::<p2m_crash_status>() == 72);
    assert!(size_of::<p2m_crash_segment>() == 24);
};
