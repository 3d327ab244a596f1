// SPDX-License-Identifier: GPL-2.0

//! Domains, and the questions that can be asked about them.

use core::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::vec;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags};
use serde::Serialize;

use crate::abi;
use crate::error::{Attempt, Error, Operation, Result};
use crate::frame::{Colour, Constraint, Entry, Mfn, MfnRange, Pfn, Policy, Region, Run, pages};
use crate::mapping::{Access, Mapping, Populate};
use crate::table::TableView;
use crate::words::read_words;

/// How many elements one ioctl is asked for, where there may be any number: the buffer stays small,
/// and a system call for each batch doesn't matter.
const BATCH: usize = 4096;

/// One pseudo-physical space.
///
/// It lives as long as any process has it open or mapped. [`AsFd`] gives the descriptor, to hand it
/// on to another process.
#[derive(Debug)]
pub struct Domain {
    fd: OwnedFd,
    info: Info,
}

/// What the module is, what it can do and what it allows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Info {
    /// Version of the ABI.
    pub abi_version: u32,
    /// log2 of the page size.
    pub page_shift: u32,
    /// Whether MFNs are shown to who opened the domain.
    pub mfn_visible: bool,
    /// Whether the tables can be mapped.
    pub table_mmap: bool,
    /// Whether there are spaces.
    pub spaces: bool,
    /// Whether the processor can be had to access a space.
    pub cpu_access: bool,
    /// Whether frames can change while they are in use.
    pub live: bool,
    /// Whether DMA can be planned.
    pub dma_plan: bool,
    /// Whether ranges can be exported as dma-bufs.
    pub dma_buf: bool,
    /// The policies that can be asked for.
    pub policies: Vec<Policy>,
    /// The policy of a region made by a plain mmap().
    pub default_policy: Policy,
    /// All PFNs are below this.
    pub max_pfn: Pfn,
    /// All MFNs of this machine are below this, unless they are hidden.
    pub max_mfn: Mfn,
    /// Most pages that one domain may have.
    pub max_domain_pages: u64,
    /// Most pages that all domains may have together.
    pub max_total_pages: u64,
    /// Most regions that one domain may have.
    pub max_regions: u32,
}

impl Info {
    /// Returns the size of a page.
    pub fn page_bytes(&self) -> u64 {
        1 << self.page_shift
    }

    fn new(raw: &abi::p2m_info) -> Result<Self> {
        // Without this, no other number means what it seems to. A shift beyond the word is from
        // something that isn't p2m.
        if raw.out_abi_version != abi::P2M_ABI_VERSION || raw.out_page_shift >= u64::BITS {
            return Err(Error::Version {
                found: raw.out_abi_version,
            });
        }
        let has = |feature| raw.out_features & u64::from(feature) != 0;
        Ok(Self {
            abi_version: raw.out_abi_version,
            page_shift: raw.out_page_shift,
            mfn_visible: has(abi::P2M_FEATURE_MFN_VISIBLE),
            table_mmap: has(abi::P2M_FEATURE_TABLE_MMAP),
            spaces: has(abi::P2M_FEATURE_SPACES),
            cpu_access: has(abi::P2M_FEATURE_CPU_ACCESS),
            live: has(abi::P2M_FEATURE_LIVE),
            dma_plan: has(abi::P2M_FEATURE_DMA_PLAN),
            dma_buf: has(abi::P2M_FEATURE_DMA_BUF),
            policies: (0..u64::BITS)
                .filter(|n| (raw.out_policies >> n) & 1 != 0)
                .map(Policy)
                .collect(),
            default_policy: Policy(raw.out_default_policy),
            max_pfn: Pfn(raw.out_max_pfn),
            max_mfn: Mfn(raw.out_max_mfn),
            max_domain_pages: raw.out_max_domain_pages,
            max_total_pages: raw.out_max_total_pages,
            max_regions: raw.out_max_regions,
        })
    }
}

/// Statistics of a domain and of the system.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stat {
    /// Counts the changes of the structure of the P2M, twice each.
    pub generation: u64,
    /// Regions of the domain.
    pub regions: u64,
    /// Pages in them.
    pub pages: u64,
    /// Pages that have a machine frame: not those that were released or not touched yet.
    pub frames: u64,
    /// Machine frames that are guards next to those.
    pub guards: u64,
    /// Superpages, each of which is 512 of the frames.
    pub superpages: u64,
    /// Page-sized tables that hold the P2M.
    pub p2m_tables: u64,
    /// Page-sized tables that hold the M2P.
    pub m2p_tables: u64,
    /// Page faults served on the memory of the domain.
    pub faults: u64,
    /// Pages mapped by them.
    pub fault_pages: u64,
    /// Domains in the system.
    pub total_domains: u64,
    /// Pages of all domains.
    pub total_pages: u64,
}

impl Domain {
    /// Opens the device, which makes a new domain.
    pub fn open() -> Result<Self> {
        Self::open_at(crate::DEVICE.as_ref())
    }

    /// Opens the device by another name, which makes a new domain.
    pub fn open_at(path: &Path) -> Result<Self> {
        let fd = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .attempt(Operation::Open)?;
        Self::from_fd(fd)
    }

    /// Attaches to the domain that another process has open as `fd`.
    ///
    /// Needs the right to trace that process.
    pub fn attach(pid: u32, fd: RawFd) -> Result<Self> {
        let pid = i32::try_from(pid)
            .ok()
            .and_then(Pid::from_raw)
            .ok_or(Errno::SRCH)
            .attempt(Operation::FindProcess)?;
        let process = rustix::process::pidfd_open(pid, PidfdFlags::empty())
            .attempt(Operation::FindProcess)?;
        let take = || {
            if fd < 0 {
                return Err(Errno::BADF);
            }
            rustix::process::pidfd_getfd(process, fd, PidfdGetfdFlags::empty())
        };
        let fd = take().attempt(Operation::TakeDescriptor)?;
        Self::from_fd(fd)
    }

    /// Takes a descriptor for a domain, if it's one of the device.
    pub fn from_fd(fd: OwnedFd) -> Result<Self> {
        let mut raw = abi::p2m_info::new();
        // SAFETY: There is no pointer in it.
        unsafe { raw.call(fd.as_fd()) }.attempt(Operation::Info)?;
        let info = Info::new(&raw)?;
        Ok(Self { fd, info })
    }

    /// Returns what the module is, what it can do and what it allows.
    pub fn info(&self) -> &Info {
        &self.info
    }

    /// Returns statistics of the domain and of the system.
    pub fn stat(&self) -> Result<Stat> {
        let mut raw = abi::p2m_stat::new();
        // SAFETY: There is no pointer in it.
        unsafe { raw.call(self.as_fd()) }.attempt(Operation::Stat)?;
        Ok(Stat {
            generation: raw.out_generation,
            regions: raw.out_regions,
            pages: raw.out_pages,
            frames: raw.out_frames,
            guards: raw.out_guards,
            superpages: raw.out_superpages,
            p2m_tables: raw.out_p2m_tables,
            m2p_tables: raw.out_m2p_tables,
            faults: raw.out_faults,
            fault_pages: raw.out_fault_pages,
            total_domains: raw.out_total_domains,
            total_pages: raw.out_total_pages,
        })
    }

    /// Begins to describe a new region of `nr_pages`.
    pub fn region(&self, nr_pages: u64) -> RegionBuilder<'_> {
        RegionBuilder {
            domain: self,
            nr_pages,
            policy: Policy::ANY,
            seed: 0,
            base: None,
            on_demand: false,
            constraint: Constraint::default(),
        }
    }

    /// Takes away the region that begins at `base`, out of all mappings too.
    pub fn destroy(&self, base: Pfn) -> Result<()> {
        let mut raw = abi::p2m_region_destroy::new();
        raw.base_pfn = base.0;
        // SAFETY: There is no pointer in it.
        unsafe { raw.call(self.as_fd()) }.attempt(Operation::Destroy)
    }

    /// Returns the regions in the order of their PFNs.
    pub fn regions(&self) -> Result<Vec<Region>> {
        let mut regions: Vec<Region> = Vec::new();
        let mut buffer = vec![abi::p2m_region::default(); BATCH];
        let mut constraints = vec![abi::p2m_constraint::default(); BATCH];
        loop {
            let mut raw = abi::p2m_region_list::new();
            raw.start_pfn = regions.last().map_or(0, |region| region.range().end.0);
            raw.regions = buffer.as_mut_ptr() as u64;
            raw.constraints = constraints.as_mut_ptr() as u64;
            raw.nr = BATCH as u32;
            // SAFETY: `regions` and `constraints` point to `nr` elements each.
            unsafe { raw.call(self.as_fd()) }.attempt(Operation::List)?;
            let stored = buffer.iter().zip(&constraints).take(raw.out_nr as usize);
            regions.extend(stored.map(|(raw, constraint)| region(raw, constraint)));
            if raw.out_nr == 0 || u64::from(raw.out_nr) >= raw.out_total {
                return Ok(regions);
            }
        }
    }

    /// Returns what is at each of the PFNs.
    pub fn translate(&self, pfns: &[Pfn]) -> Result<Vec<Entry>> {
        let pfns = pfns.iter().map(|pfn| pfn.0).collect();
        let entries = self.translate_words(pfns, 0)?;
        Ok(entries.into_iter().map(Entry::from_raw).collect())
    }

    /// Returns the PFN that each of the machine frames is at, if it's one of the domain.
    pub fn reverse(&self, mfns: &[Mfn]) -> Result<Vec<Option<Pfn>>> {
        let mfns = mfns.iter().map(|mfn| mfn.0).collect();
        let pfns = self.translate_words(mfns, abi::P2M_TRANSLATE_M2P)?;
        Ok(pfns
            .into_iter()
            // Neither what has no PFN nor a guard is at one.
            .map(|pfn| (pfn < abi::MAX_PFN).then_some(Pfn(pfn)))
            .collect())
    }

    fn translate_words(&self, mut words: Vec<u64>, flags: u32) -> Result<Vec<u64>> {
        let operation = Operation::Translate;
        for batch in words.chunks_mut(BATCH) {
            let mut raw = abi::p2m_translate::new();
            raw.flags = flags;
            raw.nr = batch.len() as u32;
            raw.frames = batch.as_mut_ptr() as u64;
            raw.entries = raw.frames;
            // SAFETY: `frames` and `entries` both point to `nr` elements, which may be the same.
            unsafe { raw.call(self.as_fd()) }.attempt(operation)?;
            if raw.out_nr != raw.nr {
                return Err(Error::Short { operation });
            }
        }
        Ok(words)
    }

    /// Iterates over the runs that a range of PFNs consists of, in order and without gaps.
    ///
    /// PFNs that nothing is at are runs too, of [`Entry::INVALID`].
    pub fn runs(&self, range: Range<Pfn>) -> Runs<'_> {
        Runs {
            domain: self,
            rest: range,
            batch: Vec::new().into_iter(),
        }
    }

    /// Reads the entries of a range of PFNs by read(2).
    ///
    /// Ends before the range does if that goes beyond the highest region.
    pub fn read_entries(&self, range: Range<Pfn>) -> Result<Vec<Entry>> {
        let nr = range.end.0.saturating_sub(range.start.0);
        let nr = usize::try_from(nr).unwrap_or(usize::MAX);
        let words = read_words(&self.fd, range.start.0, nr).attempt(Operation::Read)?;
        Ok(words.into_iter().map(Entry::from_raw).collect())
    }

    /// Maps a range of PFNs.
    pub fn map(&self, range: Range<Pfn>, access: Access, populate: Populate) -> Result<Mapping> {
        let bytes = |pages: u64| {
            pages
                .checked_mul(self.info.page_bytes())
                .ok_or(Errno::OVERFLOW)
        };
        let map = || {
            // The other windows lie behind this one, where no PFN must lead.
            if range.end > self.info.max_pfn {
                return Err(Errno::OVERFLOW);
            }
            let offset = u64::from(abi::P2M_OFFSET_MEMORY) + bytes(range.start.0)?;
            let len = bytes(range.end.0.saturating_sub(range.start.0))?;
            Mapping::new(&self.fd, offset, len, access, populate)
        };
        map().attempt(Operation::Map)
    }

    /// Maps the tables, to look into them without a system call.
    pub fn tables(&self) -> Result<TableView> {
        let page = self.info.page_bytes();
        let map = |offset, words: u64| {
            // At least a page, since an empty mapping is none.
            let bytes = (words * size_of::<u64>() as u64).max(1);
            let bytes = bytes.next_multiple_of(page);
            Mapping::new(&self.fd, offset, bytes, Access::Read, Populate::Lazily)
        };
        let view = || {
            TableView::new(
                map(abi::P2M_OFFSET_HEADER, 1)?,
                map(abi::P2M_OFFSET_P2M, self.info.max_pfn.0)?,
                map(abi::P2M_OFFSET_M2P, self.info.max_mfn.0)?,
            )
            .ok_or(Errno::OVERFLOW)
        };
        view().attempt(Operation::MapTables)
    }
}

impl AsFd for Domain {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Describes a new region; [`create()`](Self::create) makes it.
#[derive(Clone, Debug)]
#[must_use = "nothing is created before create()"]
pub struct RegionBuilder<'a> {
    domain: &'a Domain,
    nr_pages: u64,
    policy: Policy,
    seed: u64,
    base: Option<Pfn>,
    on_demand: bool,
    constraint: Constraint,
}

/// Returns a region as the kernel describes it.
fn region(raw: &abi::p2m_region, constraint: &abi::p2m_constraint) -> Region {
    let has = |flag| raw.flags & flag != 0;
    Region {
        base_pfn: Pfn(raw.base_pfn),
        nr_pages: raw.nr_pages,
        policy: Policy(raw.policy),
        seed: raw.seed,
        on_demand: has(abi::P2M_REGION_ON_DEMAND),
        constraint: Constraint {
            guarded: has(abi::P2M_REGION_GUARDED),
            node: has(abi::P2M_REGION_NODE).then_some(constraint.node),
            mfns: has(abi::P2M_REGION_RANGE).then_some(MfnRange {
                start: Mfn(constraint.start_mfn),
                end: Mfn(constraint.end_mfn),
            }),
            colour: has(abi::P2M_REGION_COLOUR).then_some(Colour {
                colour: constraint.colour,
                of: constraint.divisor,
            }),
        },
    }
}

impl RegionBuilder<'_> {
    /// Chooses where the machine frames come from, and in which order.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Chooses one of the orders that [`Policy::SCATTER`] can make; other policies have none.
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Chooses the first PFN; the kernel does otherwise.
    pub fn base(mut self, base: Pfn) -> Self {
        self.base = Some(base);
        self
    }

    /// Chooses that pages come when they are touched; otherwise all are there from the beginning.
    pub fn on_demand(mut self) -> Self {
        self.on_demand = true;
        self
    }

    /// Chooses what is asked of each machine frame.
    pub fn constraint(mut self, constraint: Constraint) -> Self {
        self.constraint = constraint;
        self
    }

    /// Creates the region, of zeroed pages.
    pub fn create(self) -> Result<Region> {
        let mut raw = abi::p2m_region_create::new();
        raw.nr_pages = self.nr_pages;
        raw.policy = self.policy.0;
        raw.seed = self.seed;
        if let Some(base) = self.base {
            raw.flags |= abi::P2M_REGION_FIXED;
            raw.base_pfn = base.0;
        }
        if self.on_demand {
            raw.flags |= abi::P2M_REGION_ON_DEMAND;
        }
        let constraint = self.constraint;
        if constraint.guarded {
            raw.flags |= abi::P2M_REGION_GUARDED;
        }
        if let Some(node) = constraint.node {
            raw.flags |= abi::P2M_REGION_NODE;
            raw.node = node;
        }
        if let Some(MfnRange { start, end }) = constraint.mfns {
            raw.flags |= abi::P2M_REGION_RANGE;
            (raw.start_mfn, raw.end_mfn) = (start.0, end.0);
        }
        if let Some(Colour { colour, of }) = constraint.colour {
            raw.flags |= abi::P2M_REGION_COLOUR;
            (raw.divisor, raw.colour) = (of, colour);
        }
        // SAFETY: There is no pointer in it.
        unsafe { raw.call(self.domain.as_fd()) }.attempt(Operation::Create)?;
        Ok(Region {
            base_pfn: Pfn(raw.base_pfn),
            nr_pages: self.nr_pages,
            policy: self.policy,
            seed: self.seed,
            on_demand: self.on_demand,
            constraint,
        })
    }
}

/// Iterator over the runs of a range, by [`Domain::runs()`].
#[derive(Debug)]
pub struct Runs<'a> {
    domain: &'a Domain,
    /// What was not asked for yet.
    rest: Range<Pfn>,
    /// What was answered.
    batch: vec::IntoIter<Run>,
}

impl Runs<'_> {
    fn next_batch(&mut self) -> Result<Vec<Run>> {
        let operation = Operation::Runs;
        let mut buffer = vec![abi::p2m_run::default(); BATCH];
        let mut raw = abi::p2m_runs::new();
        raw.start_pfn = self.rest.start.0;
        raw.nr_pages = self.rest.end.0 - self.rest.start.0;
        raw.runs = buffer.as_mut_ptr() as u64;
        raw.nr = BATCH as u32;
        // SAFETY: `runs` points to `nr` elements.
        unsafe { raw.call(self.domain.as_fd()) }.attempt(operation)?;
        // An answer that leads nowhere would be asked for forever.
        if raw.out_nr == 0 || raw.out_next_pfn <= self.rest.start.0 {
            return Err(Error::Short { operation });
        }
        self.rest.start = Pfn(raw.out_next_pfn);
        let stored = buffer.iter().take(raw.out_nr as usize);
        Ok(stored
            .map(|raw| Run {
                pfn: Pfn(raw.pfn),
                nr_pages: raw.nr_pages,
                entry: Entry::from_raw(raw.entry),
            })
            .collect())
    }
}

impl Iterator for Runs<'_> {
    type Item = Result<Run>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(run) = self.batch.next() {
            return Some(Ok(run));
        }
        if self.rest.is_empty() {
            return None;
        }
        match self.next_batch() {
            Ok(batch) => {
                self.batch = batch.into_iter();
                self.batch.next().map(Ok)
            }
            Err(error) => {
                // What failed once is not asked again.
                self.rest = pages(self.rest.end, 0);
                Some(Err(error))
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn raw_info() -> abi::p2m_info {
        abi::p2m_info {
            out_abi_version: abi::P2M_ABI_VERSION,
            out_page_shift: 12,
            ..abi::p2m_info::new()
        }
    }

    #[test]
    fn info_of_another_version_is_refused() {
        let mut raw = raw_info();
        assert!(Info::new(&raw).is_ok());
        raw.out_abi_version += 1;
        assert_eq!(Info::new(&raw), Err(Error::Version { found: 2 }));
    }

    #[test]
    fn info_lists_policies_with_and_without_a_name() {
        let mut raw = raw_info();
        raw.out_policies = (1 << 63) | (1 << 2) | 1;
        let info = Info::new(&raw).expect("info");
        assert_eq!(info.policies, [Policy::ANY, Policy::CONTIGUOUS, Policy(63)]);
    }

    #[test]
    fn features_are_told_apart() {
        let mut raw = raw_info();
        for feature in 0..6 {
            raw.out_features = 1 << feature;
            let info = Info::new(&raw).expect("info");
            let has = [
                info.mfn_visible,
                info.table_mmap,
                info.spaces,
                info.cpu_access,
                info.live,
                info.dma_plan,
                info.dma_buf,
            ];
            assert_eq!(has, [0, 1, 2, 3, 4, 5, 6].map(|n| n == feature));
        }
    }

    #[test]
    fn a_descriptor_of_something_else_is_no_domain() {
        let file = tempfile::tempfile().expect("temporary file");
        let error = Domain::from_fd(file.into()).expect_err("no domain");
        assert_eq!(error.errno(), Some(Errno::NOTTY));
        assert!(error.hint().is_some_and(|hint| hint.contains("not one of")));
    }

    #[test]
    fn attaching_says_what_was_missing() {
        for (pid, fd, operation) in [
            (0, 0, Operation::FindProcess),
            (u32::MAX, 0, Operation::FindProcess),
            (std::process::id(), -1, Operation::TakeDescriptor),
        ] {
            match Domain::attach(pid, fd) {
                Err(Error::Refused { operation: at, .. }) => assert_eq!(at, operation),
                other => panic!("{other:?}"),
            }
        }
    }

    /// A file in the place of the device, which knows no ioctl.
    pub(crate) fn fake(contents: &[u64]) -> Domain {
        let mut file = tempfile::tempfile().expect("temporary file");
        for word in contents {
            std::io::Write::write_all(&mut file, &word.to_ne_bytes()).expect("write");
        }
        let mut raw = raw_info();
        raw.out_max_pfn = abi::MAX_PFN;
        Domain {
            fd: file.into(),
            info: Info::new(&raw).expect("info"),
        }
    }

    #[test]
    fn a_region_has_the_constraints_that_its_flags_speak_of() {
        let numbers = abi::p2m_constraint {
            start_mfn: 1,
            end_mfn: 2,
            node: 3,
            divisor: 5,
            colour: 4,
            __reserved: 0,
        };
        let of = |flags| {
            let raw = abi::p2m_region {
                flags,
                ..Default::default()
            };
            region(&raw, &numbers).constraint
        };
        let none = Constraint::default();
        let (start, end) = (Mfn(1), Mfn(2));
        for (flags, expected) in [
            (abi::P2M_REGION_ON_DEMAND, none),
            (
                abi::P2M_REGION_GUARDED,
                Constraint {
                    guarded: true,
                    ..none
                },
            ),
            (
                abi::P2M_REGION_NODE,
                Constraint {
                    node: Some(3),
                    ..none
                },
            ),
            (
                abi::P2M_REGION_RANGE,
                Constraint {
                    mfns: Some(MfnRange { start, end }),
                    ..none
                },
            ),
            (
                abi::P2M_REGION_COLOUR,
                Constraint {
                    colour: Some(Colour { colour: 4, of: 5 }),
                    ..none
                },
            ),
        ] {
            assert_eq!(of(flags), expected);
        }
    }

    #[test]
    fn entries_end_with_the_file() {
        let domain = fake(&[7, u64::MAX, 9]);
        let entries = domain.read_entries(Pfn(1)..Pfn(9)).expect("read");
        assert_eq!(entries, [Entry::INVALID, Entry::from_raw(9)]);
    }

    #[test]
    fn no_range_of_pfns_leads_into_another_window() {
        let domain = fake(&[]);
        let map = |range| domain.map(range, Access::Read, Populate::Lazily);
        let last = Pfn(abi::MAX_PFN - 1);
        assert!(map(pages(last, 1)).is_ok());
        for nr in [2, u64::MAX] {
            let error = map(pages(last, nr)).expect_err("beyond the space");
            assert_eq!(error.errno(), Some(Errno::OVERFLOW));
        }
    }

    #[test]
    fn runs_end_with_the_first_error() {
        let domain = fake(&[]);
        let runs: Vec<_> = domain.runs(Pfn(0)..Pfn(9)).collect();
        assert_eq!(runs.len(), 1);
        assert!(runs[0].is_err());
        assert_eq!(domain.runs(Pfn(3)..Pfn(3)).count(), 0);
    }
}
