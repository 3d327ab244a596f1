// SPDX-License-Identifier: GPL-2.0

//! Mappings of a domain in user page tables.
//!
//! Nothing is kept about a mapping: it may be split, moved, grown, copied by `fork()` and unmapped in
//! parts, as the page offset of an address tells everything. Mappings of memory and of tables have
//! different operations, so that a writable one that grows never comes to show a table.

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
    domain::Domain,
    frames::Source,
    pure::{
        frame::{
            Pfn,
            PfnRange,
            PAGE_SHIFT,
            PAGE_SIZE, //
        },
        map::Which,
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

static TABLE_OPS: Operations = Operations(bindings::vm_operations_struct {
    fault: Some(table_fault),
    map_pages: Some(map_pages),
    ..pin_init::zeroed()
});

/// Sets up a mapping.
pub(crate) fn mmap(domain: &Domain, vma: &VmaNew) -> Result {
    // What a private mapping would show after a fork and a write is not what anybody wants.
    if vma.flags() & flags::MAYSHARE == 0 {
        return Err(EINVAL);
    }
    // SAFETY: The VMA is being set up, so nobody changes it.
    let pgoff = unsafe { (*vma.as_ptr()).vm_pgoff } as u64;
    let nr_pages = (vma.end() - vma.start()) as u64 >> PAGE_SHIFT;

    let ops = match Window::of(pgoff, nr_pages)? {
        Window::Memory => {
            domain.create_if_fresh(Window::pfns(pgoff, nr_pages)?)?;
            &MEMORY_OPS
        }
        Window::P2m | Window::M2p if !domain.sees_mfns() => return Err(EPERM),
        Window::Header | Window::P2m | Window::M2p => {
            vma.try_clear_maywrite().map_err(|_| EACCES)?;
            vma.try_clear_mayexec().map_err(|_| EACCES)?;
            vma.set_dontexpand();
            &TABLE_OPS
        }
    };
    // Pages with reference counts, which everybody may pin.
    vma.set_mixedmap();
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
    /// The pages are order-0 pages that are in use and stay so.
    unsafe fn insert(&self, address: usize, pages: &mut [*mut bindings::page]) -> (usize, Result) {
        let mut rest = pages.len() as c_ulong;
        // SAFETY: The VMA is locked for reading during a fault, and has `VM_MIXEDMAP` set. The pages
        // are valid by the safety requirements of this function.
        let result = unsafe {
            bindings::vm_insert_pages(self.vma, address as c_ulong, pages.as_mut_ptr(), &mut rest)
        };
        // OVERFLOW: No more pages are left than there were.
        let done = pages.len() - rest as usize;
        (done, kernel::error::to_result(result))
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
    let mut guard = domain.mapping().lock_shared();
    let result = loop {
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
        // are until `guard` is dropped.
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

/// Has pages that were mapped read-only looked at again when the mapping becomes writable, as tables
/// of a space must not become so.
///
/// # Safety
///
/// `vma` is valid, is one that [`mmap()`] has set up, and is locked for writing.
unsafe extern "C" fn memory_mprotect(
    vma: *mut bindings::vm_area_struct,
    start: c_ulong,
    end: c_ulong,
    new_flags: c_ulong,
) -> c_int {
    if new_flags as bindings::vm_flags_t & flags::WRITE == 0 {
        return 0;
    }
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

    let guard = domain.mapping().lock_shared();
    let leaf = |window: Window, which| {
        let index = window.word_index(fault.pgoff)?;
        Some(maps.leaf(store, which, index))
    };
    let id = match Window::of(fault.pgoff, 1) {
        Ok(Window::Header) => Some(maps.header()),
        Ok(window @ Window::P2m) => leaf(window, Which::P2m),
        Ok(window @ Window::M2p) => leaf(window, Which::M2p),
        Ok(Window::Memory) | Err(_) => None,
    };
    let result = match id {
        // SAFETY: Tables are pages that are in use. They are until `guard` is dropped.
        Some(id) => unsafe { fault.insert(fault.address, &mut [store.page(id)]).1 },
        None => Err(EFAULT),
    };
    drop(guard);
    fault_result(result)
}
