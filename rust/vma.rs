// SPDX-License-Identifier: GPL-2.0

//! Mappings of a domain in user page tables.
//!
//! Nothing is kept about a mapping: it may be split, moved, grown, copied by `fork()` and unmapped in
//! parts, as the page offset of an address tells everything. Mappings of memory and of tables have
//! different operations, so that a writable one that grows never comes to show a table.
//!
//! Superpages are mapped by one entry, where a mapping was made of a region that has them, and where
//! address and offset allow it. Such a mapping has no `VM_MIXEDMAP`, as with it the kernel would lose
//! count of a superpage when it splits the entry. Who inserts such an entry excludes all others, and
//! who inserts pages doesn't where there is one. So neither meets the other half-way.

use core::ptr;

use kernel::{
    bindings,
    mm::virt::{
        flags,
        VmaNew,
        VmaRef, //
    },
    prelude::*,
    types::ForeignOwnable, //
};

use crate::{
    compat::MAYSHARE,
    domain::Domain,
    ffi,
    frames::Source,
    pure::{
        frame::{
            Pfn,
            PfnRange,
            PAGE_SHIFT,
            PAGE_SIZE, //
        },
        map::{
            Which,
            SUPERPAGE_PAGES, //
        },
        policy::FrameSource, //
    },
    window::Window, //
};

/// Operations of a mapping. They are never written to.
struct Operations(bindings::vm_operations_struct);

// SAFETY: It is only read.
unsafe impl Sync for Operations {}

static MEMORY_OPS: Operations = Operations(bindings::vm_operations_struct {
    fault: Some(memory_fault),
    mprotect: Some(memory_mprotect),
    map_pages: Some(map_pages),
    ..pin_init::zeroed()
});

/// Those of a mapping that may have superpages.
static SUPERPAGE_OPS: Operations = Operations(bindings::vm_operations_struct {
    fault: Some(memory_fault),
    huge_fault: Some(memory_huge_fault),
    mprotect: Some(memory_mprotect),
    map_pages: Some(map_pages),
    ..pin_init::zeroed()
});

static TABLE_OPS: Operations = Operations(bindings::vm_operations_struct {
    fault: Some(table_fault),
    map_pages: Some(map_pages),
    ..pin_init::zeroed()
});

/// Finds an address for a mapping: one as aligned as its offset, where superpages can be mapped by one
/// entry there.
///
/// # Safety
///
/// `file` is a file the private data of which is a [`Domain`].
pub(crate) unsafe extern "C" fn get_unmapped_area(
    file: *mut bindings::file,
    address: c_ulong,
    len: c_ulong,
    pgoff: c_ulong,
    flags: c_ulong,
) -> c_ulong {
    // SAFETY: By the safety requirements of this function.
    let domain = unsafe { <Pin<KBox<Domain>> as ForeignOwnable>::borrow((*file).private_data) };
    let nr_pages = (len >> PAGE_SHIFT) as u64;
    let range = Window::pfns(pgoff as u64, nr_pages);
    let may_be_huge = range.is_ok_and(|range| domain.has_superpages(range));
    // SAFETY: As above. It's in the middle of a system call that maps something.
    unsafe {
        if may_be_huge {
            bindings::thp_get_unmapped_area(file, address, len, pgoff, flags)
        } else {
            bindings::mm_get_unmapped_area(file, address, len, pgoff, flags)
        }
    }
}

/// Sets up a mapping.
pub(crate) fn mmap(domain: &Domain, vma: &VmaNew) -> Result {
    // What a private mapping would show after a fork and a write is not what anybody wants.
    if vma.flags() & MAYSHARE == 0 {
        return Err(EINVAL);
    }
    // SAFETY: The VMA is being set up, so nobody changes it.
    let pgoff = unsafe { (*vma.as_ptr()).vm_pgoff } as u64;
    let nr_pages = (vma.end() - vma.start()) as u64 >> PAGE_SHIFT;

    let ops = match Window::of(pgoff, nr_pages)? {
        Window::Memory => {
            let range = Window::pfns(pgoff, nr_pages)?;
            domain.create_if_fresh(range)?;
            if domain.has_superpages(range) {
                // Who asked for superpages, asked for these, too.
                // SAFETY: The VMA is being set up.
                unsafe { ffi::p2m_vma_set_hugepage(vma.as_ptr()) };
                &SUPERPAGE_OPS
            } else {
                &MEMORY_OPS
            }
        }
        Window::P2m | Window::M2p if !domain.sees_mfns() => return Err(EPERM),
        Window::Header | Window::P2m | Window::M2p => {
            vma.try_clear_maywrite().map_err(|_| EACCES)?;
            vma.try_clear_mayexec().map_err(|_| EACCES)?;
            vma.set_dontexpand();
            &TABLE_OPS
        }
    };
    if !ptr::eq(ops, &SUPERPAGE_OPS) {
        // Pages with reference counts, which everybody may pin.
        vma.set_mixedmap();
    }
    // SAFETY: The VMA is being set up.
    unsafe { (*vma.as_ptr()).vm_ops = &ops.0 };
    Ok(())
}

/// Maps nothing in advance. That it's there says that faults need not hold the `mmap_lock`.
///
/// # Safety
///
/// It has no requirements.
unsafe extern "C" fn map_pages(
    _vmf: *mut bindings::vm_fault,
    _start: c_ulong,
    _end: c_ulong,
) -> bindings::vm_fault_t {
    0
}

/// A fault on a mapping of a domain.
struct Fault<'a> {
    vma: *mut bindings::vm_area_struct,
    /// Address of the page.
    address: usize,
    /// Page offset of the page.
    pgoff: u64,
    domain: Pin<&'a Domain>,
}

impl<'a> Fault<'a> {
    /// # Safety
    ///
    /// `vmf` is valid for `'a`, and of a mapping of a file the private data of which is a [`Domain`].
    unsafe fn new(vmf: *mut bindings::vm_fault) -> Self {
        // SAFETY: By the safety requirements of this function.
        let fault = unsafe { &(*vmf).__bindgen_anon_1 };
        // SAFETY: A VMA has a reference to its file, which has one to the domain.
        let domain = unsafe {
            <Pin<KBox<Domain>> as ForeignOwnable>::borrow((*(*fault.vma).vm_file).private_data)
        };
        Self {
            vma: fault.vma,
            address: fault.address & !(PAGE_SIZE - 1),
            pgoff: fault.pgoff as u64,
            domain,
        }
    }

    /// Returns whether pages of the mapping are writable.
    fn is_writable(&self) -> bool {
        // SAFETY: The VMA is locked for reading during a fault.
        let vma = unsafe { VmaRef::from_raw(self.vma) };
        vma.flags() & flags::WRITE != 0
    }

    /// Returns whether pages are inserted many at a time: no superpage is ever mapped by one entry.
    fn is_mixed(&self) -> bool {
        // SAFETY: The VMA is locked for reading during a fault.
        let vma = unsafe { VmaRef::from_raw(self.vma) };
        vma.flags() & flags::MIXEDMAP != 0
    }

    /// Returns the PFNs around the faulting one that one entry would map, if all are in the mapping,
    /// and at an address as aligned as they are.
    fn superpage(&self) -> Option<PfnRange> {
        // SAFETY: The VMA is locked for reading during a fault.
        let vma = unsafe { VmaRef::from_raw(self.vma) };
        const NR_PAGES: usize = SUPERPAGE_PAGES as usize;
        let nr_before = (self.address >> PAGE_SHIFT) % NR_PAGES;
        // OVERFLOW: All addresses are of userspace.
        let start = self.address - (nr_before << PAGE_SHIFT);
        if start < vma.start() || start + (NR_PAGES << PAGE_SHIFT) > vma.end() {
            return None;
        }
        let pgoff = self.pgoff.checked_sub(nr_before as u64)?;
        let range = PfnRange::new(pgoff, SUPERPAGE_PAGES).ok();
        range.filter(|_| pgoff % SUPERPAGE_PAGES == 0)
    }

    /// Takes a page for the PFN that was touched, where that is what a touch does.
    fn populate(&self) -> Result {
        let pfn = Pfn::new(self.pgoff).ok_or(EFAULT)?;
        // The page may go again and again, but nobody has to wait for it after a fatal signal.
        if Source.is_interrupted() {
            return Err(EFAULT);
        }
        // Nobody is to be killed for a page that isn't there.
        let populated = self.domain.populate_on_touch(pfn);
        populated.map_err(|_| EFAULT)
    }

    /// Returns how many pages from the faulting one on are in the mapping and in the same page table.
    fn nr_pages_in_table(&self) -> usize {
        // SAFETY: The VMA is locked for reading during a fault.
        let end = unsafe { (*self.vma).__bindgen_anon_1.__bindgen_anon_1.vm_end };
        const TABLE_SPAN: usize = PAGE_SIZE * PAGE_SIZE / 8;
        // OVERFLOW: The address is below the end of the mapping, and both are of userspace.
        let table_end = (self.address & !(TABLE_SPAN - 1)) + TABLE_SPAN;
        (table_end.min(end) - self.address) >> PAGE_SHIFT
    }

    /// Maps pages from `address` on, and returns how many.
    ///
    /// # Safety
    ///
    /// The pages are in use and stay so. Without `VM_MIXEDMAP`, no superpage is mapped there by one
    /// entry, and none comes to be.
    unsafe fn insert(&self, address: usize, pages: &mut [*mut bindings::page]) -> (usize, Result) {
        if !self.is_mixed() {
            for (index, page) in pages.iter().enumerate() {
                // OVERFLOW: The pages are in the mapping.
                let address = address + (index << PAGE_SHIFT);
                // SAFETY: The VMA is locked for reading during a fault. The page is valid and there is
                // no entry of a superpage by the safety requirements of this function.
                let fault = unsafe { ffi::p2m_insert_page(self.vma, address as c_ulong, *page) };
                match fault {
                    bindings::vm_fault_reason_VM_FAULT_NOPAGE => (),
                    bindings::vm_fault_reason_VM_FAULT_OOM => return (index, Err(ENOMEM)),
                    _ => return (index, Err(EFAULT)),
                }
            }
            return (pages.len(), Ok(()));
        }
        let mut rest = pages.len() as c_ulong;
        // SAFETY: The VMA is locked for reading during a fault, and has `VM_MIXEDMAP` set. The pages
        // are valid by the safety requirements of this function.
        let result = unsafe {
            bindings::vm_insert_pages(self.vma, address as c_ulong, pages.as_mut_ptr(), &mut rest)
        };
        // OVERFLOW: No more pages are left than there were.
        let done = pages.len() - rest as usize;
        // `madvise()` frees page tables that it has emptied. If it was this one, the fault comes again.
        let result = kernel::error::to_result(result);
        let result = result.map_err(|error| if error == EFAULT { EBUSY } else { error });
        (done, result)
    }
}

/// Returns what a fault handler has to return when it has mapped pages by itself.
fn fault_result(result: Result) -> bindings::vm_fault_t {
    match result {
        // Another thread may have been faster.
        Ok(()) => bindings::vm_fault_reason_VM_FAULT_NOPAGE,
        Err(error) if error == EBUSY => bindings::vm_fault_reason_VM_FAULT_NOPAGE,
        Err(error) if error == ENOMEM => bindings::vm_fault_reason_VM_FAULT_OOM,
        Err(_) => bindings::vm_fault_reason_VM_FAULT_SIGBUS,
    }
}

/// log2 of the number of pages in a superpage.
const SUPERPAGE_ORDER: c_uint = SUPERPAGE_PAGES.ilog2();

/// How many pages are mapped at once: as many pointers as the stack takes easily.
const BATCH: usize = 32;

/// Maps the page that was touched and those behind it, as far as they are there and the page table
/// reaches: entering the kernel costs more than filling in an entry.
///
/// # Safety
///
/// `vmf` is valid, and of a mapping that [`mmap()`] has set up.
unsafe extern "C" fn memory_fault(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
    // SAFETY: By the safety requirements of this function. `mmap()` is for files of domains only.
    let fault = unsafe { Fault::new(vmf) };
    let domain = fault.domain;
    let (maps, store) = domain.maps();
    let mut pages = [ptr::null_mut(); BATCH];
    let mut done = 0;

    let nr_pages = fault.nr_pages_in_table();
    let is_mixed = fault.is_mixed();
    let mut guard = domain.mapping().lock_shared();
    let result = loop {
        // SAFETY: By the safety requirements of this function.
        if !is_mixed && unsafe { ffi::p2m_fault_is_huge(vmf) } {
            // Another thread was faster. What it mapped is there, or the fault comes again.
            break Ok(());
        }
        let batch = pages.len().min(nr_pages - done);
        let start = fault.pgoff + done as u64;
        let mut found = 0;
        let mut is_hidden = false;
        for (page, number) in pages.iter_mut().take(batch).zip(start..) {
            let entry = Pfn::new(number).map(|pfn| maps.lookup(store, pfn));
            let Some(mfn) = entry.and_then(|entry| entry.memory()) else {
                break;
            };
            if !domain.may_map(number, fault.is_writable()) {
                is_hidden = true;
                break;
            }
            *page = Source::page(mfn);
            found += 1;
        }
        if found == 0 && done == 0 {
            if is_hidden {
                break Err(EFAULT);
            }
            drop(guard);
            if let Err(error) = fault.populate() {
                break Err(error);
            }
            guard = domain.mapping().lock_shared();
            continue;
        }
        let address = fault.address + (done << PAGE_SHIFT);
        let Some(pages) = pages.get_mut(..found) else {
            break Err(EFAULT);
        };
        if pages.is_empty() {
            break Ok(());
        }
        // SAFETY: The pages are frames of the domain, or foreign ones that it has references to. They
        // are until `guard` is dropped, and until then nobody maps a superpage by one entry.
        let (nr, result) = unsafe { fault.insert(address, pages) };
        done += nr;
        // What can't be mapped in advance, doesn't matter.
        if result.is_err() || found < batch || done == nr_pages {
            break if done == 0 { result } else { Ok(()) };
        }
    };
    if result.is_ok() {
        domain.count_fault(done as u64);
    }
    fault_result(result)
}

/// Maps the superpage that was touched by one entry, if that can be.
///
/// # Safety
///
/// `vmf` is valid, and of a mapping that [`mmap()`] has set up.
unsafe extern "C" fn memory_huge_fault(
    vmf: *mut bindings::vm_fault,
    order: c_uint,
) -> bindings::vm_fault_t {
    const FALLBACK: bindings::vm_fault_t = bindings::vm_fault_reason_VM_FAULT_FALLBACK;
    // SAFETY: By the safety requirements of this function. `mmap()` is for files of domains only.
    let fault = unsafe { Fault::new(vmf) };
    let domain = fault.domain;
    let (maps, store) = domain.maps();
    let Some(range) = fault.superpage().filter(|_| order == SUPERPAGE_ORDER) else {
        return FALLBACK;
    };
    let superpage = || maps.superpage(store, range.start());
    let guard = domain.mapping().lock_shared();
    let (is_there, is_empty) = (superpage().is_some(), domain.is_empty(range));
    drop(guard);
    // Most that aren't there never will be, so nobody is excluded for them.
    let is_there = is_there || (is_empty && fault.populate().is_ok());
    if !is_there {
        return FALLBACK;
    }

    let _views = domain.mapping().lock();
    let is_visible = domain.may_map_all(range, fault.is_writable());
    // SAFETY: By the safety requirements of this function.
    let is_unmapped = unsafe { ffi::p2m_fault_is_unmapped(vmf) };
    match superpage().filter(|_| is_visible && is_unmapped) {
        Some(mfn) => {
            // SAFETY: As above. The frames are the domain's, and can't go while faults are excluded.
            // Nobody else inserts pages meanwhile.
            let fault = unsafe { ffi::p2m_insert_superpage(vmf, Source::page(mfn)) };
            if fault == bindings::vm_fault_reason_VM_FAULT_NOPAGE {
                domain.count_fault(SUPERPAGE_PAGES);
            }
            fault
        }
        None => FALLBACK,
    }
}

/// Has pages that were mapped read-only looked at again when the mapping becomes writable, as tables
/// of a space must not become so.
///
/// # Safety
///
/// `vma` is valid, is one that [`mmap()`] has set up, and its `mmap_lock` is held for writing.
unsafe extern "C" fn memory_mprotect(
    vma: *mut bindings::vm_area_struct,
    start: c_ulong,
    end: c_ulong,
    new_flags: c_ulong,
) -> c_int {
    if new_flags as bindings::vm_flags_t & flags::WRITE == 0 {
        return 0;
    }
    // A fault that has the VMA alone would map a table again, read-only, before the flags change, and
    // then the entry becomes writable without another fault.
    // SAFETY: By the safety requirements of this function.
    unsafe { ffi::p2m_vma_start_write(vma) };
    // SAFETY: By the safety requirements of this function. A VMA has a reference to its file, which
    // has one to the domain.
    let (domain, vma, pgoff) = unsafe {
        let private_data = (*(*vma).vm_file).private_data;
        (
            <Pin<KBox<Domain>> as ForeignOwnable>::borrow(private_data),
            VmaRef::from_raw(vma),
            (*vma).vm_pgoff,
        )
    };
    // OVERFLOW: `start` is in the mapping, and `end` behind it.
    let pgoff = (pgoff + ((start - vma.start()) >> PAGE_SHIFT)) as u64;
    let nr_pages = ((end - start) >> PAGE_SHIFT) as u64;
    // It may have grown beyond the space.
    let nr_pages = nr_pages.min(Pfn::LIMIT.saturating_sub(pgoff));
    let Ok(range) = PfnRange::new(pgoff, nr_pages) else {
        return 0;
    };
    let views = domain.mapping().lock();
    let (claims, store) = domain.claims();
    if claims.has_any(store, range) {
        views.unmap(range);
    }
    0
}

/// Maps the leaf, or the header, that was touched.
///
/// # Safety
///
/// `vmf` is valid, and of a mapping that [`mmap()`] has set up.
unsafe extern "C" fn table_fault(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
    // SAFETY: By the safety requirements of this function. `mmap()` is for files of domains only.
    let fault = unsafe { Fault::new(vmf) };
    let domain = fault.domain;
    let (maps, store) = domain.maps();

    let index = |window: Window| window.word_index(fault.pgoff).ok_or(EFAULT);
    let place = match Window::of(fault.pgoff, 1) {
        Ok(Window::Header) => Ok(None),
        Ok(window @ Window::P2m) => index(window).map(|index| Some((Which::P2m, index))),
        Ok(window @ Window::M2p) => index(window).map(|index| Some((Which::M2p, index))),
        Ok(Window::Memory) | Err(_) => Err(EFAULT),
    };
    let result = loop {
        let guard = domain.mapping().lock_shared();
        let id = match place {
            Err(error) => break Err(error),
            Ok(place) => match place {
                Some((which, index)) if maps.is_folded(store, which, index) => {
                    drop(guard);
                    // Only a table can be looked at.
                    match domain.unfold_leaf(which, index) {
                        Ok(()) if !Source.is_interrupted() => continue,
                        Ok(()) => break Err(EFAULT),
                        Err(error) => break Err(error),
                    }
                }
                Some((which, index)) => maps.leaf(store, which, index),
                None => maps.header(),
            },
        };
        // SAFETY: Tables are pages that are in use. They are until `guard` is dropped.
        let (_, result) = unsafe { fault.insert(fault.address, &mut [store.page(id)]) };
        drop(guard);
        break result;
    };
    fault_result(result)
}
