// SPDX-License-Identifier: GPL-2.0

//! What the peers of p2m need from the kernel.

use std::ffi::c_void;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::ptr;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::mm::{self, Advice, MapFlags, ProtFlags};

/// Size of a page.
pub(crate) const PAGE: usize = 4096;

/// Size of a large page.
const LARGE: usize = 2 << 20;

/// Memory that isn't p2m's.
pub(crate) struct Memory {
    start: *mut u8,
    len: usize,
    /// What was mapped: more than asked for, to be aligned.
    mapped: (*mut c_void, usize),
}

// SAFETY: Memory belongs to the process, not to a thread.
unsafe impl Send for Memory {}
// SAFETY: Who writes to it does so by atomics.
unsafe impl Sync for Memory {}

/// How large the pages of anonymous memory are.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Pages {
    Small,
    Large,
}

impl Memory {
    /// Maps anonymous memory.
    pub(crate) fn anonymous(len: usize, pages: Pages, populate: bool) -> io::Result<Self> {
        let mut flags = MapFlags::PRIVATE;
        // Large pages depend on an advice, which comes afterwards.
        if populate && pages == Pages::Small {
            flags |= MapFlags::POPULATE;
        }
        let spare = if pages == Pages::Large { LARGE } else { 0 };
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: The kernel chooses a free address.
        let mapped = unsafe { mm::mmap_anonymous(ptr::null_mut(), len + spare, prot, flags) }?;
        let start = (mapped as usize).next_multiple_of(spare.max(PAGE));
        let memory = Self {
            start: start as *mut u8,
            len,
            mapped: (mapped, len + spare),
        };
        if pages == Pages::Large {
            memory.advise(Advice::LinuxHugepage)?;
            if populate {
                memory.advise(Advice::LinuxPopulateWrite)?;
            }
        }
        Ok(memory)
    }

    /// Maps a file.
    pub(crate) fn of(file: impl AsFd, len: usize, populate: bool) -> io::Result<Self> {
        let mut flags = MapFlags::SHARED;
        if populate {
            flags |= MapFlags::POPULATE;
        }
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: The kernel chooses a free address.
        let start = unsafe { mm::mmap(ptr::null_mut(), len, prot, flags, file, 0) }?;
        Ok(Self {
            start: start.cast(),
            len,
            mapped: (start, len),
        })
    }

    fn advise(&self, advice: Advice) -> io::Result<()> {
        // SAFETY: The range is ours, and no advice that is used here changes contents.
        unsafe { mm::madvise(self.start.cast(), self.len, advice) }?;
        Ok(())
    }

    /// Returns the address of the first byte.
    pub(crate) fn start(&self) -> *mut u8 {
        self.start
    }

    /// Returns the size in bytes.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: It's the range that was mapped, and nobody uses it any more.
        let _ = unsafe { mm::munmap(self.mapped.0, self.mapped.1) };
    }
}

/// Makes a memory file.
pub(crate) fn memfd(len: usize) -> io::Result<OwnedFd> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = rustix::fs::memfd_create("p2m-bench", flags)?;
    rustix::fs::ftruncate(&file, len as u64)?;
    Ok(file)
}

/// Calls an ioctl, and returns what it returns.
///
/// # Safety
///
/// `argument` is what the command asks for.
unsafe fn ioctl<T>(file: impl AsFd, command: u32, argument: &mut T) -> io::Result<i32> {
    // SAFETY: The caller vouches for the argument.
    let result = unsafe {
        libc::ioctl(
            file.as_fd().as_raw_fd(),
            libc::Ioctl::from(command),
            ptr::from_mut(argument),
        )
    };
    match result {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

/// Returns the number of a command, as `_IOC()` of `asm-generic/ioctl.h`: who reads and writes, the
/// type, the number and the size of the argument.
const fn command(direction: u32, kind: u8, number: u8, size: usize) -> u32 {
    // CAST: An argument is small.
    (direction << 30) | ((size as u32) << 16) | ((kind as u32) << 8) | number as u32
}

/// `struct udmabuf_create` of `linux/udmabuf.h`.
#[repr(C)]
struct UdmabufCreate {
    memfd: u32,
    flags: u32,
    offset: u64,
    size: u64,
}

/// Makes a DMA buffer of a memory file.
pub(crate) fn udmabuf(len: usize) -> io::Result<OwnedFd> {
    const UDMABUF_CREATE: u32 = command(1, b'u', 0x42, size_of::<UdmabufCreate>());
    const CLOEXEC: u32 = 1;
    let limit = "/sys/module/udmabuf/parameters/size_limit_mb";
    fs::write(limit, (len >> 20).max(64).to_string())?;
    let memfd = memfd(len)?;
    rustix::fs::fcntl_add_seals(&memfd, SealFlags::SHRINK)?;
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/udmabuf")?;
    let mut create = UdmabufCreate {
        memfd: memfd.as_raw_fd().unsigned_abs(),
        flags: CLOEXEC,
        offset: 0,
        size: len as u64,
    };
    // SAFETY: It's the argument of this command.
    let fd = unsafe { ioctl(&device, UDMABUF_CREATE, &mut create) }?;
    // SAFETY: It's a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `struct dma_heap_allocation_data` of `linux/dma-heap.h`.
#[repr(C)]
struct DmaHeapAllocation {
    len: u64,
    fd: u32,
    fd_flags: u32,
    heap_flags: u64,
}

/// Allocates a DMA buffer from the system heap.
pub(crate) fn dma_heap(len: usize) -> io::Result<OwnedFd> {
    const DMA_HEAP_IOCTL_ALLOC: u32 = command(3, b'H', 0, size_of::<DmaHeapAllocation>());
    let heap = File::open("/dev/dma_heap/system")?;
    let mut allocation = DmaHeapAllocation {
        len: len as u64,
        fd: 0,
        fd_flags: (libc::O_RDWR | libc::O_CLOEXEC).unsigned_abs(),
        heap_flags: 0,
    };
    // SAFETY: It's the argument of this command.
    unsafe { ioctl(&heap, DMA_HEAP_IOCTL_ALLOC, &mut allocation) }?;
    // CAST: A descriptor is small.
    // SAFETY: It's a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(allocation.fd as i32) })
}

/// `struct page_region` of `linux/fs.h`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(crate) struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg` of `linux/fs.h`.
#[repr(C)]
#[derive(Default)]
struct ScanArgument {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// Scans memory for present pages, and returns how many regions of them there are.
pub(crate) fn pagemap_scan(
    pagemap: &File,
    (start, len): (usize, usize),
    regions: &mut [PageRegion],
) -> io::Result<usize> {
    const PAGEMAP_SCAN: u32 = command(3, b'f', 16, size_of::<ScanArgument>());
    const PAGE_IS_PRESENT: u64 = 1 << 3;
    let mut argument = ScanArgument {
        size: size_of::<ScanArgument>() as u64,
        start: start as u64,
        end: (start + len) as u64,
        vec: regions.as_mut_ptr() as u64,
        vec_len: regions.len() as u64,
        category_mask: PAGE_IS_PRESENT,
        return_mask: PAGE_IS_PRESENT,
        ..ScanArgument::default()
    };
    // SAFETY: It's the argument of this command, and the regions are a slice of that many.
    let nr = unsafe { ioctl(pagemap, PAGEMAP_SCAN, &mut argument) }?;
    Ok(usize::try_from(nr).unwrap_or(0))
}

/// Returns the NUMA nodes that have memory.
pub(crate) fn nodes() -> Vec<u32> {
    let text = fs::read_to_string("/sys/devices/system/node/has_memory").unwrap_or_default();
    let bounds = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    let ranges = text.trim().split(',').filter_map(bounds);
    ranges
        .flat_map(|(first, last): (u32, u32)| first..=last)
        .collect()
}

/// Moves all pages of memory to a node, and returns how many are there then.
pub(crate) fn move_pages(memory: &Memory, node: u32) -> io::Result<usize> {
    const MPOL_MF_MOVE: libc::c_int = 1 << 1;
    let nr = memory.len() / PAGE;
    let pages: Vec<*mut u8> = (0..nr)
        .map(|number| memory.start().wrapping_add(number * PAGE))
        .collect();
    // CAST: A node is a small number.
    let node = node as i32;
    let nodes = vec![node; nr];
    let mut status = vec![-1; nr];
    // SAFETY: All arrays are of that size.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_pages,
            0,
            nr,
            pages.as_ptr(),
            nodes.as_ptr(),
            status.as_mut_ptr(),
            MPOL_MF_MOVE,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(status.iter().filter(|&&at| at == node).count())
}

/// Moves all pages of this process from a node to another one.
pub(crate) fn migrate_pages(from: u32, to: u32) -> io::Result<()> {
    let (from, to) = (1_u64 << from, 1_u64 << to);
    // SAFETY: Both are sets of 64 nodes.
    let result = unsafe {
        libc::syscall(
            libc::SYS_migrate_pages,
            0,
            u64::from(u64::BITS),
            ptr::from_ref(&from),
            ptr::from_ref(&to),
        )
    };
    match result {
        0.. => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has memory that is touched from now on be on a node.
pub(crate) fn prefer(node: u32) -> io::Result<()> {
    const MPOL_PREFERRED: libc::c_int = 1;
    let nodes = 1_u64 << node;
    // SAFETY: It's a set of 64 nodes.
    let result = unsafe {
        libc::syscall(
            libc::SYS_set_mempolicy,
            MPOL_PREFERRED,
            ptr::from_ref(&nodes),
            u64::from(u64::BITS),
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
