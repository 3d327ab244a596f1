// SPDX-License-Identifier: GPL-2.0

//! What can go wrong.

use std::fmt::{self, Display, Formatter};
use std::io;
use std::path::PathBuf;

use rustix::io::Errno;
use serde::Serialize;

use crate::abi;

/// Why there can't be a crash kernel on a machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Refusal {
    /// The processor has no virtualisation that the module knows.
    NoEngine,
    /// The firmware has switched it off.
    Disabled,
    /// The processor has no nested paging.
    NoNestedPaging,
    /// Memory encryption is active.
    Encrypted,
    /// The kernel is locked down.
    LockedDown,
    /// Another hypervisor has the processor.
    Occupied,
    /// There is no place for the window.
    NoHole,
    /// No more kernels may be loaded.
    NoLoads,
    /// The module is newer than this program.
    Unknown(u32),
}

impl Refusal {
    pub(crate) fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            abi::P2M_CRASH_OK => return None,
            abi::P2M_CRASH_NO_ENGINE => Self::NoEngine,
            abi::P2M_CRASH_DISABLED => Self::Disabled,
            abi::P2M_CRASH_NO_NESTED_PAGING => Self::NoNestedPaging,
            abi::P2M_CRASH_ENCRYPTED => Self::Encrypted,
            abi::P2M_CRASH_LOCKED_DOWN => Self::LockedDown,
            abi::P2M_CRASH_OCCUPIED => Self::Occupied,
            abi::P2M_CRASH_NO_HOLE => Self::NoHole,
            abi::P2M_CRASH_NO_LOADS => Self::NoLoads,
            number => Self::Unknown(number),
        })
    }
}

impl Display for Refusal {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoEngine => {
                "the processor has no AMD SVM, or the hypervisor that this is a guest of doesn't \
                 offer it"
            }
            Self::Disabled => "the firmware has switched SVM off: switch it on in its setup",
            Self::NoNestedPaging => "the processor has no nested paging",
            Self::Encrypted => "memory encryption is active",
            Self::LockedDown => "the kernel is locked down, and images aren't verified",
            Self::Occupied => "another hypervisor than KVM uses the processor's SVM",
            Self::NoHole => "there is no place for the window among the physical addresses",
            Self::NoLoads => {
                "no more kernels may be loaded (kernel.kexec_load_disabled or \
                 kernel.kexec_load_limit_panic)"
            }
            Self::Unknown(number) => return write!(f, "reason {number} of a newer module"),
        })
    }
}

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel refused something.
    #[error("cannot {what}")]
    Device {
        /// What was attempted.
        what: &'static str,
        /// The kernel's reason.
        source: Errno,
    },
    /// A file can't be read or written.
    #[error("cannot use {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A file has something else in it than it should have.
    #[error("{path}: {what}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// There can't be a crash kernel.
    #[error("there can't be a crash kernel here: {0}")]
    Refused(Refusal),
    /// The window is too small.
    #[error("the crash kernel needs at least {needed} bytes of memory, not {given}")]
    TooSmall {
        /// What it needs.
        needed: u64,
        /// What it would have.
        given: u64,
    },
    /// Something doesn't fit where it has to go.
    #[error("{0}")]
    DoesNotFit(String),
}

impl Error {
    pub(crate) fn content(path: impl Into<PathBuf>, what: impl Into<String>) -> Self {
        Self::Content {
            path: path.into(),
            what: what.into(),
        }
    }

    /// Returns whether the machine changed while it was looked at, so that it may work if it's
    /// attempted again.
    pub fn is_stale(&self) -> bool {
        matches!(self, Self::Device { source, .. } if *source == Errno::STALE)
    }

    /// Returns what the user can do about it, if that can be told.
    pub fn hint(&self) -> Option<&'static str> {
        let Self::Device { what, source } = self else {
            return None;
        };
        Some(match (*what, *source) {
            (OPEN, Errno::NOENT | Errno::NODEV | Errno::NXIO) => {
                "the module is not loaded: insmod p2m_crash.ko"
            }
            (OPEN, Errno::ACCESS | Errno::PERM) => "needs CAP_SYS_BOOT: try with sudo",
            (LOAD, Errno::NOMEM) => {
                "too little memory is free for a panic to count on: free some, or ask for less \
                 with --memory and --min-memory"
            }
            (LOAD, Errno::INVAL) => {
                "--min-memory has to have room for the kernel and the initramfs, and can't be more \
                 than --memory"
            }
            (LOAD, Errno::BUSY) => {
                "an IOMMU is on, and would go on to use tables that the crash kernel knows nothing \
                 of: leave out --iommu off, or boot with amd_iommu=off"
            }
            (LOW, Errno::NOMEM) => {
                "no pieces of memory below 4 GiB are free for DMA: free some, or ask for less or \
                 none with --dma-memory"
            }
            (LOW, Errno::TOOBIG) => "no more than 128M can be asked for with --dma-memory",
            (UNLOAD, Errno::NOENT) => "no crash kernel is loaded",
            (_, Errno::NOTTY | Errno::TOOBIG) => "the module is older than this program",
            _ => return None,
        })
    }
}

/// What is attempted.
pub(crate) const OPEN: &str = "open the device";
pub(crate) const LOCK: &str = "lock the device";
pub(crate) const INFO: &str = "ask the module";
pub(crate) const LOW: &str = "take low memory";
pub(crate) const LOAD: &str = "load the crash kernel";
pub(crate) const UNLOAD: &str = "unload the crash kernel";
pub(crate) const STATUS: &str = "ask for the status";

/// A result.
pub type Result<T, E = Error> = std::result::Result<T, E>;
