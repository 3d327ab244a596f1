// SPDX-License-Identifier: GPL-2.0

//! What runs a crash kernel: an extension of the processor that has nested page tables.
//!
//! There is one engine, [`Svm`](crate::svm::Svm). One for Intel's VMX would be another type here, and
//! [`refusal()`] would choose. What differs there, besides instructions and structures (a VMXON region
//! and a VMCS, `IA32_FEATURE_CONTROL` that has to permit it):
//!
//! - EPT leaves have the memory type: write-back for memory, uncached for devices, by the MTRRs and the
//!   map of the firmware, in leaves of 4 KiB in the first MiB. That is a backend of
//!   [`pv`](crate::pure::pv), which makes EPT entries of what the builder means. The number of levels
//!   is chosen in the EPTP, not by CR4.
//! - CR4.VMXE has to stay set, so there are a mask, a shadow, and exits of writes to CR4 that touch it.
//!   "Unrestricted guest" is needed for the way to five levels.
//! - CPUID, XSETBV, INVD, INIT, SIPI, task switches and VMX instructions always exit: three small
//!   handlers more than here. External interrupts, NMIs, PAUSE, HLT and MOV to CR3 needn't.
//! - EFER, PAT, DEBUGCTL and CET go through controls of entry and exit.
//! - There is no GIF: an NMI comes through the old kernel's IDT until the entry.

use kernel::{
    bindings,
    error::to_result,
    fmt::{
        self,
        Display,
        Formatter, //
    },
    prelude::*, //
};

use crate::{
    abi,
    ffi,
    svm::Svm, //
};

/// Why there can't be a crash kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// No virtualisation that we know.
    NoEngine,
    /// The firmware has switched it off.
    Disabled,
    /// No nested paging.
    NoNestedPaging,
    /// Memory encryption is active.
    Encrypted,
    /// The kernel is locked down.
    LockedDown,
    /// Another hypervisor has the processor.
    Occupied,
    /// No place for a window.
    NoHole,
    /// No more kernels may be loaded.
    NoLoads,
}

impl Refusal {
    /// Returns the number for the ABI.
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::NoEngine => abi::P2M_CRASH_NO_ENGINE,
            Self::Disabled => abi::P2M_CRASH_DISABLED,
            Self::NoNestedPaging => abi::P2M_CRASH_NO_NESTED_PAGING,
            Self::Encrypted => abi::P2M_CRASH_ENCRYPTED,
            Self::LockedDown => abi::P2M_CRASH_LOCKED_DOWN,
            Self::Occupied => abi::P2M_CRASH_OCCUPIED,
            Self::NoHole => abi::P2M_CRASH_NO_HOLE,
            Self::NoLoads => abi::P2M_CRASH_NO_LOADS,
        }
    }
}

/// Returns why there can't be a crash kernel, as far as it's not about a window.
pub(crate) fn refusal() -> Option<Refusal> {
    // SAFETY: They have no requirements.
    let (is_locked_down, is_encrypted) = unsafe {
        (
            ffi::p2m_crash_locked_down() != 0,
            ffi::p2m_crash_is_encrypted(),
        )
    };
    if is_locked_down {
        return Some(Refusal::LockedDown);
    }
    if is_encrypted {
        return Some(Refusal::Encrypted);
    }
    Svm::refusal()
}

/// Returns whether kernels may be loaded, as far as that isn't about the machine or the caller.
pub(crate) fn may_load() -> bool {
    // SAFETY: It has no requirements in a context that may sleep.
    !unsafe { ffi::p2m_crash_is_disabled() }
}

/// Checks that the caller may change what a panic starts, by the rules of `kexec_load()`.
pub(crate) fn permit() -> Result {
    // SAFETY: They have no requirements.
    let is_permitted = unsafe {
        bindings::capable(bindings::CAP_SYS_BOOT as c_int) && ffi::p2m_crash_locked_down() == 0
    };
    (is_permitted && may_load()).then_some(()).ok_or(EPERM)
}

/// Checks that the caller may load one, and counts it. Nobody else loads one meanwhile.
pub(crate) fn permit_load() -> Result {
    permit()?;
    // SAFETY: It has no requirements in a context that may sleep.
    to_result(unsafe { ffi::p2m_crash_permit_load() })
}

/// Where a crash kernel is entered: in 64-bit mode, interrupts off, as the boot protocol has it.
/// Addresses are pseudo-physical ones.
#[derive(Clone, Copy)]
pub(crate) struct Start {
    /// The first instruction.
    pub(crate) rip: u64,
    /// The boot parameters.
    pub(crate) rsi: u64,
    /// The root of its page tables.
    pub(crate) cr3: u64,
}

/// Why a crash kernel runs no more, or never did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The processor refused to enter it. Nothing has happened.
    NotEntered,
    /// It came to a state from which a processor only restarts.
    Shutdown,
    /// An exit that we don't know.
    Unknown(u64),
}

impl Display for End {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotEntered => f.write_str("the processor refuses to enter it"),
            Self::Shutdown => f.write_str("it shut the processor down (triple fault)"),
            Self::Unknown(code) => write!(f, "it left with the unknown code {code:#x}"),
        }
    }
}

/// An engine.
pub(crate) trait Engine: Sized {
    /// Returns why it can't be used on this machine.
    fn refusal() -> Option<Refusal>;

    /// Prepares everything, so that nothing has to be allocated later.
    ///
    /// `nested_root` is the physical address of the root of nested page tables.
    fn new(start: Start, nested_root: u64) -> Result<Self>;

    /// Returns the number of bytes that its state takes.
    fn size(&self) -> usize;

    /// Adds its state to a checksum.
    fn checksum(&self, crc: u32) -> u32;

    /// Runs the crash kernel on this processor, until it ends.
    ///
    /// # Safety
    ///
    /// - The old kernel has stopped: nobody will miss the memory that the nested tables allow to be
    ///   written, and no other processor runs.
    /// - The nested tables stay as they are.
    unsafe fn run(&mut self) -> End;
}
