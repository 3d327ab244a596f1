// SPDX-License-Identifier: GPL-2.0

//! A small virtual machine monitor for KVM.
//!
//! It runs a Linux kernel in memory that somebody else has, such as a mapping of a region of
//! `/dev/p2m`: the memory looks contiguous at the address where it's mapped, and so it does for the
//! guest. What frames are below it, and whether they change, is no business of this crate.
//!
//! There is one processor, with the interrupt controllers and timers of KVM; a serial port for the
//! console, and another one for the exit status; a keyboard controller that can only reset; and a
//! virtio balloon by which the guest gives back pages. ACPI tables say where these are.
//!
//! # The exit status
//!
//! What the guest writes to its second serial port, `/dev/ttyS1`, as a line with a number from 0 to
//! 255, is its exit status; the last such line counts. [`Ending`] has it, and how the guest ended.

mod acpi;
mod balloon;
mod console;
mod cpu;
mod error;
mod machine;
mod memory;

pub use acpi::{Tables, tables};
pub use balloon::Pages;
pub use console::Console;
pub use error::Error;
pub use machine::{Ending, Guest, How, Hypervisor};
pub use memory::{Memory, layout};

/// What the kernel has to be told about this machine.
///
/// It would have EFI reset a machine without the fixed hardware of ACPI, and then the BIOS. There is
/// neither, but there is the register that ACPI names.
pub const COMMAND_LINE: &str = "console=ttyS0 reboot=a";

/// Where the machine has its devices.
mod place {
    /// Ports and interrupt of the console.
    pub(crate) const CONSOLE: (u16, u32) = (0x3f8, 4);
    /// Ports and interrupt of the port for the exit status.
    pub(crate) const STATUS: (u16, u32) = (0x2f8, 3);
    /// How many ports each of them has.
    pub(crate) const SERIAL_PORTS: u16 = 8;
    /// Ports of the keyboard controller.
    pub(crate) const I8042: (u16, u16) = (0x60, 0x64);
    /// The ports by which ACPI switches off: control, status.
    pub(crate) const SLEEP: (u16, u16) = (0x600, 0x601);
    /// Address and interrupt of the balloon.
    pub(crate) const BALLOON: (u32, u32) = (0xd000_0000, 5);
    /// Size of a virtio-mmio device.
    pub(crate) const MMIO_BYTES: u32 = 0x1000;
    /// Four pages that KVM needs on some processors, and that the guest never sees.
    pub(crate) const TASK_STATE: usize = 0xfffb_d000;
    /// Another one of these.
    pub(crate) const IDENTITY_MAP: u64 = 0xfffb_c000;
    /// Memory ends here at the latest, and goes on at 4 GiB.
    pub(crate) const HOLE: u64 = 3 << 30;
}
