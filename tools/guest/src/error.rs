// SPDX-License-Identifier: GPL-2.0

//! What can go wrong with a guest.

use std::io;

/// Why there is no guest, or why it had to end.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no KVM, or not for us.
    #[error("cannot open /dev/kvm")]
    Open(#[source] io::Error),
    /// A KVM that is too old or too strange.
    #[error("KVM cannot {0}, which is needed")]
    Missing(&'static str),
    /// KVM refuses.
    #[error("KVM cannot {attempted}")]
    Refused {
        /// To do this.
        attempted: &'static str,
        /// For this reason.
        source: io::Error,
    },
    /// Memory that can't be that of a guest.
    #[error("the memory has to be a multiple of the page size, and 1 MiB at least")]
    MemorySize,
    /// Memory that can't be mapped.
    #[error("cannot map memory for the guest")]
    Map(#[source] io::Error),
    /// The processor can't go on.
    #[error("the guest's processor stopped at {instruction:#x}: {reason}")]
    Stopped {
        /// Why.
        reason: String,
        /// The address of the instruction.
        instruction: u64,
    },
    /// The guest accessed a page that isn't there.
    #[error("the guest accessed memory that was taken from it, at instruction {instruction:#x}")]
    MemoryGone {
        /// The address of the instruction.
        instruction: u64,
    },
    /// Memory can't be given back or taken again.
    #[error("the balloon cannot {attempted} memory")]
    Balloon {
        /// What it wanted to do.
        attempted: &'static str,
        /// What came in between.
        source: io::Error,
    },
    /// The terminal, or a signal.
    #[error("cannot set up the console")]
    Console(#[source] io::Error),
}

impl Error {
    /// Returns what the user can do about it, if that can be told.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Open(error) => Some(match error.kind() {
                io::ErrorKind::NotFound => {
                    "there is no KVM: modprobe kvm_amd or kvm_intel, and switch virtualisation on in \
                     the firmware"
                }
                io::ErrorKind::PermissionDenied => {
                    "the device is of root and of the group kvm: try with sudo"
                }
                _ => "the processor may have no virtualisation, or somebody else uses it",
            }),
            Self::MemoryGone { .. } => Some(
                "release only pages that the guest gave back, or have pages come on demand \
                 (--on-demand)",
            ),
            _ => None,
        }
    }
}

/// Says what KVM was asked for when it refused.
pub(crate) trait Attempt<T> {
    fn attempt(self, attempted: &'static str) -> Result<T, Error>;
}

impl<T> Attempt<T> for Result<T, kvm_ioctls::Error> {
    fn attempt(self, attempted: &'static str) -> Result<T, Error> {
        self.map_err(|error| Error::Refused {
            attempted,
            source: io::Error::from_raw_os_error(error.errno()),
        })
    }
}
