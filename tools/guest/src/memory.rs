// SPDX-License-Identifier: GPL-2.0

//! Memory as a guest has it.

use std::io;
use std::ops::Range;
use std::os::raw::c_void;

use rustix::mm::{self, MapFlags, ProtFlags};
use vm_memory::{
    GuestAddress, GuestMemory, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};

use crate::balloon::Pages;
use crate::error::Error;
use crate::place;

const PAGE_BYTES: u64 = 4096;

/// Returns where a guest has so many bytes of memory: from 0 to 3 GiB, and from 4 GiB on.
pub fn layout(bytes: u64) -> Result<Vec<Range<u64>>, Error> {
    const FOUR_GIB: u64 = 4 << 30;
    if bytes % PAGE_BYTES != 0 || bytes < 1 << 20 {
        return Err(Error::MemorySize);
    }
    let low = bytes.min(place::HOLE);
    let high = FOUR_GIB..FOUR_GIB.checked_add(bytes - low).ok_or(Error::MemorySize)?;
    let ranges = [0..low, high];
    Ok(ranges
        .into_iter()
        .filter(|range| !range.is_empty())
        .collect())
}

/// The memory of a guest: pieces that are mapped somewhere, and stay so while this lives.
#[derive(Debug)]
pub struct Memory<K> {
    memory: GuestMemoryMmap,
    /// What keeps it mapped.
    keep: K,
}

impl<K> Memory<K> {
    /// Makes the memory of a guest of pieces: the address in the guest, where it's mapped, and its
    /// size in bytes. `keep` is kept as long as the memory is.
    ///
    /// # Safety
    ///
    /// The pieces are mapped for loads and stores as long as `keep` lives, and nobody has
    /// references to what is in them.
    pub unsafe fn new(pieces: &[(u64, *mut u8, usize)], keep: K) -> Result<Self, Error> {
        let invalid = || Error::Map(io::Error::from(io::ErrorKind::InvalidInput));
        let mut regions = Vec::new();
        for &(address, start, bytes) in pieces {
            let prot = (ProtFlags::READ | ProtFlags::WRITE).bits() as i32;
            let flags = MapFlags::SHARED.bits() as i32;
            // SAFETY: By the safety requirements of this function.
            let region = unsafe { MmapRegion::build_raw(start, bytes, prot, flags) };
            let region = region.map_err(|error| Error::Map(io::Error::other(error)))?;
            let region = GuestRegionMmap::new(region, GuestAddress(address));
            regions.push(region.ok_or_else(invalid)?);
        }
        let memory = GuestMemoryMmap::from_regions(regions)
            .map_err(|error| Error::Map(io::Error::other(error)))?;
        Ok(Self { memory, keep })
    }

    /// Returns it as others take it.
    pub fn guest(&self) -> &GuestMemoryMmap {
        &self.memory
    }

    /// Returns where its pieces are mapped: the address, and the size in bytes.
    pub fn mapped(&self) -> Vec<(usize, usize)> {
        self.memory
            .iter()
            .map(|region| (region.as_ptr() as usize, region.len() as usize))
            .collect()
    }
}

/// Anonymous memory, as of any other monitor.
#[derive(Debug)]
pub struct Anonymous {
    /// Address in the guest, and where it is.
    pieces: Vec<(Range<u64>, *mut c_void)>,
}

impl Memory<Anonymous> {
    /// Maps anonymous memory.
    pub fn anonymous(bytes: u64) -> Result<Self, Error> {
        let mut keep = Anonymous { pieces: Vec::new() };
        let mut pieces = Vec::new();
        for range in layout(bytes)? {
            let len = (range.end - range.start) as usize;
            let prot = ProtFlags::READ | ProtFlags::WRITE;
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
            // SAFETY: The kernel chooses a free address, so nothing that is there goes away.
            let start = unsafe { mm::mmap_anonymous(core::ptr::null_mut(), len, prot, flags) };
            let start = start.map_err(|error| Error::Map(error.into()))?;
            pieces.push((range.start, start.cast(), len));
            keep.pieces.push((range, start));
        }
        // SAFETY: `keep` unmaps them only when it's dropped, and nothing else has been done with
        // them.
        unsafe { Self::new(&pieces, keep) }
    }
}

impl Drop for Anonymous {
    fn drop(&mut self) {
        for (range, start) in &self.pieces {
            let len = (range.end - range.start) as usize;
            // SAFETY: It was mapped by us, and who has used it is gone.
            //
            // It fails for want of memory for a split only, and there is none to split.
            let _ = unsafe { mm::munmap(*start, len) };
        }
    }
}

impl Pages for &Memory<Anonymous> {
    fn release(&mut self, pfns: Range<u64>) -> io::Result<()> {
        let asked = pfns.start.saturating_mul(PAGE_BYTES)..pfns.end.saturating_mul(PAGE_BYTES);
        for (range, start) in &self.keep.pieces {
            let part = asked.start.max(range.start)..asked.end.min(range.end);
            if part.is_empty() {
                continue;
            }
            let start = start.wrapping_byte_add((part.start - range.start) as usize);
            let len = (part.end - part.start) as usize;
            // SAFETY: It's a part of a mapping of ours. Nobody has a reference to what is in it, and
            // its contents are the guest's affair, that doesn't want them any more.
            unsafe { mm::madvise(start, len, mm::Advice::LinuxDontNeed) }?;
        }
        Ok(())
    }

    fn populate(&mut self, _: Range<u64>) -> io::Result<()> {
        // It comes when it's touched.
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)] // Ranges of addresses are meant as such.
mod tests {
    use super::*;
    use vm_memory::Bytes;

    #[test]
    fn memory_leaves_room_for_devices() {
        let layout = |bytes| layout(bytes).expect("a good size");
        assert_eq!(layout(1 << 20), [0..1 << 20]);
        assert_eq!(layout(3 << 30), [0..3 << 30]);
        assert_eq!(
            layout((3 << 30) + 4096),
            [0..3 << 30, 4 << 30..(4 << 30) + 4096]
        );
        assert_eq!(layout(8 << 30), [0..3 << 30, 4 << 30..9 << 30]);
    }

    #[test]
    fn sizes_that_no_guest_can_have_are_refused() {
        for bytes in [
            0,
            4096,
            (1 << 20) - 4096,
            (1 << 20) + 1,
            u64::MAX,
            u64::MAX - 4095,
        ] {
            assert!(matches!(layout(bytes), Err(Error::MemorySize)), "{bytes}");
        }
    }

    #[test]
    fn anonymous_memory_that_was_released_is_zero() {
        let memory = Memory::anonymous(1 << 20).expect("memory");
        let [a, b, c] = [0x5ff8, 0x6000, 0x8000].map(GuestAddress);
        for address in [a, b, c] {
            memory.guest().write_obj(7u64, address).expect("there");
        }
        (&memory).release(6..8).expect("released");
        let read = |address| memory.guest().read_obj::<u64>(address).expect("there");
        assert_eq!([read(a), read(b), read(c)], [7, 0, 7]);
    }
}
