// SPDX-License-Identifier: GPL-2.0

//! Where a domain is mapped.
//!
//! All opens of a device node share the inode, and with it the address space in which the kernel
//! looks for mappings. But each domain has its own offsets, so each has an address space of its own,
//! as GFS2 has for its glocks.
//!
//! Its `invalidate_lock` is used as file systems use it: who maps a page holds it shared from the
//! lookup to the insertion, who takes a page away holds it exclusively from the change of the map to
//! the end of the unmapping. So a page that was taken away isn't mapped again by a fault that looked
//! it up before.

use kernel::{
    bindings,
    fs::File,
    prelude::*,
    types::Opaque, //
};

use crate::{
    ffi,
    pure::{
        entry::Entry,
        frame::{
            Pfn,
            PfnRange,
            PAGE_SHIFT, //
        },
        map::{
            Views,
            Which, //
        }, //
    },
    window::Window, //
};

/// The address space of a domain.
#[pin_data]
pub(crate) struct Mapping {
    /// The number of the domain.
    domain: u64,
    #[pin]
    inner: Opaque<bindings::address_space>,
}

// SAFETY: An address space is used by many threads, and has locks for all of its parts.
unsafe impl Send for Mapping {}
// SAFETY: As above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Makes the address space of a domain, the file of which is being opened.
    pub(crate) fn new(file: &File, domain: u64) -> impl PinInit<Self> + '_ {
        pin_init!(Self {
            domain,
            inner <- Opaque::ffi_init(move |slot| {
                // SAFETY: `file` is valid, and its inode is as long as it is. `slot` is valid for
                // writing and pinned.
                unsafe { ffi::p2m_mapping_init(slot, (*file.as_ptr()).f_inode) };
            }),
        })
    }

    /// Has all mappings of `file` go into this address space.
    ///
    /// # Safety
    ///
    /// `file` is being opened, and the address space lives until it is released.
    pub(crate) unsafe fn attach(&self, file: &File) {
        // SAFETY: By the safety requirements of this function, nobody uses the file yet.
        unsafe { (*file.as_ptr()).f_mapping = self.inner.get() };
    }

    /// Excludes all faults, to take pages away.
    pub(crate) fn lock(&self) -> Invalidation<'_> {
        // SAFETY: `inner` is initialised.
        unsafe { ffi::p2m_mapping_lock(self.inner.get()) };
        Invalidation { mapping: self }
    }

    /// Excludes that pages are taken away.
    pub(crate) fn lock_shared(&self) -> Insertion<'_> {
        // SAFETY: `inner` is initialised.
        unsafe { ffi::p2m_mapping_lock_shared(self.inner.get()) };
        Insertion { mapping: self }
    }
}

/// The right to map what the maps say, as long as it lives.
pub(crate) struct Insertion<'a> {
    mapping: &'a Mapping,
}

impl Drop for Insertion<'_> {
    fn drop(&mut self) {
        // SAFETY: The existence of `self` shows that it is locked.
        unsafe { ffi::p2m_mapping_unlock_shared(self.mapping.inner.get()) };
    }
}

/// The right to take pages away, as long as it lives.
pub(crate) struct Invalidation<'a> {
    mapping: &'a Mapping,
}

impl Invalidation<'_> {
    /// Takes the pages of a range out of all page tables.
    pub(crate) fn unmap(&self, range: PfnRange) {
        self.unmap_offsets(range.start().get(), range.nr_pages());
    }

    fn unmap_offsets(&self, start: u64, nr_pages: u64) {
        // SAFETY: The address space is initialised, and we hold none of its locks that are taken
        // inside.
        unsafe {
            bindings::unmap_mapping_pages(
                self.mapping.inner.get(),
                start as c_ulong,
                nr_pages as c_ulong,
                false,
            )
        };
    }
}

impl Views for Invalidation<'_> {
    fn leaf_replaced(&self, which: Which, index: u64) {
        let window = match which {
            Which::P2m => Window::P2m,
            Which::M2p => Window::M2p,
        };
        // OVERFLOW: A map has far fewer words than 2^64.
        let offset = window.offset() + index * core::mem::size_of::<u64>() as u64;
        self.unmap_offsets(offset >> PAGE_SHIFT, 1);
    }

    fn changed(&self, pfn: Pfn, old: Entry, new: Entry) {
        Tracer(self.mapping.domain).changed(pfn, old, new);
    }

    fn sees_changes(&self) -> bool {
        Tracer(self.mapping.domain).sees_changes()
    }
}

/// Tells those who trace a domain, by its number, of changes. It's for when nobody has it mapped any
/// more, and for changes that take nothing away and replace no leaf.
pub(crate) struct Tracer(pub(crate) u64);

impl Views for Tracer {
    fn leaf_replaced(&self, _: Which, _: u64) {}

    fn changed(&self, pfn: Pfn, old: Entry, new: Entry) {
        // SAFETY: It has no requirements.
        unsafe {
            ffi::p2m_trace_change(self.0, pfn.get(), old.raw(), new.raw());
        }
    }

    fn sees_changes(&self) -> bool {
        // SAFETY: It has no requirements.
        unsafe { ffi::p2m_trace_change_is_on() }
    }
}

impl Drop for Invalidation<'_> {
    fn drop(&mut self) {
        // SAFETY: The existence of `self` shows that it is locked.
        unsafe { ffi::p2m_mapping_unlock(self.mapping.inner.get()) };
    }
}
