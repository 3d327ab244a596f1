// SPDX-License-Identifier: GPL-2.0

//! `/dev/p2m_crash`.

use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::io::Errno;
use serde::Serialize;

use crate::abi;
use crate::error::{self, Error, Refusal, Result};
use crate::image::Image;

/// The device node.
pub const DEVICE: &str = p2m_abi::text(abi::P2M_CRASH_DEVICE);

/// What the segments of a window have to say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Info {
    /// The address at which windows begin.
    pub base: u64,
    /// Physical address and size in bytes of the note of the processor that panics.
    pub note: (u64, u64),
    /// Frequency of the time stamp counter, if it's known.
    pub tsc_khz: Option<u64>,
    /// Levels of the nested page tables.
    pub nr_levels: u32,
    /// How many IOMMUs can be used.
    pub nr_iommus: u32,
    /// Another number whenever memory or processors were added or removed, 0 if that isn't known.
    pub generation: u64,
}

/// How a window is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Bytes without which the crash kernel isn't started.
    pub min_memory: u64,
    /// Bytes from the beginning of the window on that have frames from now on.
    pub held_memory: u64,
    /// Whether all of them do.
    pub hold_all: bool,
    /// Whether devices get the window by the IOMMUs.
    pub iommu: bool,
    /// Whether the crash kernel gets the low memory that was taken.
    pub low: bool,
    /// That of the information that was used.
    pub generation: u64,
}

/// Low memory comes in multiples of so many bytes.
pub const LOW_GRAIN: u64 = abi::P2M_CRASH_LOW_GRAIN as u64;

/// There can't be more bytes of low memory.
pub const MAX_LOW: u64 = abi::P2M_CRASH_MAX_LOW as u64;

/// No window has more bytes.
pub const MAX_MEMORY: u64 = abi::P2M_CRASH_MAX_MEMORY as u64;

/// How things are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Whether a crash kernel is loaded. If none is, there is nothing but `free`.
    pub loaded: bool,
    /// Whether devices get the window by the IOMMUs.
    pub iommu: bool,
    /// The address at which the window begins.
    pub base: u64,
    /// Size of the window in bytes.
    pub memory: u64,
    /// Bytes without which the crash kernel isn't started.
    pub min_memory: u64,
    /// Bytes of the window that have frames.
    pub held: u64,
    /// Bytes of page tables and state.
    pub tables: u64,
    /// Bytes that are free now.
    pub free: u64,
    /// Bytes that the window would have if the kernel panicked now.
    pub would_get: u64,
    /// Bytes of low memory that are held.
    pub low: u64,
    /// Whether memory or processors were added or removed since it was loaded.
    pub stale: bool,
}

/// An open `/dev/p2m_crash`.
#[derive(Debug)]
pub struct Crash {
    fd: OwnedFd,
}

fn attempt(what: &'static str) -> impl FnOnce(Errno) -> Error {
    move |source| Error::Device { what, source }
}

impl Crash {
    /// Opens the device, for which CAP_SYS_BOOT is needed.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let fd = open(path, flags, Mode::empty()).map_err(attempt(error::OPEN))?;
        Ok(Self { fd })
    }

    /// Waits until nobody else has it locked, and locks it for as long as it's open: for who looks at
    /// what is loaded before loading something.
    pub fn lock(&self) -> Result<()> {
        flock(&self.fd, FlockOperation::LockExclusive).map_err(attempt(error::LOCK))
    }

    /// Returns what windows have to say, or why there can't be one.
    pub fn info(&self) -> Result<Info> {
        let mut info = abi::p2m_crash_info::new();
        // SAFETY: There is no pointer in it.
        unsafe { info.call(self.fd.as_fd()) }.map_err(attempt(error::INFO))?;
        match Refusal::from_number(info.out_refusal) {
            Some(refusal) => Err(Error::Refused(refusal)),
            None => Ok(Info {
                base: info.out_base,
                note: (info.out_note, info.out_note_size),
                tsc_khz: (info.out_tsc_khz != 0).then_some(info.out_tsc_khz),
                nr_levels: info.out_nr_levels,
                nr_iommus: info.out_nr_iommus,
                generation: info.out_generation,
            }),
        }
    }

    /// Takes low memory for the next crash kernel that is loaded, and returns where it is.
    pub fn take_low(&self, bytes: u64) -> Result<Vec<Range<u64>>> {
        // More than there can be is for the module to refuse.
        let nr = (bytes.min(MAX_LOW) / LOW_GRAIN) as usize;
        let mut ranges = vec![abi::p2m_crash_range::default(); nr];
        let mut low = abi::p2m_crash_low {
            memory: bytes,
            ranges: ranges.as_mut_ptr() as u64,
            nr_ranges: u32::try_from(ranges.len()).unwrap_or(u32::MAX),
            ..abi::p2m_crash_low::new()
        };
        // SAFETY: There are as many elements as it says.
        unsafe { low.call(self.fd.as_fd()) }.map_err(attempt(error::LOW))?;
        ranges.truncate(low.out_nr_ranges as usize);
        let range = |range: &abi::p2m_crash_range| range.start..range.start + range.length;
        Ok(ranges.iter().map(range).collect())
    }

    /// Loads a crash kernel, in the place of one that may be loaded.
    pub fn load(&self, image: &Image, how: Load) -> Result<()> {
        let segments = image.segments()?;
        let raw: Vec<_> = segments
            .iter()
            .map(|segment| abi::p2m_crash_segment {
                data: segment.data.as_ptr() as u64,
                length: segment.data.len() as u64,
                offset: segment.offset,
            })
            .collect();
        let mut load = abi::p2m_crash_load {
            flags: [
                (how.hold_all, abi::P2M_CRASH_HOLD_ALL),
                (how.iommu, abi::P2M_CRASH_IOMMU),
                (how.low, abi::P2M_CRASH_LOW_MEMORY),
            ]
            .iter()
            .filter(|(is_set, _)| *is_set)
            .fold(0, |flags, (_, flag)| flags | flag),
            memory: image.memory(),
            min_memory: how.min_memory,
            held_memory: how.held_memory,
            entry: image.entry(),
            boot_params: image.boot_params(),
            page_tables: image.page_tables(),
            size_slot: image.size_slot(),
            segments: raw.as_ptr() as u64,
            nr_segments: u32::try_from(raw.len()).unwrap_or(u32::MAX),
            generation: how.generation,
            frames: image.frames().start,
            frames_length: image.frames().end - image.frames().start,
            ..abi::p2m_crash_load::new()
        };
        // SAFETY: There are as many segments as it says, and they borrow their data.
        unsafe { load.call(self.fd.as_fd()) }.map_err(attempt(error::LOAD))
    }

    /// Unloads the crash kernel that is loaded.
    pub fn unload(&self) -> Result<()> {
        let mut unload = abi::p2m_crash_unload::new();
        // SAFETY: There is no pointer in it.
        unsafe { unload.call(self.fd.as_fd()) }.map_err(attempt(error::UNLOAD))
    }

    /// Returns how things are.
    pub fn status(&self) -> Result<Status> {
        let mut raw = abi::p2m_crash_status::new();
        // SAFETY: There is no pointer in it.
        unsafe { raw.call(self.fd.as_fd()) }.map_err(attempt(error::STATUS))?;
        Ok(Status {
            loaded: raw.out_loaded != 0,
            iommu: raw.out_flags & abi::P2M_CRASH_IOMMU != 0,
            base: raw.out_base,
            memory: raw.out_memory,
            min_memory: raw.out_min_memory,
            held: raw.out_held,
            tables: raw.out_tables,
            free: raw.out_free,
            would_get: raw.out_would_get,
            low: raw.out_low,
            stale: raw.out_stale != 0,
        })
    }
}
