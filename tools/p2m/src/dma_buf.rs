// SPDX-License-Identifier: GPL-2.0

//! Ranges of a domain as dma-bufs, which drivers import.

use core::ops::Range;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::OFlags;

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

/// Returns the device that attached last, as fdinfo says.
fn last_importer(fdinfo: &str) -> Option<String> {
    let mut lines = fdinfo.lines();
    let device = lines.find_map(|line| line.strip_prefix("p2m-dma-device:\t"));
    device.map(str::to_owned)
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

    /// Returns the device that attached last to a dma-buf of the domain.
    pub fn last_importer(&self) -> io::Result<Option<String>> {
        let fd = self.as_fd().as_raw_fd();
        fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).map(|text| last_importer(&text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fdinfo_names_the_last_device() {
        let text = "pos:\t0\np2m-domain:\t7\np2m-dma-bufs:\t2\np2m-dma-attached:\t1\n\
                    p2m-dma-ever-attached:\t3\np2m-dma-device:\t0000:00:04.0\n";
        assert_eq!(last_importer(text).as_deref(), Some("0000:00:04.0"));
        // An older module says nothing of it.
        assert_eq!(last_importer("pos:\t0\nflags:"), None);
    }
}
