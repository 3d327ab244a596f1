// SPDX-License-Identifier: GPL-2.0

//! Machine frames: those that are ours, and those that are free when the kernel panics.

use core::ptr::NonNull;

use kernel::{
    bindings,
    prelude::*, //
};

use crate::{
    ffi,
    pure::frame::{
        Mfn,
        PAGE_SHIFT,
        PAGE_SIZE, //
    }, //
};

/// Failure is an answer like any other, and nobody is to be killed for it.
const GFP: bindings::gfp_t = bindings::GFP_KERNEL
    | 1 << bindings::___GFP_ZERO_BIT
    | 1 << bindings::___GFP_NOWARN_BIT
    | 1 << bindings::___GFP_RETRY_MAYFAIL_BIT;

/// For blocks: take what is there, since a smaller block does as well.
const GFP_BLOCK: bindings::gfp_t = GFP
    & !(1 << bindings::___GFP_DIRECT_RECLAIM_BIT)
    & !(1 << bindings::___GFP_KSWAPD_RECLAIM_BIT)
    & !(1 << bindings::___GFP_RETRY_MAYFAIL_BIT);

fn frame_of(page: *mut bindings::page) -> Option<Mfn> {
    if page.is_null() {
        return None;
    }
    // SAFETY: `page` is a valid page.
    Mfn::new(unsafe { ffi::p2m_crash_page_to_mfn(page) })
}

/// Takes `nr` zeroed frames, in as large blocks as there are, so that few pageblocks have one of
/// ours, and gives each to `each`, whose they are from then on.
///
/// After an error some were given.
pub(crate) fn take(mut nr: u64, mut each: impl FnMut(Mfn)) -> Result {
    let mut order = bindings::MAX_PAGE_ORDER;
    while nr > 0 {
        // OVERFLOW: A small number, as it's at most `MAX_PAGE_ORDER`.
        while order > 0 && 1 << order > nr {
            order -= 1;
        }
        let gfp = if order > 0 { GFP_BLOCK } else { GFP };
        // SAFETY: It has no requirements in a context that may sleep.
        let page = unsafe { bindings::alloc_pages(gfp, order) };
        let Some(first) = frame_of(page) else {
            if order == 0 {
                return Err(ENOMEM);
            }
            order -= 1;
            continue;
        };
        if order > 0 {
            // SAFETY: `page` is a block of that order, isn't compound and is only ours.
            unsafe { bindings::split_page(page, order) };
        }
        for mfn in (0..1 << order).filter_map(|offset| first.checked_add(offset)) {
            each(mfn);
        }
        // OVERFLOW: The block isn't larger than `nr`.
        nr -= 1 << order;
    }
    Ok(())
}

/// Memory below 4 GiB, in pieces of the machine's that are as large as can be had.
///
/// # Invariants
///
/// Each element is the first frame of a block of that order that is ours. They are ordered by frame.
pub(crate) struct LowMemory {
    blocks: KVec<(u64, u32)>,
}

impl LowMemory {
    /// The order of the smallest pieces, which bounce buffers fit into: 1 MiB.
    const MIN_ORDER: u32 = 8;

    /// Takes `nr_pages` zeroed pages, a multiple of the smallest piece.
    pub(crate) fn take(nr_pages: u64) -> Result<Self> {
        const GFP_LOW: bindings::gfp_t = GFP | 1 << bindings::___GFP_DMA32_BIT;

        let mut low = Self {
            blocks: KVec::new(),
        };
        let mut nr_left = nr_pages;
        let mut order = bindings::MAX_PAGE_ORDER;
        while nr_left > 0 {
            // OVERFLOW: A small number, as it's at most `MAX_PAGE_ORDER`.
            while order > Self::MIN_ORDER && 1 << order > nr_left {
                order -= 1;
            }
            low.blocks.reserve(1, GFP_KERNEL)?;
            // SAFETY: It has no requirements in a context that may sleep.
            let page = unsafe { bindings::alloc_pages(GFP_LOW, order) };
            match frame_of(page) {
                Some(mfn) => {
                    let place = low.blocks.partition_point(|&(other, _)| other < mfn.get());
                    // INVARIANT: It's ours now, and in its place. There is room for it.
                    low.blocks.push((mfn.get(), order), GFP_KERNEL)?;
                    if let Some(moved) = low.blocks.get_mut(place..) {
                        moved.rotate_right(1);
                    }
                    nr_left = nr_left.saturating_sub(1 << order);
                }
                None if order > Self::MIN_ORDER => order -= 1,
                None => return Err(ENOMEM),
            }
        }
        Ok(low)
    }

    /// Returns the number of pages.
    pub(crate) fn nr_pages(&self) -> u64 {
        self.blocks.iter().map(|&(_, order)| 1u64 << order).sum()
    }

    /// Returns its ranges of frames, in ascending order: from the first frame to before the last.
    pub(crate) fn ranges(&self) -> Result<KVec<(u64, u64)>> {
        let mut ranges: KVec<(u64, u64)> = KVec::new();
        for &(first, order) in &self.blocks {
            // OVERFLOW: Both are below 4 GiB.
            let end = first + (1 << order);
            match ranges.last_mut() {
                Some(last) if last.1 == first => last.1 = end,
                _ => ranges.push((first, end), GFP_KERNEL)?,
            }
        }
        Ok(ranges)
    }
}

impl Drop for LowMemory {
    fn drop(&mut self) {
        for &(mfn, order) in &self.blocks {
            // SAFETY: By the type invariants, it's a block of that order that is ours.
            unsafe { bindings::__free_pages(ffi::p2m_crash_mfn_to_page(mfn), order) };
        }
    }
}

/// Gives a frame back.
///
/// # Safety
///
/// It came from [`take()`], and nobody uses it any more.
pub(crate) unsafe fn give_back(mfn: Mfn) {
    // SAFETY: By the safety requirements of this function, it's a page of order 0 that is ours.
    unsafe { bindings::__free_pages(ffi::p2m_crash_mfn_to_page(mfn.get()), 0) };
}

/// Returns the content of a frame.
pub(crate) fn content(mfn: Mfn) -> *mut [u8; PAGE_SIZE] {
    // SAFETY: It only computes an address.
    unsafe { ffi::p2m_crash_frame(mfn.get()).cast() }
}

/// Adds bytes to a checksum.
pub(crate) fn checksum(crc: u32, bytes: &[u8]) -> u32 {
    // SAFETY: The bytes are valid.
    unsafe { ffi::p2m_crash_checksum(crc, bytes.as_ptr().cast(), bytes.len()) }
}

/// Pages that follow each other in the machine, zeroed at first: what a processor is told the
/// address of.
///
/// # Invariants
///
/// `start` is the address of `1 << order` pages that are ours.
pub(crate) struct Pages {
    start: NonNull<u8>,
    order: u32,
}

// SAFETY: They are memory like any other.
unsafe impl Send for Pages {}
// SAFETY: As above; to change it, they have to be borrowed mutably.
unsafe impl Sync for Pages {}

impl Pages {
    /// Allocates `1 << order` pages.
    pub(crate) fn new(order: u32) -> Result<Self> {
        // SAFETY: It has no requirements in a context that may sleep.
        let address = unsafe { bindings::get_free_pages_noprof(GFP, order) };
        // INVARIANT: They have just been allocated.
        Ok(Self {
            start: NonNull::new(address as *mut u8).ok_or(ENOMEM)?,
            order,
        })
    }

    /// Returns the number of bytes.
    pub(crate) fn len(&self) -> usize {
        PAGE_SIZE << self.order
    }

    /// Returns the physical address.
    pub(crate) fn address(&self) -> u64 {
        // SAFETY: By the type invariants, it's an address of the linear map.
        let mfn = unsafe { ffi::p2m_crash_address_to_mfn(self.start.as_ptr().cast()) };
        mfn << PAGE_SHIFT
    }

    /// Returns the bytes.
    pub(crate) fn bytes(&self) -> &[u8] {
        // SAFETY: By the type invariants, they are ours, and a processor changes them only when it
        // runs with them, for which they are borrowed mutably.
        unsafe { core::slice::from_raw_parts(self.start.as_ptr(), self.len()) }
    }

    /// Returns the bytes, to change them.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: As above.
        unsafe { core::slice::from_raw_parts_mut(self.start.as_ptr(), self.len()) }
    }

    /// Reads `N` bytes at an offset. What isn't there reads as zeroes.
    pub(crate) fn read<const N: usize>(&self, offset: usize) -> [u8; N] {
        let bytes = self.bytes().get(offset..);
        bytes
            .and_then(|bytes| bytes.first_chunk())
            .copied()
            .unwrap_or([0; N])
    }

    /// Writes bytes at an offset, if there are as many.
    pub(crate) fn write<const N: usize>(&mut self, offset: usize, value: [u8; N]) {
        let bytes = self.bytes_mut().get_mut(offset..);
        if let Some(chunk) = bytes.and_then(|bytes| bytes.first_chunk_mut()) {
            *chunk = value;
        }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, they are ours, and no processor knows them.
        unsafe { bindings::free_pages(self.start.as_ptr() as c_ulong, self.order) };
    }
}

/// The memory of the machine, as ranges of frames in ascending order: from the first frame to before
/// the last.
pub(crate) struct Ram {
    ranges: KVec<(u64, u64)>,
}

impl Ram {
    /// Returns the memory that the kernel has now.
    pub(crate) fn now() -> Result<Self> {
        let mut ranges = KVec::new();
        // SAFETY: `add` takes such a pointer, and is called only meanwhile.
        let ret = unsafe { ffi::p2m_crash_walk_ram((&raw mut ranges).cast(), Self::add) };
        kernel::error::to_result(ret)?;
        Ok(Self { ranges })
    }

    /// Adds a range of bytes.
    ///
    /// # Safety
    ///
    /// `arg` is a `KVec<(u64, u64)>` that nobody else uses.
    unsafe extern "C" fn add(arg: *mut c_void, start: u64, end: u64) -> c_int {
        // SAFETY: By the safety requirements of this function.
        let ranges = unsafe { &mut *arg.cast::<KVec<(u64, u64)>>() };
        let range = (start >> PAGE_SHIFT, end.div_ceil(PAGE_SIZE as u64));
        match ranges.push(range, GFP_ATOMIC) {
            Ok(()) => 0,
            Err(_) => ENOMEM.to_errno(),
        }
    }

    /// Returns the ranges.
    pub(crate) fn ranges(&self) -> &[(u64, u64)] {
        &self.ranges
    }

    /// Returns the frames that are free, when nobody allocates or frees any more.
    ///
    /// The first MiB isn't among them, as it's where the crash kernel has what it finds there.
    pub(crate) fn free_frames(&self) -> Blocks<'_> {
        self.blocks(ffi::p2m_crash_free_order)
    }

    /// Returns the frames of clean page cache that nobody else has to do with, when nobody changes that
    /// any more.
    pub(crate) fn cache_frames(&self) -> Blocks<'_> {
        self.blocks(ffi::p2m_crash_cache_order)
    }

    fn blocks(&self, order: unsafe extern "C" fn(u64) -> c_int) -> Blocks<'_> {
        Blocks {
            ranges: &self.ranges,
            order,
            next: 0,
            nr_left: 0,
        }
    }
}

/// The first frame above the first MiB.
pub(crate) const LOW_END: u64 = (1 << 20) >> PAGE_SHIFT;

/// Frames of blocks of a kind, of a kernel that has stopped.
pub(crate) struct Blocks<'a> {
    ranges: &'a [(u64, u64)],
    /// Returns the order of the block that begins at a frame, or -1 if none does. It has no
    /// requirements.
    order: unsafe extern "C" fn(u64) -> c_int,
    /// The frame that is next, or the one to look at.
    next: u64,
    /// How many frames of the same block are left, from `next` on.
    nr_left: u64,
}

impl Iterator for Blocks<'_> {
    type Item = Mfn;

    fn next(&mut self) -> Option<Mfn> {
        loop {
            let (&(start, end), rest) = self.ranges.split_first()?;
            self.next = self.next.max(start).max(LOW_END);
            if self.next >= end {
                self.ranges = rest;
                self.nr_left = 0;
                continue;
            }
            if self.nr_left == 0 {
                // SAFETY: It has no requirements.
                let order = unsafe { (self.order)(self.next) };
                self.nr_left = u32::try_from(order).map_or(0, |order| 1 << order);
            }
            let found = self.nr_left > 0;
            let mfn = self.next;
            // OVERFLOW: It's below the end of a range.
            self.next += 1;
            self.nr_left = self.nr_left.saturating_sub(1);
            if found {
                return Mfn::new(mfn);
            }
        }
    }
}
