// SPDX-License-Identifier: GPL-2.0

//! The kernel's own word on which machine frame is mapped where: an oracle that doesn't depend on
//! the module.

use std::fs::File;

use rustix::io::Errno;

use crate::error::{Attempt, Error, Operation, Result};
use crate::frame::Mfn;
use crate::mapping::Mapping;
use crate::words::read_words;

/// "page present", see `Documentation/admin-guide/mm/pagemap.rst`.
const PRESENT: u64 = 1 << 63;

/// "page frame number (PFN) if present", which is an MFN in the words of p2m.
const MFN_MASK: u64 = (1 << 55) - 1;

/// The pagemap of a process.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
}

impl Pagemap {
    /// Opens the pagemap of this process.
    pub fn of_self() -> Result<Self> {
        File::open("/proc/self/pagemap")
            .map(|file| Self { file })
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
            .attempt(Operation::Pagemap)
    }

    /// Returns the machine frames of `nr_pages` pages, of which the first is at `address`.
    ///
    /// A page that is not in the page tables has none. To a reader without `CAP_SYS_ADMIN`, all are
    /// [`Mfn::HIDDEN`].
    pub fn frames(&self, address: usize, nr_pages: usize) -> Result<Vec<Option<Mfn>>> {
        let first = address / rustix::param::page_size();
        let words = read_words(&self.file, first as u64, nr_pages).attempt(Operation::Pagemap)?;
        if words.len() < nr_pages {
            return Err(Error::Short {
                operation: Operation::Pagemap,
            });
        }
        Ok(words.into_iter().map(decode).collect())
    }

    /// Returns the machine frames of a mapping in this process.
    pub fn frames_of(&self, memory: &Mapping) -> Result<Vec<Option<Mfn>>> {
        let nr_pages = memory.len_bytes() / rustix::param::page_size();
        self.frames(memory.as_ptr() as usize, nr_pages)
    }
}

fn decode(word: u64) -> Option<Mfn> {
    (word & PRESENT != 0).then_some(Mfn(word & MFN_MASK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_present_page_has_a_frame() {
        assert_eq!(decode(0), None);
        assert_eq!(decode(PRESENT - 1), None);
        assert_eq!(decode(PRESENT), Some(Mfn::HIDDEN));
        assert_eq!(decode(u64::MAX), Some(Mfn(MFN_MASK)));
        assert_eq!(decode(PRESENT | 0x1234), Some(Mfn(0x1234)));
    }

    #[test]
    fn a_page_in_use_is_present() {
        let page = Box::new([1u8; 8192]);
        let pagemap = Pagemap::of_self().expect("pagemap");
        let frames = pagemap.frames(page.as_ptr() as usize, 2).expect("frames");
        assert!(frames.iter().all(Option::is_some), "{frames:?}");
    }

    #[test]
    fn pages_beyond_the_address_space_are_an_error() {
        let pagemap = Pagemap::of_self().expect("pagemap");
        let beyond = 0usize.wrapping_sub(4096);
        assert!(pagemap.frames(beyond, 1).is_err());
    }
}
