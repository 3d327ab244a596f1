// SPDX-License-Identifier: GPL-2.0

//! What can go wrong, and what to do about it.

use core::fmt;

use rustix::io::Errno;

use crate::abi;
use crate::frame::Pfn;

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
    /// `P2M_SPACE_CREATE`.
    SpaceCreate,
    /// `P2M_SPACE_DESTROY`.
    SpaceDestroy,
    /// `P2M_SPACE_MAP`.
    SpaceMap,
    /// `P2M_SPACE_UNMAP`.
    SpaceUnmap,
    /// `P2M_SPACE_CHANGE`, of flags.
    SpaceProtect,
    /// `P2M_SPACE_CHANGE`, of frames.
    SpaceRemap,
    /// `P2M_SPACE_WALK`.
    SpaceWalk,
    /// `P2M_SPACE_DUMP`.
    SpaceDump,
    /// `P2M_SPACE_ACCESS`.
    SpaceAccess,
    /// `P2M_RELEASE`.
    Release,
    /// `P2M_POPULATE`.
    PopulatePages,
    /// `P2M_MOVE`.
    Move,
    /// `P2M_EVACUATE`.
    Evacuate,
    /// `P2M_EVACUATE`, which lets the domain have frames again.
    Readmit,
    /// `P2M_CONTIGUOUS`.
    Contiguous,
    /// `P2M_COLLAPSE`.
    Collapse,
    /// `P2M_EXCHANGE`.
    Exchange,
    /// `P2M_AUDIT`.
    Audit,
    /// `P2M_DMA_PLAN`.
    DmaPlan,
    /// `P2M_DMA_BUF_EXPORT`.
    ExportDmaBuf,
    /// `P2M_GUARD_CHECK`.
    GuardCheck,
    /// `P2M_FAIL_NTH`.
    FailNth,
    /// `P2M_FOREIGN_MAP`.
    ForeignMap,
    /// `P2M_FOREIGN_UNMAP`.
    ForeignUnmap,
    /// `P2M_IDENTITY`.
    Identity,
    /// `P2M_SPACE_LIST`.
    SpaceList,
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
            Self::SpaceCreate => "create the space",
            Self::SpaceDestroy => "destroy the space",
            Self::SpaceMap => "map the pages in the space",
            Self::SpaceUnmap => "unmap the pages in the space",
            Self::SpaceProtect => "change the flags in the space",
            Self::SpaceRemap => "change the frames in the space",
            Self::SpaceWalk => "walk the tables of the space",
            Self::SpaceDump => "list what the space maps",
            Self::SpaceAccess => "have the processor access the space",
            Self::Release => "release the pages",
            Self::PopulatePages => "populate the pages",
            Self::Move => "move the pages",
            Self::Evacuate => "evacuate the machine frames",
            Self::Readmit => "readmit the machine frames",
            Self::Contiguous => "make the pages contiguous",
            Self::Collapse => "make superpages of the pages",
            Self::Exchange => "exchange the frames",
            Self::Audit => "audit the domain",
            Self::DmaPlan => "plan DMA",
            Self::ExportDmaBuf => "export the range as a dma-buf",
            Self::GuardCheck => "check the guards",
            Self::FailNth => "have something fail",
            Self::ForeignMap => "map foreign frames",
            Self::ForeignUnmap => "unmap foreign frames",
            Self::Identity => "make the PFNs identities",
            Self::SpaceList => "list the spaces",
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
    /// The kernel refused to go on when a part was done.
    #[error("cannot {operation} any further than {done} of them")]
    Halfway {
        /// What was attempted.
        operation: Operation,
        /// The kernel's reason.
        source: Errno,
        /// How many pages were done.
        done: u64,
    },
    /// The kernel refused, and said because of which page.
    #[error("cannot {operation}, because of PFN {pfn}")]
    Because {
        /// What was attempted.
        operation: Operation,
        /// The kernel's reason.
        source: Errno,
        /// The first page that is to blame.
        pfn: Pfn,
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
        self.refusal().map(|(_, source)| source)
    }

    /// Returns how many pages were done before the kernel refused.
    pub fn done(&self) -> u64 {
        match self {
            Self::Halfway { done, .. } => *done,
            _ => 0,
        }
    }

    /// Returns what the kernel refused, and why.
    fn refusal(&self) -> Option<(Operation, Errno)> {
        match self {
            Self::Refused { operation, source }
            | Self::Halfway {
                operation, source, ..
            }
            | Self::Because {
                operation, source, ..
            } => Some((*operation, *source)),
            Self::Version { .. } | Self::Short { .. } => None,
        }
    }

    /// Returns what the user can do about it, if that can be told.
    pub fn hint(&self) -> Option<&'static str> {
        if let Self::Version { .. } = self {
            return Some("build module and tools from the same source");
        }
        let refusal = self.refusal()?;
        use Operation as Op;
        Some(match refusal {
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
            (Op::SpaceAccess, Errno::NOTTY | Errno::OPNOTSUPP) => {
                "the processor walks tables of the backends p2m and p2m-lossless only, and only on \
                 machines where the module can have it do so; the kernel log may say more"
            }
            (Op::SpaceAccess, Errno::PERM) => "needs CAP_SYS_ADMIN: try with sudo",
            (Op::SpaceMap | Op::SpaceProtect, Errno::OPNOTSUPP) => {
                "there is a flag that a leaf can't have"
            }
            (Op::Create, Errno::OPNOTSUPP) => {
                "the kernel gives single frames of a node only, which can't be guarded; or the module \
                 is older than this program"
            }
            (Op::ExportDmaBuf, Errno::OPNOTSUPP) => "the kernel has no dma-bufs",
            (Op::ExportDmaBuf, Errno::FAULT) => {
                "a page of the range isn't populated, is a table of a space, or is no memory"
            }
            (_, Errno::NOTTY | Errno::TOOBIG | Errno::OPNOTSUPP) => {
                "the module is older than this program"
            }
            (Op::Pagemap, Errno::PERM | Errno::ACCESS) => "needs CAP_SYS_ADMIN: try with sudo",
            (Op::Identity, Errno::PERM) => "needs CAP_SYS_RAWIO: try with sudo",
            (_, Errno::PERM) => {
                "machine frame numbers are shown only to an opener with CAP_SYS_ADMIN: try with \
                 sudo"
            }
            (Op::SpaceCreate, Errno::DQUOT) => {
                "the domain has as many spaces as it can: destroy one"
            }
            (Op::Evacuate, Errno::DQUOT) => {
                "what the domain keeps out of would fall into too many pieces: readmit some"
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
            (Op::PopulatePages, Errno::ADDRNOTAVAIL) => {
                "no free frames satisfy the policy of the region: try again, or \
                 echo 1 >/proc/sys/vm/compact_memory"
            }
            (Op::Contiguous, Errno::ADDRNOTAVAIL) => {
                "there is no such run of free frames: try fewer pages, more address bits, or \
                 echo 1 >/proc/sys/vm/compact_memory"
            }
            (Op::Collapse, Errno::ADDRNOTAVAIL) => {
                "there are no 2 MiB of free frames that follow each other: try \
                 echo 1 >/proc/sys/vm/compact_memory"
            }
            (Op::Collapse, Errno::INVAL) => "pages of guarded regions and of a colour stay single",
            (Op::Create, Errno::EXIST) => "there is a region already: choose another base",
            (Op::Create, Errno::NOSPC) => "the domain has no hole of this size",
            (Op::Destroy, Errno::NOENT) => "no region begins at this PFN",
            (Op::Destroy | Op::Release, Errno::BUSY) => {
                "a space maps a page of it or has its tables there: unmap the page, or destroy the \
                 space; or a part of a superpage is in use by somebody else"
            }
            (
                Op::Release | Op::PopulatePages | Op::Contiguous | Op::Collapse | Op::Exchange,
                Errno::NOENT,
            ) => "a PFN of the range is in no region: p2m map shows the regions",
            (Op::SpaceCreate, Errno::NOENT) => {
                "no backend has this name: try p2m, p2m-lossless or native"
            }
            (Op::SpaceCreate, Errno::EXIST) => "a page of the pool is in that of another space",
            (Op::SpaceCreate, Errno::FAULT) => {
                "a page of the pool isn't populated: p2m map shows what is, p2m populate helps"
            }
            (Op::SpaceCreate | Op::SpaceMap, Errno::BUSY) => {
                "somebody else uses a page of the pool, for direct I/O or DMA"
            }
            (Op::SpaceMap, Errno::EXIST) => "something is mapped there: unmap it before",
            (Op::SpaceUnmap | Op::SpaceProtect | Op::SpaceRemap, Errno::NOENT) => {
                "not all of it is mapped there, or the domain has no such space"
            }
            (
                Op::SpaceDestroy | Op::SpaceMap | Op::SpaceWalk | Op::SpaceDump | Op::SpaceAccess,
                Errno::NOENT,
            ) => "the domain has no space of this number",
            (Op::SpaceMap | Op::SpaceUnmap | Op::SpaceProtect | Op::SpaceRemap, Errno::NOSPC) => {
                "the table pool has too few pages: have a space with a larger one"
            }
            (
                Op::Move | Op::Evacuate | Op::Contiguous | Op::Collapse | Op::Exchange,
                Errno::NOSPC,
            ) => "a space maps a large page of it, and has too few pages in its pool to split that",
            (
                Op::SpaceMap | Op::SpaceUnmap | Op::SpaceProtect | Op::SpaceRemap | Op::SpaceDump,
                Errno::INVAL,
            ) => "addresses have to be multiples of the page size",
            (Op::SpaceAccess, Errno::INVAL) => {
                "the address has to be a multiple of 8, and a checksum be one of 65536 words at most"
            }
            (Op::SpaceAccess, Errno::RANGE) => {
                "the processor can access addresses of the lower half only, and no more than there \
                 are with the levels that it uses now"
            }
            (Op::SpaceAccess, Errno::UCLEAN) => {
                "an entry on the way isn't safe for the processor: a page with the flags t, c or p, or \
                 a table that can be written to"
            }
            (Op::SpaceAccess, Errno::IO) => "a machine check: the kernel log says more",
            (Op::SpaceWalk | Op::SpaceAccess | Op::SpaceDump, Errno::OVERFLOW) => {
                "the address is beyond the space"
            }
            (
                Op::SpaceMap | Op::SpaceUnmap | Op::SpaceProtect | Op::SpaceRemap,
                Errno::OVERFLOW,
            ) => "the range ends beyond the space, or beyond the last possible PFN",
            (Op::Evacuate | Op::Readmit, Errno::OVERFLOW) => {
                "the range ends beyond the last possible MFN"
            }
            (Op::Readmit, Errno::NOENT) => "the domain doesn't keep out of any frame of this range",
            (Op::Contiguous | Op::Exchange, Errno::FAULT) => {
                "a page of the range isn't populated: p2m populate helps"
            }
            (Op::Contiguous, Errno::BUSY) => {
                "somebody else uses the page, or it's a table of a space"
            }
            (Op::Contiguous, Errno::INVAL) => {
                "the number of pages has to be a power of two and at most 2^18, in a region that can \
                 be contiguous"
            }
            (Op::Exchange, Errno::INVAL) => {
                "the ranges have a page in common, or are of regions that ask other things of their \
                 frames"
            }
            (Op::Create, Errno::INVAL) => {
                "a contiguous region can't be guarded, of a colour or on demand, one of superpages \
                 neither guarded nor of a colour, and the node must have memory"
            }
            (Op::ForeignMap | Op::ForeignUnmap, Errno::OVERFLOW) => {
                "the range has more pages than can be told at once, or ends beyond the last possible \
                 PFN"
            }
            (Op::ForeignMap, Errno::INVAL) => "the other domain has to be another one",
            (Op::Identity, Errno::INVAL) => "some of the machine frames are memory",
            (Op::Identity, Errno::EXIST) => "something is at one of the PFNs: release it before",
            (Op::GuardCheck | Op::Identity, Errno::NOENT) => {
                "a PFN of the range is in no region: p2m map shows the regions"
            }
            (Op::DmaPlan, Errno::INVAL) => {
                "the largest segment and the boundary have to be multiples of the alignment, and \
                 alignment and boundary powers of two"
            }
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

    /// The same, if `done` pages were done by then.
    fn attempt_halfway(self, operation: Operation, done: u64) -> Result<T>;

    /// The same, if a page may be to blame.
    fn attempt_at(self, operation: Operation, blamed: Option<Pfn>) -> Result<T>;
}

impl<T> Attempt<T> for rustix::io::Result<T> {
    fn attempt(self, operation: Operation) -> Result<T> {
        self.map_err(|source| Error::Refused { operation, source })
    }

    fn attempt_halfway(self, operation: Operation, done: u64) -> Result<T> {
        self.map_err(|source| match done {
            0 => Error::Refused { operation, source },
            done => Error::Halfway {
                operation,
                source,
                done,
            },
        })
    }

    fn attempt_at(self, operation: Operation, blamed: Option<Pfn>) -> Result<T> {
        self.map_err(|source| match blamed {
            None => Error::Refused { operation, source },
            Some(pfn) => Error::Because {
                operation,
                source,
                pfn,
            },
        })
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
            (Operation::Destroy, Errno::BUSY, "destroy the space"),
            (Operation::SpaceCreate, Errno::NOENT, "p2m-lossless"),
            (Operation::SpaceCreate, Errno::DQUOT, "destroy one"),
            (Operation::SpaceCreate, Errno::FAULT, "p2m populate"),
            (Operation::SpaceMap, Errno::NOENT, "no space of this number"),
            (Operation::SpaceMap, Errno::EXIST, "unmap it"),
            (Operation::SpaceMap, Errno::NOSPC, "larger"),
            (Operation::SpaceProtect, Errno::OPNOTSUPP, "flag"),
            (Operation::SpaceAccess, Errno::NOTTY, "kernel log"),
            (Operation::SpaceAccess, Errno::OPNOTSUPP, "kernel log"),
            (Operation::Release, Errno::NOENT, "p2m map"),
            (Operation::Evacuate, Errno::PERM, "CAP_SYS_ADMIN"),
            (Operation::Evacuate, Errno::DQUOT, "readmit"),
            (Operation::Readmit, Errno::NOENT, "keep out"),
            (Operation::Create, Errno::INVAL, "contiguous"),
            (Operation::Identity, Errno::PERM, "CAP_SYS_RAWIO"),
            (Operation::Contiguous, Errno::FAULT, "p2m populate"),
            (Operation::Exchange, Errno::INVAL, "in common"),
            (Operation::Move, Errno::NOSPC, "split"),
            (Operation::DmaPlan, Errno::INVAL, "powers of two"),
            (Operation::DmaPlan, Errno::PERM, "CAP_SYS_ADMIN"),
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
    fn what_was_done_is_told() {
        let result: rustix::io::Result<()> = Err(Errno::INTR);
        let error = result.attempt_halfway(Operation::Release, 512);
        let error = error.expect_err("an error");
        assert_eq!((error.done(), error.errno()), (512, Some(Errno::INTR)));
        let text = "cannot release the pages any further than 512 of them";
        assert_eq!(error.to_string(), text);
        let error = result.attempt_halfway(Operation::Release, 0);
        assert_eq!(error, result.attempt(Operation::Release));
    }

    #[test]
    fn the_page_to_blame_is_told() {
        let result: rustix::io::Result<()> = Err(Errno::BUSY);
        let error = result.attempt_at(Operation::Contiguous, Some(Pfn(0x17)));
        let error = error.expect_err("an error");
        let text = "cannot make the pages contiguous, because of PFN 0x17";
        assert_eq!(error.to_string(), text);
        assert!(error.hint().is_some_and(|hint| hint.contains("table")));
        let error = result.attempt_at(Operation::Contiguous, None);
        assert_eq!(error, result.attempt(Operation::Contiguous));
    }

    #[test]
    fn no_hint_is_better_than_a_wrong_one() {
        assert_eq!(hint(Operation::Read, Errno::IO), None);
    }
}
