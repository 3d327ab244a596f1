// SPDX-License-Identifier: GPL-2.0

//! Memory mapped from the device.

use core::ptr::NonNull;
use core::sync::atomic::{AtomicU64, Ordering};
use std::os::fd::AsFd;

use rustix::io::{self, Errno};
use rustix::mm::{self, Advice, MapFlags, ProtFlags};

use crate::error::{Attempt, Operation, Result};

/// What may be done with mapped memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Load only.
    Read,
    /// Load and store.
    ReadWrite,
}

/// When the pages of a mapping get into the page tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Populate {
    /// At the first touch.
    Lazily,
    /// At once, as far as possible (`MAP_POPULATE`).
    AtOnce,
}

/// Memory mapped from the device, unmapped on drop.
///
/// Other processes may have the same pages mapped and change them at any time. So there is never a
/// plain reference to the memory: it's a slice of atomic words, or a raw pointer.
///
/// A page with nothing behind it, because its region was destroyed or never was, raises `SIGBUS`
/// when it's touched. That ends the process, but is not undefined behaviour.
///
/// # Invariants
///
/// `start` is page aligned, and begins `nr_words` words that are mapped as long as this lives, for
/// stores too if `access` says so.
#[derive(Debug)]
pub struct Mapping {
    start: NonNull<AtomicU64>,
    nr_words: usize,
    access: Access,
}

// SAFETY: A mapping belongs to the process, not to a thread.
unsafe impl Send for Mapping {}

// SAFETY: All that a shared reference gives access to is atomic.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len_bytes` of a file from `offset` on.
    pub(crate) fn new(
        fd: impl AsFd,
        offset: u64,
        len_bytes: u64,
        access: Access,
        populate: Populate,
    ) -> io::Result<Self> {
        let len_bytes = usize::try_from(len_bytes).map_err(|_| Errno::OVERFLOW)?;
        let prot = match access {
            Access::Read => ProtFlags::READ,
            Access::ReadWrite => ProtFlags::READ | ProtFlags::WRITE,
        };
        let flags = match populate {
            Populate::Lazily => MapFlags::SHARED,
            Populate::AtOnce => MapFlags::SHARED | MapFlags::POPULATE,
        };
        // SAFETY: The kernel chooses a free address, so nothing that is there goes away.
        let start = unsafe { mm::mmap(core::ptr::null_mut(), len_bytes, prot, flags, fd, offset) }?;
        // INVARIANT: Just mapped.
        Ok(Self {
            start: NonNull::new(start.cast()).ok_or(Errno::FAULT)?,
            nr_words: len_bytes / size_of::<u64>(),
            access,
        })
    }

    /// Returns the address of the first byte.
    ///
    /// The memory behind it is mapped for as long as the mapping lives, and is shared with others,
    /// as the description of the type says.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start.as_ptr().cast()
    }

    /// Returns the size in bytes.
    pub fn len_bytes(&self) -> usize {
        self.nr_words * size_of::<u64>()
    }

    /// Returns the memory as words, or [`None`] if it's mapped for loads only.
    pub fn words(&self) -> Option<&[AtomicU64]> {
        if self.access == Access::Read {
            return None;
        }
        // SAFETY: By the type invariants, the words are mapped as long as `self` lives. Atomics are
        // valid with any bits, and may change under a shared reference.
        Some(unsafe { core::slice::from_raw_parts(self.start.as_ptr(), self.nr_words) })
    }

    /// Loads the word at `index`, or returns [`None`] if it's out of bounds.
    #[inline]
    pub fn load(&self, index: u64) -> Option<u64> {
        let index = usize::try_from(index).ok().filter(|&i| i < self.nr_words)?;
        // SAFETY: Just checked.
        Some(unsafe { self.load_unchecked(index) })
    }

    /// Loads the word at `index`.
    ///
    /// # Safety
    ///
    /// The mapping has a word there.
    #[inline]
    pub(crate) unsafe fn load_unchecked(&self, index: usize) -> u64 {
        // SAFETY: By the type invariants, the word is mapped as long as `self` lives. A relaxed load
        // of a word is fine in read-only memory too.
        unsafe { self.start.add(index).as_ref() }.load(Ordering::Relaxed)
    }

    /// Puts all of it into the page tables of the process, without changing it.
    ///
    /// In contrast to a touch of every page, it's an error if one has nothing behind it, not a
    /// `SIGBUS`.
    pub fn populate(&self) -> Result<()> {
        // SAFETY: By the type invariants, the range is mapped. The advice changes no contents.
        unsafe {
            mm::madvise(
                self.as_ptr().cast(),
                self.len_bytes(),
                Advice::LinuxPopulateRead,
            )
        }
        .attempt(Operation::Populate)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, the range is a mapping of ours, and no reference into it
        // outlives `self`.
        //
        // It fails for want of memory for a split only, and there is none to split.
        let _ = unsafe { mm::munmap(self.as_ptr().cast(), self.len_bytes()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(nr_words: u64) -> std::fs::File {
        let file = tempfile::tempfile().expect("temporary file");
        file.set_len(nr_words * 8).expect("grow");
        file
    }

    #[test]
    fn a_store_is_seen_through_every_mapping() {
        let file = file(512);
        let [one, two] = [Access::ReadWrite, Access::Read]
            .map(|access| Mapping::new(&file, 0, 4096, access, Populate::Lazily).expect("map"));
        for (index, word) in one.words().expect("writable").iter().enumerate() {
            word.store(!(index as u64), Ordering::Relaxed);
        }
        for index in 0..512 {
            assert_eq!(two.load(index), Some(!index));
        }
        assert_eq!(two.load(512), None);
    }

    #[test]
    fn read_only_memory_gives_nothing_to_store_to() {
        let mapping = Mapping::new(file(512), 0, 4096, Access::Read, Populate::AtOnce);
        assert!(mapping.expect("map").words().is_none());
    }

    #[test]
    fn populating_beyond_the_end_is_an_error_not_a_signal() {
        let mapping = Mapping::new(file(512), 0, 8192, Access::Read, Populate::Lazily);
        let error = mapping
            .expect("map")
            .populate()
            .expect_err("half is beyond");
        assert_eq!(error.errno(), Some(Errno::FAULT));
    }
}
