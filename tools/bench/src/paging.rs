// SPDX-License-Identifier: GPL-2.0

//! Page tables built through hooks, on the host, and by crates that operating systems use.
//!
//! All build the same four levels of tables over the same scattered frames.

use std::sync::atomic::{AtomicUsize, Ordering};

use p2m_pure::frame::{Mfn, PAGE_SHIFT, Pfn, PfnRange};
use p2m_pure::paging::{Format, Space};
use p2m_pure::pv::{self, MmuOps, bits};
use page_table_multiarch::{GenericPTE, MappingFlags, PageTable64, PagingHandler, PagingMetaData};
use x86_64::structures::paging::mapper::{MappedPageTable, PageTableFrameMapping};
use x86_64::structures::paging::page_table::{PageTable, PageTableFlags};
use x86_64::structures::paging::{FrameAllocator, Mapper, Page, PhysFrame, Size4KiB};

use crate::arena::{Domain, Memory, Pool};
use crate::host::Random;
use crate::race::{Contestant, Samples, cpu_time, race};

/// 1 GiB.
const NR_PAGES: u64 = 1 << 18;

/// Room for the tables: 512 with leaves, and three above them.
const NR_TABLES: u64 = 1024;

/// Frames are from here on, those of tables first.
const FIRST_MFN: u64 = 0x10_0000;

/// Where the pages are mapped.
const ADDRESS: u64 = 1 << 39;

const NR_LEVELS: usize = 4;

/// Frames of tables for the peers: a table is at its address.
struct Frames {
    memory: Memory,
    next: AtomicUsize,
}

impl Frames {
    fn new() -> Self {
        Self {
            memory: Memory::new(NR_TABLES as usize),
            next: AtomicUsize::new(0),
        }
    }

    /// Takes all tables back.
    fn reset(&self) {
        self.next.store(0, Ordering::Relaxed);
    }

    fn next(&self) -> Option<u64> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        (number < self.memory.nr_pages()).then(|| self.memory.page(number) as u64)
    }
}

/// What the x86_64 crate asks for.
struct X86<'a>(&'a Frames);

// SAFETY: The tables are unused pages.
unsafe impl FrameAllocator<Size4KiB> for X86<'_> {
    fn allocate_frame(&mut self) -> Option<PhysFrame> {
        let address = x86_64::PhysAddr::new(self.0.next()?);
        PhysFrame::from_start_address(address).ok()
    }
}

struct Identity;

// SAFETY: A table is at its address.
unsafe impl PageTableFrameMapping for Identity {
    fn frame_to_pointer(&self, frame: PhysFrame) -> *mut PageTable {
        frame.start_address().as_u64() as *mut PageTable
    }
}

/// Builds the tables by the x86_64 crate, and returns the root.
fn build_x86_64(frames: &Frames, mfns: &[u64]) -> u64 {
    let root = frames.next().expect("there is room");
    let table = root as *mut PageTable;
    // SAFETY: It's an unused page.
    let table = unsafe {
        table.write(PageTable::new());
        &mut *table
    };
    // SAFETY: Tables are at their addresses.
    let mut mapper = unsafe { MappedPageTable::new(table, Identity) };
    let flags =
        PageTableFlags::PRESENT | PageTableFlags::WRITABLE | PageTableFlags::USER_ACCESSIBLE;
    for (number, &mfn) in (0..).zip(mfns) {
        let address = x86_64::VirtAddr::new_truncate(ADDRESS + (number << PAGE_SHIFT));
        let page = Page::<Size4KiB>::containing_address(address);
        let frame = PhysFrame::containing_address(x86_64::PhysAddr::new(mfn << PAGE_SHIFT));
        // SAFETY: Nobody uses the tables to access memory.
        let flush = unsafe { mapper.map_to(page, frame, flags, &mut X86(frames)) };
        flush.expect("nothing is there").ignore();
    }
    root
}

thread_local! {
    /// What page_table_multiarch takes tables from: its functions have no `self`.
    static MULTIARCH: Frames = Frames::new();
}

struct Multiarch;

impl PagingMetaData for Multiarch {
    const LEVELS: usize = NR_LEVELS;
    const PA_MAX_BITS: usize = 52;
    const VA_MAX_BITS: usize = 48;
    type VirtAddr = memory_addr::VirtAddr;

    fn flush_tlb(_: Option<Self::VirtAddr>) {}
}

impl PagingHandler for Multiarch {
    fn alloc_frame() -> Option<memory_addr::PhysAddr> {
        let address = MULTIARCH.with(Frames::next)?;
        // CAST: As wide as an address.
        Some((address as usize).into())
    }

    fn dealloc_frame(_: memory_addr::PhysAddr) {}

    fn phys_to_virt(address: memory_addr::PhysAddr) -> memory_addr::VirtAddr {
        address.as_usize().into()
    }
}

/// Builds the tables by page_table_multiarch, and returns the root.
fn build_multiarch<E: GenericPTE>(mfns: &[u64]) -> u64 {
    let tables = PageTable64::<Multiarch, E, Multiarch>::try_new();
    let mut tables = tables.expect("there is room");
    let flags = MappingFlags::READ | MappingFlags::WRITE | MappingFlags::USER;
    // CAST: As wide as an address.
    let start = ADDRESS as usize;
    let result = tables.map_region(
        start.into(),
        |address: memory_addr::VirtAddr| {
            let mfn = mfns[(address.as_usize() - start) >> PAGE_SHIFT];
            ((mfn << PAGE_SHIFT) as usize).into()
        },
        mfns.len() << PAGE_SHIFT,
        flags,
        false,
        false,
    );
    result.expect("nothing is there").ignore();
    let root = tables.root_paddr().as_usize() as u64;
    // To free tables one by one isn't measured.
    std::mem::forget(tables);
    root
}

/// Reads the frame that each page is mapped to.
fn read(root: u64, table: impl Fn(u64) -> *const [u64; 512]) -> Vec<u64> {
    // SAFETY: All links lead to tables.
    let word = |at: u64, index: u64| unsafe { (*table(at))[index as usize & 511] };
    (0..NR_PAGES)
        .map(|number| (ADDRESS >> PAGE_SHIFT) + number)
        .map(|page| {
            (0..NR_LEVELS).rev().fold(root, |at, level| {
                let entry = word(at, page >> (9 * level));
                assert_ne!(entry & bits::PRESENT, 0, "page {page:#x} isn't mapped");
                entry & bits::FRAME
            }) >> PAGE_SHIFT
        })
        .collect()
}

/// The domain that both backends build in.
struct Rig {
    domain: Domain,
    mfns: Vec<u64>,
}

const POOL: std::ops::Range<u64> = NR_PAGES..NR_PAGES + NR_TABLES;

impl Rig {
    fn new() -> Self {
        let mut random = Random::new(2);
        let mut frames = |first: u64, nr: u64| -> Vec<u64> {
            // CAST: Far fewer than that.
            let numbers = random.permutation(nr as u32);
            numbers
                .into_iter()
                .map(|nr| first + u64::from(nr))
                .collect()
        };
        let tables = frames(FIRST_MFN, NR_TABLES);
        let mfns = frames(FIRST_MFN + NR_TABLES, NR_PAGES);
        let mut domain = Domain::new(mfns.iter().chain(&tables).copied());
        domain.add_memory(Memory::new(NR_TABLES as usize), FIRST_MFN, POOL);
        Self { domain, mfns }
    }

    /// Builds the tables, passes their root to `look`, and returns how long it took to build them.
    fn build(&self, ops: &'static dyn MmuOps, look: impl FnOnce(Pfn)) -> f64 {
        let machine = &self.domain;
        let mut pool = Pool::new(machine, POOL);
        let format = Format::x86_64(NR_LEVELS).expect("it's a known number of levels");
        let pfns = PfnRange::new(0, NR_PAGES).expect("it's a range");
        let start = cpu_time();
        let mut space = Space::new(ops, format, machine, &mut pool).expect("there is room");
        let page = ADDRESS >> PAGE_SHIFT;
        let result = space.map(machine, &mut pool, page, pfns, bits::RW | bits::USER, 0);
        let time = cpu_time() - start;
        assert_eq!(result, Ok(()));
        look(space.root());
        space.destroy(machine, &mut pool);
        time / NR_PAGES as f64
    }

    /// Compares what a backend builds.
    fn check(&self, ops: &'static dyn MmuOps, expected: &[u64]) {
        let is_native = ops.name() == pv::Native.name();
        self.build(ops, |root| {
            let table = |address: u64| {
                let number = address >> PAGE_SHIFT;
                let mfn = match is_native {
                    true => self.domain.mfn(number),
                    false => Mfn::new(number),
                };
                self.domain.memory(mfn.expect("it's a frame")).cast()
            };
            let root = match is_native {
                true => root.get(),
                false => self.domain.mfn(root.get()).map_or(0, Mfn::get),
            };
            assert!(
                read(root << PAGE_SHIFT, table) == expected,
                "{}",
                ops.name()
            );
        });
    }
}

/// Builds tables for 1 GiB, in nanoseconds for each page.
pub(crate) fn build(nr_rounds: usize) -> Vec<Samples> {
    let rig = Rig::new();
    let frames = Frames::new();
    let at_its_address = |address: u64| address as *const [u64; 512];
    let build_multiarch = build_multiarch::<page_table_entry::x86_64::X64PTE>;

    assert!(read(build_x86_64(&frames, &rig.mfns), at_its_address) == rig.mfns);
    assert!(read(build_multiarch(&rig.mfns), at_its_address) == rig.mfns);
    rig.check(&pv::P2M, &rig.mfns);
    rig.check(&pv::Native, &Vec::from_iter(0..NR_PAGES));

    // CAST: As wide as an address.
    let nr_ops = NR_PAGES as usize;
    let [samples] = race(
        nr_rounds,
        vec![
            Contestant::new("p2m", || [rig.build(&pv::P2M, |_| ())]),
            Contestant::new("native", || [rig.build(&pv::Native, |_| ())]),
            Contestant::timed("x86_64", nr_ops, || {
                frames.reset();
                build_x86_64(&frames, &rig.mfns)
            }),
            Contestant::timed("page_table_multiarch", nr_ops, || {
                MULTIARCH.with(Frames::reset);
                build_multiarch(&rig.mfns)
            }),
        ],
    );
    samples
}
