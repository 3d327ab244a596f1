// SPDX-License-Identifier: GPL-2.0

//! Memory that a device is to access, mapped for it: dma-bufs, and pages of the caller.
//!
//! C header: [`edu/import.h`](import.h)

use core::ptr;

use kernel::{
    bindings,
    device::{
        self,
        Bound, //
    },
    dma::DataDirection,
    error::to_result,
    prelude::*,
    scatterlist::SGTable,
    uaccess::UserPtr, //
};

use crate::{
    abi,
    pure::frame::{
        PAGE_SHIFT,
        PAGE_SIZE, //
    }, //
};

/// The most bytes that the device moves at once.
pub(crate) const PIECE: u64 = abi::P2M_EDU_PIECE as u64;

#[allow(non_camel_case_types)]
#[repr(C)]
struct p2m_edu_import {
    dmabuf: *mut c_void,
    attachment: *mut c_void,
    sgt: *mut bindings::sg_table,
    size: usize,
    direction: c_int,
}

// A lock class key is empty without lockdep, and C structures with locks contain one.
#[allow(improper_ctypes)]
extern "C" {
    fn p2m_edu_import(
        import: *mut p2m_edu_import,
        dev: *mut bindings::device,
        fd: c_int,
        direction: c_int,
    ) -> c_int;
    fn p2m_edu_unimport(import: *mut p2m_edu_import);
    fn p2m_edu_cpu_copy(
        import: *mut p2m_edu_import,
        offset: usize,
        data: *mut c_void,
        length: usize,
        is_read: bool,
    ) -> c_int;
    fn p2m_edu_map_page(
        dev: *mut bindings::device,
        page: *mut bindings::page,
        offset: usize,
        size: usize,
        direction: c_int,
        address: *mut u64,
    ) -> c_int;
}

fn raw(dev: &device::Device<Bound>) -> *mut bindings::device {
    // A device is a transparent wrapper of the C one.
    ptr::from_ref(dev).cast_mut().cast()
}

fn raw_direction(direction: DataDirection) -> c_int {
    // CAST: It's one of four values.
    bindings::dma_data_direction::from(direction).0 as c_int
}

/// A transfer that the device can make.
#[derive(Clone, Copy)]
pub(crate) struct Piece {
    /// Bus address of its first byte.
    pub(crate) address: u64,
    /// Number of bytes, at most [`PIECE`].
    pub(crate) length: u64,
}

/// What is asked of memory.
#[derive(Clone, Copy)]
pub(crate) struct Request {
    /// Where it begins.
    pub(crate) offset: u64,
    /// Number of bytes, not 0.
    pub(crate) length: u64,
    /// Of the transfers.
    pub(crate) direction: DataDirection,
    /// Frames are taken to follow each other.
    pub(crate) is_naive: bool,
}

/// Calls `each` with the pieces of a table of segments, and returns how many segments there are.
fn for_pieces(
    table: &SGTable,
    request: Request,
    mut each: impl FnMut(Piece) -> Result,
) -> Result<u32> {
    let mut nr_segments = 0;
    let mut start = 0;
    let mut position = request.offset;
    // OVERFLOW: Both were checked to be in the memory.
    let end = request.offset + request.length;
    for segment in table.iter() {
        let length = segment.dma_len();
        // The rest of a table has no bus addresses, where segments were merged.
        if length == 0 {
            break;
        }
        nr_segments += 1;
        // OVERFLOW: Segments are in the memory, which has far fewer bytes than 2^64.
        let segment_end = start + length;
        while position < segment_end && position < end {
            let rest = match request.is_naive {
                true => end - position,
                false => end.min(segment_end) - position,
            };
            let piece = Piece {
                address: segment.dma_address() + (position - start),
                length: rest.min(PIECE),
            };
            each(piece)?;
            position += piece.length;
        }
        start = segment_end;
    }
    if position != end {
        return Err(EFAULT);
    }
    Ok(nr_segments)
}

/// A dma-buf that is mapped for a device.
///
/// # Invariants
///
/// `import` was filled in by `p2m_edu_import()`, and the device is bound as long as it lives.
pub(crate) struct Imported {
    import: p2m_edu_import,
}

impl Imported {
    /// Attaches the device to a dma-buf, and maps it.
    ///
    /// # Safety
    ///
    /// It is dropped while the device is bound.
    pub(crate) unsafe fn new(
        dev: &device::Device<Bound>,
        fd: i32,
        request: Request,
    ) -> Result<Self> {
        let direction = raw_direction(request.direction);
        let mut import = p2m_edu_import {
            dmabuf: ptr::null_mut(),
            attachment: ptr::null_mut(),
            sgt: ptr::null_mut(),
            size: 0,
            direction,
        };
        // SAFETY: The device is bound, and there is room for what is told.
        to_result(unsafe { p2m_edu_import(&mut import, raw(dev), fd, direction) })?;
        // INVARIANT: It has just been filled in. The rest is by the safety requirements.
        let this = Self { import };
        let end = request.offset.checked_add(request.length);
        match end.filter(|&end| end <= this.import.size as u64) {
            Some(_) => Ok(this),
            None => Err(EOVERFLOW),
        }
    }

    /// Calls `each` with the pieces of the request.
    pub(crate) fn for_pieces(
        &self,
        request: Request,
        each: impl FnMut(Piece) -> Result,
    ) -> Result<u32> {
        // SAFETY: By the type invariants, it's a table which is mapped, and nobody changes it.
        for_pieces(unsafe { SGTable::from_raw(self.import.sgt) }, request, each)
    }

    /// Has the processor do with the request what the device does.
    pub(crate) fn access(&mut self, request: Request, data: UserPtr, is_read: bool) -> Result {
        let offset = usize::try_from(request.offset)?;
        let length = usize::try_from(request.length)?;
        let data = data.as_mut_ptr();
        // SAFETY: By the type invariants. The range was checked when it was made, and any user
        // address will do.
        to_result(unsafe { p2m_edu_cpu_copy(&mut self.import, offset, data, length, is_read) })
    }
}

impl Drop for Imported {
    fn drop(&mut self) {
        // SAFETY: By the type invariants.
        unsafe { p2m_edu_unimport(&mut self.import) };
    }
}

/// Pages of the caller, which stay as they are.
///
/// # Invariants
///
/// All of them are pinned by us.
pub(crate) struct Pinned {
    pages: KVVec<*mut bindings::page>,
    /// Where in the first one the memory begins.
    offset: usize,
    /// The device writes to them.
    is_written: bool,
}

impl Pinned {
    /// Pins what is at `request.offset`.
    pub(crate) fn new(request: Request) -> Result<Self> {
        let address = usize::try_from(request.offset)?;
        let end = usize::try_from(request.length)?
            .checked_add(address)
            .and_then(|end| end.checked_next_multiple_of(PAGE_SIZE))
            .ok_or(EFAULT)?;
        let offset = address % PAGE_SIZE;
        // OVERFLOW: The end isn't before the address.
        let nr_pages = (end - (address - offset)) >> PAGE_SHIFT;
        let mut pages = KVVec::from_elem(ptr::null_mut(), nr_pages, GFP_KERNEL)?;
        let is_written = matches!(request.direction, DataDirection::FromDevice);
        let flags = match is_written {
            true => bindings::FOLL_LONGTERM | bindings::FOLL_WRITE,
            false => bindings::FOLL_LONGTERM,
        };
        // SAFETY: There is room for that many pages. Any address will do.
        let nr_pinned = unsafe {
            bindings::pin_user_pages_fast(
                address as c_ulong,
                c_int::try_from(nr_pages)?,
                flags as c_uint,
                pages.as_mut_ptr(),
            )
        };
        to_result(nr_pinned.min(0))?;
        // CAST: It isn't negative.
        pages.truncate(nr_pinned as usize);
        // INVARIANT: Those that are left are pinned.
        let this = Self {
            pages,
            offset,
            is_written,
        };
        match this.pages.len() == nr_pages {
            true => Ok(this),
            false => Err(EFAULT),
        }
    }

    /// Calls `each` with the pieces of the request: of the segments that the pages are for the device.
    pub(crate) fn for_pieces(
        &mut self,
        dev: &device::Device<Bound>,
        request: Request,
        each: impl FnMut(Piece) -> Result,
    ) -> Result<u32> {
        if request.is_naive {
            return self.for_naive_pieces(dev, request, each);
        }
        let mapped = Mapped::new(dev, self, request)?;
        // SAFETY: The table is mapped, and nobody changes it.
        let table = unsafe { SGTable::from_raw(ptr::from_ref(&*mapped.sgt).cast_mut()) };
        let request = Request {
            offset: 0,
            ..request
        };
        let result = for_pieces(table, request, each);
        if result == Err(EIO) {
            // What the device may still write to stays mapped.
            core::mem::forget(mapped);
        }
        result
    }

    /// Calls `each` with pieces of which only the first page is looked at: what is behind it in the
    /// buffer is taken to be behind it in the machine. Such a mapping is one that the DMA API, and
    /// its debugging, have nothing to say against.
    fn for_naive_pieces(
        &self,
        dev: &device::Device<Bound>,
        request: Request,
        mut each: impl FnMut(Piece) -> Result,
    ) -> Result<u32> {
        let direction = raw_direction(request.direction);
        let mut nr_segments = 0;
        let mut done = 0;
        while done < request.length {
            let length = (request.length - done).min(PIECE);
            // OVERFLOW: It's in the pages.
            let start = self.offset + usize::try_from(done)?;
            let page = *self.pages.get(start >> PAGE_SHIFT).ok_or(EFAULT)?;
            let size = usize::try_from(length)?;
            let mut address = 0;
            // SAFETY: The device is bound, and the page is valid.
            to_result(unsafe {
                p2m_edu_map_page(
                    raw(dev),
                    page,
                    start % PAGE_SIZE,
                    size,
                    direction,
                    &mut address,
                )
            })?;
            let result = each(Piece { address, length });
            // What the device may still write to stays mapped.
            if result != Err(EIO) {
                // SAFETY: It was mapped like that.
                unsafe {
                    bindings::dma_unmap_page_attrs(
                        raw(dev),
                        address,
                        size,
                        request.direction.into(),
                        0,
                    )
                };
            }
            result?;
            nr_segments += 1;
            done += length;
        }
        Ok(nr_segments)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: By the type invariants.
        unsafe {
            bindings::unpin_user_pages_dirty_lock(
                self.pages.as_mut_ptr(),
                self.pages.len() as c_ulong,
                self.is_written,
            )
        };
    }
}

/// A table of segments of pages, mapped for a device.
///
/// # Invariants
///
/// `sgt` is mapped for `dev`, in `direction`, and the device is bound.
struct Mapped<'a> {
    dev: &'a device::Device<Bound>,
    sgt: KBox<bindings::sg_table>,
    direction: DataDirection,
}

impl<'a> Mapped<'a> {
    fn new(dev: &'a device::Device<Bound>, pinned: &mut Pinned, request: Request) -> Result<Self> {
        let mut sgt = KBox::new(bindings::sg_table::default(), GFP_KERNEL)?;
        // SAFETY: The pages are valid, there is at least one, and they have so many bytes.
        to_result(unsafe {
            bindings::sg_alloc_table_from_pages_segment(
                &mut *sgt,
                pinned.pages.as_mut_ptr(),
                c_uint::try_from(pinned.pages.len())?,
                c_uint::try_from(pinned.offset)?,
                c_ulong::try_from(request.length)?,
                PIECE as c_uint,
                bindings::GFP_KERNEL,
            )
        })?;
        // SAFETY: The device is bound, and the table valid.
        let result = to_result(unsafe {
            bindings::dma_map_sgtable(raw(dev), &mut *sgt, request.direction.into(), 0)
        });
        if let Err(error) = result {
            // SAFETY: The table is valid, and nobody uses it.
            unsafe { bindings::sg_free_table(&mut *sgt) };
            return Err(error);
        }
        // INVARIANT: It has just been mapped. A bound device is bound as long as the reference to it.
        Ok(Self {
            dev,
            sgt,
            direction: request.direction,
        })
    }
}

impl Drop for Mapped<'_> {
    fn drop(&mut self) {
        // SAFETY: By the type invariants.
        unsafe {
            bindings::dma_unmap_sgtable(raw(self.dev), &mut *self.sgt, self.direction.into(), 0);
            bindings::sg_free_table(&mut *self.sgt);
        }
    }
}
