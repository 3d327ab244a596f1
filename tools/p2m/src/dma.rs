// SPDX-License-Identifier: GPL-2.0

//! What a device has to be told to access memory of a domain: machine addresses, in segments.

use core::fmt;
use core::ops::Range;
use std::os::fd::AsFd;
use std::vec;

use p2m_pure::dma::{self, ByteRange, Limits, Parameters, Plan};
use p2m_pure::entry as pure;
use p2m_pure::frame::{self as frames, PfnRange};
use p2m_pure::runs;
use rustix::io::Errno;
use serde::ser::SerializeSeq;
use serde::{Serialize, Serializer};

use crate::abi;
use crate::domain::Domain;
use crate::error::{Attempt, Error, Operation, Result};
use crate::frame::{Mfn, Pfn, Run};

/// How many segments one ioctl is asked for.
const BATCH: usize = 4096;

/// What a device asks for, in the terms of `struct device_dma_parameters` and `struct queue_limits`.
/// 0 is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DmaLimits {
    /// The highest machine address that it can access.
    pub dma_mask: u64,
    /// The most bytes of a segment.
    pub max_segment_size: u64,
    /// No segment has addresses on both sides of a multiple of this plus 1.
    pub segment_boundary_mask: u64,
    /// The bits that have to be 0 in the address and in the length of a segment.
    pub dma_alignment: u32,
    /// The most segments of a transfer. 1 for a device that can't gather.
    pub max_segments: u32,
}

/// A range of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Bytes {
    /// A page.
    pub pfn: Pfn,
    /// Where the range begins, in bytes from the beginning of that page. It may be more than a page.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
}

/// What is to be known of a segment: why it must bounce, and whose it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DmaFlags(u32);

impl DmaFlags {
    /// It must bounce: the device can't address all of it.
    pub const MASK: Self = Self(abi::P2M_DMA_MASK);
    /// It must bounce: the range is in more segments than the device takes.
    pub const STRADDLE: Self = Self(abi::P2M_DMA_STRADDLE);
    /// It must bounce: it begins or ends where the device can't.
    pub const ALIGNMENT: Self = Self(abi::P2M_DMA_ALIGNMENT);
    /// Its frames belong to somebody else.
    pub const FOREIGN: Self = Self(abi::P2M_DMA_FOREIGN);
    /// Its frames are no memory.
    pub const IDENTITY: Self = Self(abi::P2M_DMA_IDENTITY);
    /// There is nothing.
    pub const UNBACKED: Self = Self(abi::P2M_DMA_UNBACKED);

    const NAMES: [(&'static str, Self); 6] = [
        ("mask", Self::MASK),
        ("straddle", Self::STRADDLE),
        ("alignment", Self::ALIGNMENT),
        ("foreign", Self::FOREIGN),
        ("identity", Self::IDENTITY),
        ("unbacked", Self::UNBACKED),
    ];

    /// Returns whether all of `other` is there.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Returns whether the segment must bounce.
    pub const fn must_bounce(self) -> bool {
        self.0 & abi::P2M_DMA_BOUNCE != 0
    }

    /// Returns the names of what is there.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        let there = move |(name, flag): (&'static str, Self)| self.contains(flag).then_some(name);
        Self::NAMES.into_iter().filter_map(there)
    }
}

impl fmt::Display for DmaFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.names().collect();
        f.pad(&names.join(" "))
    }
}

impl Serialize for DmaFlags {
    /// As a list of names.
    fn serialize<S: Serializer>(&self, serializer: S) -> core::result::Result<S::Ok, S::Error> {
        let mut names = serializer.serialize_seq(None)?;
        for name in self.names() {
            names.serialize_element(name)?;
        }
        names.end()
    }
}

/// Consecutive bytes with consecutive machine addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct DmaSegment {
    /// The page of the first byte.
    pub pfn: Pfn,
    /// Where in this page the first byte is.
    pub offset: u32,
    /// Number of bytes.
    pub length: u64,
    /// Machine address of the first byte, unless there is nothing.
    pub address: Option<u64>,
    /// What is to be known of it.
    pub flags: DmaFlags,
}

impl DmaSegment {
    fn from_raw(raw: &abi::p2m_dma_segment) -> Self {
        Self {
            pfn: Pfn(raw.pfn),
            offset: raw.offset,
            length: raw.length,
            address: (raw.address != abi::ENTRY_INVALID).then_some(raw.address),
            flags: DmaFlags(raw.flags),
        }
    }

    fn from_planned(planned: dma::Planned) -> Self {
        let dma::Planned { segment, flags } = planned;
        Self {
            pfn: Pfn(segment.pfn.get()),
            // Less than a page.
            offset: segment.offset as u32,
            length: segment.length,
            address: segment.address(),
            flags: DmaFlags(flags),
        }
    }
}

impl Domain {
    /// Iterates over the segments that a range of bytes is for a device, in order, without gaps, and
    /// as few as there can be.
    pub fn dma_plan(&self, bytes: Bytes, limits: DmaLimits) -> DmaPlan<'_> {
        DmaPlan {
            domain: self,
            bytes,
            limits,
            position: 0,
            is_done: false,
            batch: Vec::new().into_iter(),
        }
    }
}

/// Iterator over the segments of a range, by [`Domain::dma_plan()`].
#[derive(Debug)]
pub struct DmaPlan<'a> {
    domain: &'a Domain,
    bytes: Bytes,
    limits: DmaLimits,
    /// What was not asked for yet, from here on.
    position: u64,
    is_done: bool,
    /// What was answered.
    batch: vec::IntoIter<DmaSegment>,
}

impl DmaPlan<'_> {
    fn next_batch(&mut self) -> Result<Vec<DmaSegment>> {
        let operation = Operation::DmaPlan;
        let mut buffer = vec![abi::p2m_dma_segment::default(); BATCH];
        let mut raw = abi::p2m_dma_plan::new();
        raw.start_pfn = self.bytes.pfn.0;
        raw.offset = self.bytes.offset;
        raw.length = self.bytes.length;
        raw.dma_mask = self.limits.dma_mask;
        raw.segment_boundary_mask = self.limits.segment_boundary_mask;
        raw.max_segment_size = self.limits.max_segment_size;
        raw.dma_alignment = self.limits.dma_alignment;
        raw.max_segments = self.limits.max_segments;
        raw.position = self.position;
        raw.segments = buffer.as_mut_ptr() as u64;
        raw.nr = BATCH as u32;
        // SAFETY: `segments` points to `nr` elements.
        unsafe { raw.call(self.domain.as_fd()) }.attempt(operation)?;
        // An answer that leads nowhere would be asked for forever.
        if raw.out_nr == 0 || raw.out_next <= self.position {
            return Err(Error::Short { operation });
        }
        self.position = raw.out_next;
        self.is_done = self.position >= self.bytes.length;
        let stored = buffer.iter().take(raw.out_nr as usize);
        Ok(stored.map(DmaSegment::from_raw).collect())
    }
}

impl Iterator for DmaPlan<'_> {
    type Item = Result<DmaSegment>;

    fn next(&mut self) -> Option<Self::Item> {
        if let Some(segment) = self.batch.next() {
            return Some(Ok(segment));
        }
        if self.is_done {
            return None;
        }
        match self.next_batch() {
            Ok(batch) => {
                self.batch = batch.into_iter();
                self.batch.next().map(Ok)
            }
            Err(error) => {
                // What failed once is not asked again.
                self.is_done = true;
                Some(Err(error))
            }
        }
    }
}

/// Returns what [`Domain::dma_plan()`] does, made of runs in the order of their PFNs, without the
/// kernel. Where there is no run, nothing is.
///
/// It is the kernel's own code that makes it.
pub fn plan_dma(runs: &[Run], bytes: Bytes, limits: DmaLimits) -> Result<Vec<DmaSegment>> {
    let operation = Operation::DmaPlan;
    let hidden = |run: &Run| run.entry.mfn() == Some(Mfn::HIDDEN);
    if runs.iter().any(hidden) {
        return Err(Errno::PERM).attempt(operation);
    }
    let range = ByteRange::new(bytes.pfn.0, bytes.offset, bytes.length)
        .map_err(|error| match error {
            frames::BadRange::Empty => Errno::INVAL,
            frames::BadRange::Overflow => Errno::OVERFLOW,
        })
        .attempt(operation)?;
    let limits = Limits::new(Parameters {
        dma_mask: limits.dma_mask,
        max_segment_size: limits.max_segment_size,
        segment_boundary_mask: limits.segment_boundary_mask,
        dma_alignment: limits.dma_alignment.into(),
        max_segments: limits.max_segments.into(),
    })
    .map_err(|_| Errno::INVAL)
    .attempt(operation)?;
    let plan = Plan::new(range, 0, limits, |pages| piece(runs, pages));
    Ok(plan.map(DmaSegment::from_planned).collect())
}

/// Returns the run that a range begins with.
fn piece(runs: &[Run], pages: PfnRange) -> runs::Run {
    let pfn = pages.start();
    let number = pfn.get();
    let behind = runs.partition_point(|run| run.pfn.0 <= number);
    let here = behind.checked_sub(1).and_then(|at| runs.get(at));
    let (entry, end) = match here {
        Some(run) if number - run.pfn.0 < run.nr_pages => {
            let entry = run.entry.advance(number - run.pfn.0);
            (entry.raw(), run.pfn.0.saturating_add(run.nr_pages))
        }
        _ => {
            let next = runs.get(behind).map(|run| run.pfn.0);
            (pure::INVALID, next.unwrap_or_else(|| pages.end()))
        }
    };
    runs::Run {
        pfn,
        nr_pages: end.min(pages.end()).saturating_sub(number),
        entry: pure::Entry::from_raw(entry),
    }
}

impl Bytes {
    /// Returns the pages that the bytes are in.
    pub fn pages(self) -> Range<Pfn> {
        let page = frames::PAGE_SIZE as u64;
        let start = self.pfn.0.saturating_add(self.offset / page);
        let bytes = (self.offset % page).saturating_add(self.length);
        Pfn(start)..Pfn(start.saturating_add(bytes.div_ceil(page)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::tests::fake;
    use crate::frame::{Entry, EntryKind};

    const PAGE: u64 = 4096;

    fn run(pfn: u64, nr_pages: u64, kind: EntryKind) -> Run {
        Run {
            pfn: Pfn(pfn),
            nr_pages,
            entry: Entry::from(kind),
        }
    }

    /// Two pages, then a hole, two pages that aren't neighbours, and one of somebody else.
    fn example() -> Vec<Run> {
        vec![
            run(10, 2, EntryKind::Frame(Mfn(100))),
            run(15, 1, EntryKind::Frame(Mfn(200))),
            run(16, 1, EntryKind::Frame(Mfn(300))),
            run(17, 1, EntryKind::Foreign(Mfn(301))),
        ]
    }

    fn bytes(pfn: u64, offset: u64, length: u64) -> Bytes {
        Bytes {
            pfn: Pfn(pfn),
            offset,
            length,
        }
    }

    fn plan(bytes: Bytes, limits: DmaLimits) -> Vec<(u64, u32, u64, Option<u64>, String)> {
        let plan = plan_dma(&example(), bytes, limits).expect("plan");
        plan.into_iter()
            .map(|s| (s.pfn.0, s.offset, s.length, s.address, s.flags.to_string()))
            .collect()
    }

    #[test]
    fn a_plan_is_made_of_runs() {
        let none = String::new;
        assert_eq!(
            plan(bytes(9, 100, 9 * PAGE), DmaLimits::default()),
            [
                (9, 100, PAGE - 100, None, "unbacked".to_owned()),
                (10, 0, 2 * PAGE, Some(100 * PAGE), none()),
                (12, 0, 3 * PAGE, None, "unbacked".to_owned()),
                (15, 0, PAGE, Some(200 * PAGE), none()),
                (16, 0, PAGE, Some(300 * PAGE), none()),
                (17, 0, PAGE, Some(301 * PAGE), "foreign".to_owned()),
                (18, 0, 100, None, "unbacked".to_owned()),
            ]
        );
        // In the middle of a run.
        assert_eq!(
            plan(bytes(10, PAGE + 1, 2), DmaLimits::default()),
            [(11, 1, 2, Some(101 * PAGE + 1), none())]
        );
    }

    #[test]
    fn a_segment_has_the_reasons_why_it_bounces() {
        let limits = DmaLimits {
            dma_mask: 250 * PAGE,
            dma_alignment: 511,
            max_segments: 1,
            ..DmaLimits::default()
        };
        let flags: Vec<_> = plan(bytes(15, 8, 3 * PAGE - 8), limits)
            .into_iter()
            .map(|(.., flags)| flags)
            .collect();
        assert_eq!(
            flags,
            [
                "straddle alignment",
                "mask straddle",
                "mask straddle foreign"
            ]
        );
    }

    #[test]
    fn flags_are_those_of_the_abi() {
        let all: Vec<_> = DmaFlags(0b11_1111).names().collect();
        let names = "mask straddle alignment foreign identity unbacked";
        assert_eq!(all.join(" "), names);
        for (name, flag) in DmaFlags::NAMES {
            assert_eq!(flag.to_string(), name);
            let bounces = ["mask", "straddle", "alignment"].contains(&name);
            assert_eq!(flag.must_bounce(), bounces, "{name}");
        }
        let json = serde_json::to_string(&DmaFlags(0b1001)).expect("JSON");
        assert_eq!(json, r#"["mask","foreign"]"#);
    }

    #[test]
    fn what_makes_no_sense_is_refused_as_by_the_kernel() {
        let errno = |bytes, limits| {
            let result = plan_dma(&example(), bytes, limits);
            result.expect_err("nonsense").errno()
        };
        let none = DmaLimits::default();
        let no_mask = DmaLimits {
            segment_boundary_mask: 4096,
            ..none
        };
        assert_eq!(errno(bytes(0, 0, 0), none), Some(Errno::INVAL));
        assert_eq!(errno(bytes(u64::MAX, 0, 1), none), Some(Errno::OVERFLOW));
        assert_eq!(errno(bytes(10, 0, 1), no_mask), Some(Errno::INVAL));
    }

    #[test]
    fn nothing_is_planned_for_hidden_frames() {
        let hidden = [run(0, 1, EntryKind::Frame(Mfn::HIDDEN))];
        let result = plan_dma(&hidden, bytes(0, 0, 1), DmaLimits::default());
        let error = result.expect_err("hidden");
        assert_eq!(error.errno(), Some(Errno::PERM));
        assert!(
            error
                .hint()
                .is_some_and(|hint| hint.contains("CAP_SYS_ADMIN"))
        );
    }

    #[test]
    fn plans_end_with_the_first_error() {
        let domain = fake(&[]);
        let plan: Vec<_> = domain
            .dma_plan(bytes(0, 0, 1), DmaLimits::default())
            .collect();
        assert_eq!(plan.len(), 1);
        let error = plan[0].clone().expect_err("a file");
        assert_eq!(error.errno(), Some(Errno::NOTTY));
    }

    #[test]
    fn bytes_are_in_pages() {
        for (offset, length, pages) in [
            (0, 1, 5..6),
            (0, PAGE, 5..6),
            (1, PAGE, 5..7),
            (PAGE, PAGE, 6..7),
            (2 * PAGE - 1, 2, 6..8),
        ] {
            let range = bytes(5, offset, length).pages();
            assert_eq!(range, Pfn(pages.start)..Pfn(pages.end));
        }
    }
}
