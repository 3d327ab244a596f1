// SPDX-License-Identifier: GPL-2.0

//! Ranges of a domain as dma-bufs, which drivers import.

use core::ops::Range;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::OFlags;
use serde::Serialize;

use crate::abi;
use crate::domain::Domain;
use crate::error::{Attempt, Operation, Result};
use crate::frame::Pfn;

/// A dma-buf. Its pages keep their frames as long as somebody has it.
#[derive(Debug)]
pub struct DmaBuf {
    fd: OwnedFd,
}

impl AsFd for DmaBuf {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Who uses the dma-bufs of a domain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Importers {
    /// How many dma-bufs there are.
    pub buffers: u64,
    /// How many attachments of devices there are.
    pub attached: u64,
    /// How many there ever were.
    pub ever_attached: u64,
    /// The device that attached last.
    pub last_device: Option<String>,
}

impl Importers {
    /// Reads what fdinfo says.
    fn parse(text: &str) -> Self {
        let mut importers = Self::default();
        for line in text.lines() {
            let Some((name, value)) = line.split_once(":\t") else {
                continue;
            };
            let number = || value.parse().unwrap_or(0);
            match name {
                "p2m-dma-bufs" => importers.buffers = number(),
                "p2m-dma-attached" => importers.attached = number(),
                "p2m-dma-ever-attached" => importers.ever_attached = number(),
                "p2m-dma-device" => importers.last_device = Some(value.to_owned()),
                _ => (),
            }
        }
        importers
    }
}

impl Domain {
    /// Makes a dma-buf of a range, which can be mapped for loads and stores.
    pub fn export_dma_buf(&self, range: Range<Pfn>) -> Result<DmaBuf> {
        let mut raw = abi::p2m_dma_buf_export::new();
        raw.start_pfn = range.start.0;
        raw.nr_pages = range.end.0.saturating_sub(range.start.0);
        raw.fd_flags = (OFlags::RDWR | OFlags::CLOEXEC).bits();
        // SAFETY: There is no pointer in it.
        unsafe { raw.call(self.as_fd()) }.attempt(Operation::ExportDmaBuf)?;
        // SAFETY: The kernel has made the descriptor for us.
        let fd = unsafe { OwnedFd::from_raw_fd(raw.out_fd) };
        Ok(DmaBuf { fd })
    }

    /// Returns who uses the dma-bufs of the domain.
    pub fn importers(&self) -> io::Result<Importers> {
        let fd = self.as_fd().as_raw_fd();
        fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).map(|text| Importers::parse(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fdinfo_names_the_last_device() {
        let text = "pos:\t0\np2m-domain:\t7\np2m-dma-bufs:\t2\np2m-dma-attached:\t1\n\
                    p2m-dma-ever-attached:\t3\np2m-dma-device:\t0000:00:04.0\n";
        let expected = Importers {
            buffers: 2,
            attached: 1,
            ever_attached: 3,
            last_device: Some("0000:00:04.0".to_owned()),
        };
        assert_eq!(Importers::parse(text), expected);
        // An older module says nothing of it.
        assert_eq!(Importers::parse("pos:\t0\nflags:"), Importers::default());
    }
}
