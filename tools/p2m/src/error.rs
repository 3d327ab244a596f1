// SPDX-License-Identifier: GPL-2.0

//! What can go wrong, and what to do about it.

use core::fmt;

use rustix::io::Errno;

use crate::abi;

/// The result of an operation on a domain.
pub type Result<T> = core::result::Result<T, Error>;

/// What was attempted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Operation {
    /// Opening the device.
    Open,
    /// Finding the process to attach to.
    FindProcess,
    /// Taking a descriptor of another process.
    TakeDescriptor,
    /// `P2M_INFO`.
    Info,
    /// `P2M_STAT`.
    Stat,
    /// `P2M_REGION_CREATE`.
    Create,
    /// `P2M_REGION_DESTROY`.
    Destroy,
    /// `P2M_REGION_LIST`.
    List,
    /// `P2M_TRANSLATE`.
    Translate,
    /// `P2M_RUNS`.
    Runs,
    /// Reading entries.
    Read,
    /// Mapping memory of the domain.
    Map,
    /// Having all of a mapping in the page tables.
    Populate,
    /// Mapping the tables of the domain.
    MapTables,
    /// Reading `/proc/PID/pagemap`.
    Pagemap,
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Open => "open the device",
            Self::FindProcess => "find the process",
            Self::TakeDescriptor => "take the descriptor from the process",
            Self::Info => "ask what the module can do",
            Self::Stat => "get the statistics",
            Self::Create => "create the region",
            Self::Destroy => "destroy the region",
            Self::List => "list the regions",
            Self::Translate => "translate",
            Self::Runs => "get the runs",
            Self::Read => "read entries",
            Self::Map => "map the memory",
            Self::Populate => "populate the mapping",
            Self::MapTables => "map the tables",
            Self::Pagemap => "read the pagemap",
        })
    }
}

/// An operation that failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The kernel refused.
    #[error("cannot {operation}")]
    Refused {
        /// What was attempted.
        operation: Operation,
        /// The kernel's reason.
        source: Errno,
    },
    /// The module speaks another version of the ABI.
    #[error(
        "the module has ABI version {found}, this program needs {}",
        abi::P2M_ABI_VERSION
    )]
    Version {
        /// The version of the module.
        found: u32,
    },
    /// The kernel answered with less than was asked for.
    #[error("cannot {operation}: the answer is too short")]
    Short {
        /// What was attempted.
        operation: Operation,
    },
}

impl Error {
    /// Returns the kernel's reason, if it was the kernel that refused.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { source, .. } => Some(*source),
            Self::Version { .. } | Self::Short { .. } => None,
        }
    }

    /// Returns what the user can do about it, if that can be told.
    pub fn hint(&self) -> Option<&'static str> {
        let (operation, errno) = match self {
            Self::Refused { operation, source } => (*operation, *source),
            Self::Version { .. } => return Some("build module and tools from the same source"),
            Self::Short { .. } => return None,
        };
        use Operation as Op;
        Some(match (operation, errno) {
            (Op::Open, Errno::NOENT | Errno::NODEV | Errno::NXIO) => {
                "the module is not loaded: insmod p2m.ko"
            }
            (Op::Open, Errno::ACCESS | Errno::PERM) => "the device is root's: try with sudo",
            (Op::FindProcess, Errno::SRCH) => "there is no process of this number",
            (Op::TakeDescriptor, Errno::BADF) => "the process has no such descriptor",
            (Op::TakeDescriptor, Errno::PERM | Errno::ACCESS) => {
                "needs the right to trace the process: be its user or root"
            }
            (Op::Info, Errno::NOTTY) => "the descriptor is not one of /dev/p2m",
            (_, Errno::NOTTY | Errno::TOOBIG | Errno::OPNOTSUPP) => {
                "the module is older than this program"
            }
            (Op::Pagemap, Errno::PERM | Errno::ACCESS) => "needs CAP_SYS_ADMIN: try with sudo",
            (_, Errno::PERM) => {
                "machine frame numbers are shown only to an opener with CAP_SYS_ADMIN: try with \
                 sudo"
            }
            (_, Errno::DQUOT) => {
                "a limit of the module is reached, which p2m info shows: load it with a larger \
                 max_pages, max_domain_pages or max_regions"
            }
            (_, Errno::NOMEM) => {
                "memory is short, or the region is larger than RLIMIT_MEMLOCK allows (ulimit -l)"
            }
            (Op::Create, Errno::ADDRNOTAVAIL) => {
                "no free frames satisfy the policy: try a smaller region, another policy, or \
                 echo 1 >/proc/sys/vm/compact_memory"
            }
            (Op::Create, Errno::EXIST) => "there is a region already: choose another base",
            (Op::Create, Errno::NOSPC) => "the domain has no hole of this size",
            (Op::Destroy, Errno::NOENT) => "no region begins at this PFN",
            (_, Errno::OVERFLOW) => "the range ends beyond the last possible PFN",
            (Op::Populate, Errno::FAULT) => "there is a page with nothing behind it",
            _ => return None,
        })
    }
}

/// Says what was attempted when the kernel refuses.
pub(crate) trait Attempt<T> {
    /// Turns the kernel's reason into an [`Error`].
    fn attempt(self, operation: Operation) -> Result<T>;
}

impl<T> Attempt<T> for rustix::io::Result<T> {
    fn attempt(self, operation: Operation) -> Result<T> {
        self.map_err(|source| Error::Refused { operation, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(operation: Operation, source: Errno) -> Option<&'static str> {
        Error::Refused { operation, source }.hint()
    }

    #[test]
    fn hints_name_the_remedy() {
        for (operation, errno, remedy) in [
            (Operation::Open, Errno::NOENT, "insmod p2m.ko"),
            (Operation::Open, Errno::ACCESS, "sudo"),
            (Operation::Create, Errno::DQUOT, "max_pages"),
            (Operation::Create, Errno::NOMEM, "RLIMIT_MEMLOCK"),
            (Operation::Create, Errno::ADDRNOTAVAIL, "policy"),
            (Operation::Translate, Errno::PERM, "CAP_SYS_ADMIN"),
            (Operation::TakeDescriptor, Errno::BADF, "descriptor"),
        ] {
            let hint = hint(operation, errno).expect("known trouble");
            assert!(hint.contains(remedy), "{operation:?} {errno:?}: {hint}");
        }
    }

    #[test]
    fn a_reason_means_what_the_operation_makes_of_it() {
        assert_ne!(
            hint(Operation::Open, Errno::NOENT),
            hint(Operation::Destroy, Errno::NOENT)
        );
        assert_ne!(
            hint(Operation::Info, Errno::NOTTY),
            hint(Operation::Runs, Errno::NOTTY)
        );
    }

    #[test]
    fn no_hint_is_better_than_a_wrong_one() {
        assert_eq!(hint(Operation::Read, Errno::IO), None);
    }
}
