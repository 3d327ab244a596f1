// SPDX-License-Identifier: GPL-2.0

//! Tables from the page allocator.

use core::ptr;

use kernel::{
    bindings,
    prelude::*,
    sync::{
        Arc,
        SetOnce, //
    }, //
};

use crate::{
    compat::rcu_barrier,
    ffi,
    inject::Injection,
    pure::{
        entry::INVALID,
        sparse::MAX_LEVELS,
        table::{
            NoMemory,
            Table,
            TableId,
            TableStore, //
        }, //
    }, //
};

/// The shared missing tables, from level 0 up. All domains use them while the module is loaded.
///
/// A registration of a misc device carries no data, so they have to be reachable without.
static MISSING: SetOnce<[TableId; MAX_LEVELS]> = SetOnce::new();

/// Provides tables, each of which is a page. The id of a table is its kernel virtual address.
///
/// Lookups are in an RCU read-side critical section, or exclude writers in another way.
pub(crate) struct Store {
    missing: &'static [TableId; MAX_LEVELS],
    injection: Arc<Injection>,
}

impl Store {
    /// Returns the store, if the module has made the [`MissingTables`].
    pub(crate) fn new(injection: Arc<Injection>) -> Result<Self> {
        let missing = MISSING.as_ref().ok_or(ENODEV)?;
        Ok(Self { missing, injection })
    }

    /// Returns the page that a table is.
    pub(crate) fn page(&self, id: TableId) -> *mut bindings::page {
        // SAFETY: By the contract of `TableStore`, `id` is the address of a page of the linear map.
        unsafe { ffi::p2m_virt_to_page(ptr::from_ref(self.table(id)).cast()) }
    }
}

/// Tables are charged to the memory cgroup. Nobody is to be killed for one.
const GFP_TABLE: bindings::gfp_t = bindings::GFP_KERNEL_ACCOUNT
    | 1 << bindings::___GFP_RETRY_MAYFAIL_BIT
    | 1 << bindings::___GFP_NOWARN_BIT;

fn alloc(fill: u64) -> Result<TableId, NoMemory> {
    // SAFETY: `get_zeroed_page()` has no requirements in a context that may sleep.
    let address = unsafe { bindings::get_zeroed_page_noprof(GFP_TABLE) };
    // CAST: Both are 64 bits wide.
    let address = address as u64;
    let id = TableId::new(address)
        .filter(|_| address != 0)
        .ok_or(NoMemory)?;
    if fill != 0 {
        table(id).fill(fill);
    }
    Ok(id)
}

fn table<'a>(id: TableId) -> &'a Table {
    // SAFETY: By the contract of `TableStore`, `id` came from `alloc()`, so it's the address of a
    // page of initialised words, and the page isn't freed while somebody uses it. All accesses to
    // it are atomic.
    unsafe { &*(id.get() as *const Table) }
}

fn free(id: TableId) {
    // SAFETY: By the contract of `TableStore`, the page came from `alloc()`, and nobody else knows
    // it any more.
    unsafe { bindings::free_pages(id.get() as c_ulong, 0) };
}

impl TableStore for Store {
    fn alloc(&self, fill: u64) -> Result<TableId, NoMemory> {
        if self.injection.should_fail() {
            return Err(NoMemory);
        }
        alloc(fill)
    }

    #[inline]
    fn table(&self, id: TableId) -> &Table {
        table(id)
    }

    fn free(&self, id: TableId) {
        free(id);
    }

    fn retire(&self, id: TableId) {
        // SAFETY: By the contract of `TableStore`, nobody can find the table any more. Those who
        // found it before are done after a grace period. Views of it were zapped, or hold a
        // reference to the page.
        unsafe { ffi::p2m_free_page_rcu(self.page(id)) };
    }

    #[inline]
    fn missing(&self, level: usize) -> TableId {
        // PANIC: Levels are below `MAX_LEVELS`.
        self.missing[level]
    }
}

/// Keeps the shared missing tables. The module has it as long as there may be domains.
pub(crate) struct MissingTables(());

impl MissingTables {
    /// Makes the tables, once.
    pub(crate) fn new() -> Result<Self> {
        let mut ids = KVec::with_capacity(MAX_LEVELS, GFP_KERNEL)?;
        let result = Self::make(&mut ids)
            .and_then(|ids| MISSING.populate(ids).then_some(Self(())).ok_or(EBUSY));
        if result.is_err() {
            for &id in &ids {
                free(id);
            }
        }
        result
    }

    fn make(ids: &mut KVec<TableId>) -> Result<[TableId; MAX_LEVELS]> {
        let mut fill = INVALID;
        for _ in 0..MAX_LEVELS {
            let id = alloc(fill)?;
            fill = id.get();
            ids.push(id, GFP_KERNEL).inspect_err(|_| free(id))?;
        }
        ids.as_slice().try_into().map_err(|_| EINVAL)
    }
}

impl Drop for MissingTables {
    fn drop(&mut self) {
        // Retired tables are freed by a function of this module's.
        rcu_barrier();
        for &id in MISSING.as_ref().into_iter().flatten() {
            free(id);
        }
    }
}
