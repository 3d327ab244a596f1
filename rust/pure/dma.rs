// SPDX-License-Identifier: GPL-2.0

//! DMA: what a device sees of pseudo-physical bytes.
//!
//! What is one piece to its owner is to a device as many as there are machine runs in it. The laws
//! are those of the kernel, and so are the names of what a device asks for:
//!
//! - Straddling and alignment of a buffer: `range_straddles_page_boundary()` and
//!   `range_requires_alignment()` of `drivers/xen/swiotlb-xen.c`.
//! - What can be one segment: `biovec_phys_mergeable()` and `get_max_segment_size()` of
//!   `block/blk.h`, and `xen_biovec_phys_mergeable()` of `drivers/xen/biomerge.c`.
//! - What must bounce: `dma_capable()` of `include/linux/dma-direct.h` for the mask,
//!   `bio_split_io_at()` of `block/blk-merge.c` and `blk_rq_aligned()` of `include/linux/blkdev.h` for
//!   the alignment, and `xen_swiotlb_map_phys()` for a device that can't gather.
//!
//! Where runs come from is a function here: of a range of PFNs, it returns the run that the range
//! begins with, or a piece of it, as [`piece()`](super::runs::piece) does.

use super::entry::Entry;
use super::frame::{BadRange, Mfn, Pfn, PfnRange, PAGE_SHIFT, PAGE_SIZE};
use super::runs::Run;

/// Size of a page in bytes.
// CAST: It's a small number.
const PAGE_BYTES: u64 = PAGE_SIZE as u64;

/// What is to be known of a segment. The numbers are those of the ABI.
pub mod flags {
    /// It must bounce: the device can't address all of it.
    pub const MASK: u32 = 1 << 0;
    /// It must bounce, together with the others: the range is in more segments than the device
    /// takes.
    pub const STRADDLE: u32 = 1 << 1;
    /// It must bounce: it begins or ends where the device can't.
    pub const ALIGNMENT: u32 = 1 << 2;
    /// It's in frames that belong to somebody else.
    pub const FOREIGN: u32 = 1 << 3;
    /// It's in frames that are no memory.
    pub const IDENTITY: u32 = 1 << 4;
    /// Nothing is there, so no device can access it.
    pub const UNBACKED: u32 = 1 << 5;
    /// Why a segment must bounce.
    pub const BOUNCE: u32 = MASK | STRADDLE | ALIGNMENT;
}

/// A range of pseudo-physical bytes that is not empty.
///
/// # Invariants
///
/// `pages` are the pages that the bytes are in, `offset` is where the bytes begin in the first one,
/// and `length` is not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ByteRange {
    pages: PfnRange,
    offset: u64,
    length: u64,
}

impl ByteRange {
    /// Makes the range of `length` bytes that begins `offset` bytes, of which there may be more than
    /// in a page, from the beginning of a page.
    pub fn new(pfn: u64, offset: u64, length: u64) -> Result<Self, BadRange> {
        if length == 0 {
            return Err(BadRange::Empty);
        }
        let start = pfn
            .checked_mul(PAGE_BYTES)
            .and_then(|start| start.checked_add(offset))
            .ok_or(BadRange::Overflow)?;
        let end = start.checked_add(length).ok_or(BadRange::Overflow)?;
        let first = start >> PAGE_SHIFT;
        // OVERFLOW: The end is behind the start.
        let nr_pages = end.div_ceil(PAGE_BYTES) - first;
        // INVARIANT: The pages are those from that of the first byte to that of the last one.
        Ok(Self {
            pages: PfnRange::new(first, nr_pages)?,
            offset: start % PAGE_BYTES,
            length,
        })
    }

    /// Returns the pages that the bytes are in.
    pub const fn pages(self) -> PfnRange {
        self.pages
    }

    /// Returns the pseudo-physical address of the first byte.
    pub const fn start(self) -> u64 {
        // OVERFLOW: PFNs have 31 bits.
        (self.pages.start().get() << PAGE_SHIFT) + self.offset
    }

    /// Returns the number of bytes, which is not 0.
    pub const fn length(self) -> u64 {
        self.length
    }

    /// Returns the range without its first bytes, if any are left.
    pub fn skip(self, nr: u64) -> Option<Self> {
        let length = self.length.checked_sub(nr)?;
        // OVERFLOW: It is inside the range.
        Self::new(
            self.pages.start().get(),
            self.offset.checked_add(nr)?,
            length,
        )
        .ok()
    }
}

/// What a device asks for, with 0 for what it doesn't.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parameters {
    /// The highest machine address that it can access, as `dma_mask` of `struct device`.
    pub dma_mask: u64,
    /// The most bytes of a segment, as in `struct device_dma_parameters` and `struct queue_limits`.
    pub max_segment_size: u64,
    /// No segment has addresses on both sides of a multiple of this plus 1, as in
    /// `struct device_dma_parameters`.
    pub segment_boundary_mask: u64,
    /// The bits that are 0 in the address and in the length of each segment, as in
    /// `struct queue_limits`.
    pub dma_alignment: u64,
    /// The most segments of a transfer, as in `struct queue_limits`. 1 for a device that can't gather.
    pub max_segments: u64,
}

/// Why no device asks for such a thing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadLimits {
    /// The boundary mask isn't one less than a power of two.
    Boundary,
    /// The alignment isn't one less than a power of two.
    Alignment,
    /// Segments of the largest size, or those that end at a boundary, are not aligned.
    Cuts,
}

/// [`Parameters`] that make sense.
///
/// # Invariants
///
/// No limit is 0 but `dma_alignment`, which is, as `segment_boundary_mask`, one less than a power of
/// two, and where segments are cut for their size or a boundary is a multiple of the alignment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    dma_mask: u64,
    max_segment_size: u64,
    segment_boundary_mask: u64,
    dma_alignment: u64,
    max_segments: u64,
}

impl Limits {
    /// Those of a device that takes everything.
    pub const NONE: Self = Self {
        dma_mask: u64::MAX,
        max_segment_size: u64::MAX,
        segment_boundary_mask: u64::MAX,
        dma_alignment: 0,
        max_segments: u64::MAX,
    };

    /// Makes limits of what a device asks for.
    pub fn new(parameters: Parameters) -> Result<Self, BadLimits> {
        let or_none = |limit: u64| if limit == 0 { u64::MAX } else { limit };
        let is_mask = |mask: u64| mask & mask.wrapping_add(1) == 0;
        let limits = Self {
            dma_mask: or_none(parameters.dma_mask),
            max_segment_size: or_none(parameters.max_segment_size),
            segment_boundary_mask: or_none(parameters.segment_boundary_mask),
            dma_alignment: parameters.dma_alignment,
            max_segments: or_none(parameters.max_segments),
        };
        if !is_mask(limits.segment_boundary_mask) {
            return Err(BadLimits::Boundary);
        }
        if !is_mask(limits.dma_alignment) {
            return Err(BadLimits::Alignment);
        }
        let is_aligned = parameters.max_segment_size & limits.dma_alignment == 0
            && limits.segment_boundary_mask >= limits.dma_alignment;
        // INVARIANT: All has just been checked.
        is_aligned.then_some(limits).ok_or(BadLimits::Cuts)
    }

    /// Returns how many bytes a segment that begins at a machine address may have, which is not 0:
    /// `get_max_segment_size()`.
    pub const fn room(self, address: u64) -> u64 {
        let mask = self.segment_boundary_mask;
        // OVERFLOW: No bit of the subtrahend isn't in the mask, too, and by the type invariants no
        // size is 0.
        let (to_boundary, to_size) = (mask - (mask & address), self.max_segment_size - 1);
        // OVERFLOW: The second one is less than the highest number.
        if to_boundary < to_size {
            to_boundary + 1
        } else {
            to_size + 1
        }
    }
}

/// Consecutive pseudo-physical bytes with consecutive machine addresses, or with none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The page of the first byte.
    pub pfn: Pfn,
    /// Where in this page the first byte is.
    pub offset: u64,
    /// Number of bytes.
    pub length: u64,
    /// What is at the page of the first byte.
    pub entry: Entry,
}

impl Segment {
    /// Returns the bytes of a range that are in a run which the range begins with.
    fn new(range: ByteRange, run: Run) -> Self {
        let pages = range.pages();
        let nr_pages = run.nr_pages.clamp(1, pages.nr_pages());
        Self {
            pfn: pages.start(),
            offset: range.offset,
            // OVERFLOW: There are far fewer than 2^64 bytes, and the offset is in the first page.
            length: range.length.min((nr_pages << PAGE_SHIFT) - range.offset),
            entry: run.entry,
        }
    }

    /// Returns the pseudo-physical address of the first byte.
    pub const fn start(self) -> u64 {
        // OVERFLOW: PFNs have 31 bits, and the offset is in a page.
        (self.pfn.get() << PAGE_SHIFT) + self.offset
    }

    /// Returns the machine address of the first byte, if there is one.
    pub fn address(self) -> Option<u64> {
        // OVERFLOW: MFNs have 40 bits, and the offset is in a page.
        Some((self.entry.mfn()?.get() << PAGE_SHIFT) + self.offset)
    }

    /// Returns the segment that goes on with `next`, if it does in the pseudo-physical space and in
    /// the machine.
    ///
    /// Frames of different kinds are not one segment, even if they are neighbours. Xen doesn't look,
    /// but `zone_device_pages_have_same_pgmap()` is there for this.
    fn join(self, next: Self) -> Option<Self> {
        // OVERFLOW: A segment ends in the spaces that it begins in.
        let is_next = self.start() + self.length == next.start();
        let end = self.address().map(|address| address + self.length);
        let is_same = core::mem::discriminant(&self.entry) == core::mem::discriminant(&next.entry);
        (is_next && is_same && end == next.address()).then_some(Self {
            // OVERFLOW: Both are in the PFN space, one after the other.
            length: self.length + next.length,
            ..self
        })
    }

    /// Returns the segment that goes on with `next`, if both together are one that the device takes:
    /// `biovec_phys_mergeable()`.
    pub fn merge(self, next: Self, limits: &Limits) -> Option<Self> {
        self.join(next)
            .filter(|joined| joined.length <= joined.room(limits))
    }

    /// Returns how many bytes the segment may have. Nothing has no limits.
    fn room(self, limits: &Limits) -> u64 {
        self.address()
            .map_or(u64::MAX, |address| limits.room(address))
    }

    /// Returns the first `nr` bytes, and the others.
    fn split(self, nr: u64) -> (Self, Option<Self>) {
        let rest = self.length.checked_sub(nr).filter(|&length| length > 0);
        let rest = rest.and_then(|length| {
            // OVERFLOW: It is inside the segment.
            let start = self.start() + nr;
            let pfn = Pfn::new(start >> PAGE_SHIFT)?;
            Some(Self {
                pfn,
                offset: start % PAGE_BYTES,
                length,
                // OVERFLOW: It is a page of the segment. That it has a frame was said by the source.
                entry: self
                    .entry
                    .advance(pfn.get() - self.pfn.get())
                    .unwrap_or(Entry::Invalid),
            })
        });
        let length = self.length.min(nr);
        (Self { length, ..self }, rest)
    }

    /// Returns what is to be known of the segment, as far as it alone can tell.
    pub fn flags(self, limits: &Limits) -> u32 {
        let kind = match self.entry {
            Entry::Invalid => flags::UNBACKED,
            Entry::Identity(_) => flags::IDENTITY,
            Entry::Foreign(_) => flags::FOREIGN,
            Entry::Present(_) => 0,
        };
        let Some(address) = self.address() else {
            return kind;
        };
        let if_any = |bits: u64, flag| if bits == 0 { 0 } else { flag };
        // OVERFLOW: No segment is empty, and addresses have 52 bits.
        let beyond = (address + (self.length - 1)).saturating_sub(limits.dma_mask);
        let unaligned = (address | self.length) & limits.dma_alignment;
        kind | if_any(beyond, flags::MASK) | if_any(unaligned, flags::ALIGNMENT)
    }
}

/// Returns whether the bytes of a range are in frames that don't follow each other:
/// `range_straddles_page_boundary()`.
///
/// One page never is. Pages without a frame follow nobody.
pub fn straddles(range: ByteRange, mut source: impl FnMut(PfnRange) -> Run) -> bool {
    let mut rest = Some(range);
    let mut expected: Option<Option<Mfn>> = None;
    while let Some(range) = rest {
        let run = source(range.pages());
        let segment = Segment::new(range, run);
        let (mfn, next) = (run.entry.mfn(), range.skip(segment.length));
        if expected.is_some_and(|expected| mfn.is_none() || mfn != expected) {
            return true;
        }
        let nr_pages = (segment.offset + segment.length).div_ceil(PAGE_BYTES);
        if mfn.is_none() && nr_pages > 1 {
            return true;
        }
        expected = Some(mfn.and_then(|mfn| mfn.checked_add(nr_pages)));
        rest = next;
    }
    false
}

/// Returns whether the bytes of a range begin at an address that suits their number, in pages and
/// rounded up to a power of two, and in the machine, where `entry` is at the first page, at one that
/// doesn't: `range_requires_alignment()`.
pub fn requires_alignment(range: ByteRange, entry: Entry) -> bool {
    // OVERFLOW: There are not more pages than PFNs, of which the number is a power of two.
    let nr_pages = range.length.div_ceil(PAGE_BYTES).next_power_of_two();
    let is_aligned = range.offset == 0 && range.pages.start().get() % nr_pages == 0;
    // Without a frame it's that of Xen's invalid entry, which has all bits set.
    let number = entry.mfn().map_or(u64::MAX, Mfn::get);
    is_aligned && number % nr_pages != 0
}

/// Cuts a range into segments.
#[derive(Clone, Copy, Debug)]
struct Cutter {
    /// What hasn't been looked at.
    rest: Option<ByteRange>,
    /// What has been, and isn't cut yet.
    pending: Option<Segment>,
    /// A segment ended where it did as the next one doesn't go on with it.
    has_break: bool,
}

impl Cutter {
    fn new(range: Option<ByteRange>) -> Self {
        Self {
            rest: range,
            pending: None,
            has_break: false,
        }
    }

    fn step(
        &mut self,
        source: &mut impl FnMut(PfnRange) -> Run,
        limits: &Limits,
    ) -> Option<Segment> {
        if let Some(pending) = self.pending {
            let room = pending.room(limits);
            // If there's just enough room, what follows tells whether it's a break.
            if room < pending.length || self.rest.is_none() {
                let (segment, rest) = pending.split(room);
                self.pending = rest;
                return Some(segment);
            }
        }
        let rest = self.rest?;
        let piece = Segment::new(rest, source(rest.pages()));
        self.rest = rest.skip(piece.length);
        let Some(pending) = self.pending else {
            self.pending = Some(piece);
            return None;
        };
        match pending.join(piece) {
            Some(joined) => {
                self.pending = Some(joined);
                None
            }
            None => {
                self.has_break = true;
                self.pending.replace(piece)
            }
        }
    }

    fn is_done(&self) -> bool {
        self.rest.is_none() && self.pending.is_none()
    }
}

/// Looks whether a range is in more segments than a device takes, and a copy would be in fewer.
#[derive(Clone, Copy, Debug)]
struct Survey {
    cutter: Cutter,
    nr_segments: u64,
}

impl Survey {
    /// Looks at the next piece. Returns the answer when there is one.
    fn step(&mut self, source: &mut impl FnMut(PfnRange) -> Run, limits: &Limits) -> Option<bool> {
        let has_many = self.nr_segments > limits.max_segments;
        // Only breaks are of interest then.
        let cuts = if has_many { &Limits::NONE } else { limits };
        if self.cutter.step(source, cuts).is_some() {
            // OVERFLOW: There are not more segments than bytes.
            self.nr_segments += 1;
        }
        let has_many = self.nr_segments > limits.max_segments;
        match (has_many && self.cutter.has_break, self.cutter.is_done()) {
            (true, _) => Some(true),
            (false, true) => Some(false),
            (false, false) => None,
        }
    }
}

/// A segment of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Planned {
    /// The segment.
    pub segment: Segment,
    /// What is to be known of it.
    pub flags: u32,
}

/// The segments that a range of bytes is for a device, in order, without gaps, and as few as there
/// can be.
///
/// All but those of nothing are as the device takes them, or must bounce. A copy would cure that,
/// except for [`flags::IDENTITY`], where it isn't the processor's to copy.
pub struct Plan<F> {
    source: F,
    limits: Limits,
    survey: Option<Survey>,
    straddles: bool,
    cutter: Cutter,
}

impl<F: FnMut(PfnRange) -> Run> Plan<F> {
    /// Returns the plan for `range`, from the segment on that begins `position` bytes behind its
    /// beginning.
    pub fn new(range: ByteRange, position: u64, limits: Limits, source: F) -> Self {
        let survey = Survey {
            cutter: Cutter::new(Some(range)),
            nr_segments: 0,
        };
        Self {
            source,
            limits,
            survey: (limits.max_segments != u64::MAX).then_some(survey),
            straddles: false,
            cutter: Cutter::new(range.skip(position)),
        }
    }

    /// Looks at the next piece. Returns a segment when one has come to its end.
    ///
    /// There is nothing more when [`is_done()`](Self::is_done). The source is called once at most.
    pub fn step(&mut self) -> Option<Planned> {
        if let Some(survey) = &mut self.survey {
            if let Some(straddles) = survey.step(&mut self.source, &self.limits) {
                self.straddles = straddles;
                self.survey = None;
            }
            return None;
        }
        let segment = self.cutter.step(&mut self.source, &self.limits)?;
        let mut flags = segment.flags(&self.limits);
        if self.straddles && flags & flags::UNBACKED == 0 {
            flags |= flags::STRADDLE;
        }
        Some(Planned { segment, flags })
    }

    /// Returns whether there is nothing more.
    pub fn is_done(&self) -> bool {
        self.cutter.is_done()
    }
}

impl<F: FnMut(PfnRange) -> Run> Iterator for Plan<F> {
    type Item = Planned;

    fn next(&mut self) -> Option<Planned> {
        while !self.is_done() {
            if let Some(planned) = self.step() {
                return Some(planned);
            }
        }
        None
    }
}
