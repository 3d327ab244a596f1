// SPDX-License-Identifier: GPL-2.0

//! Spaces: page tables of a domain, which are built through a backend.

use core::fmt;
use core::ops::Range;
use std::os::fd::AsFd;
use std::vec;

use rustix::io::{self, Errno};
use serde::Serialize;

use crate::abi;
use crate::domain::Domain;
use crate::error::{Attempt, Error, Operation, Result};
use crate::frame::Pfn;
use crate::paging::{Address, Level, PteFlags, Span, Walk};

/// How many spans one ioctl is asked for.
const BATCH: usize = 512;

/// The number by which a domain knows a space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct SpaceId(pub u32);

impl fmt::Display for SpaceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A space of a domain.
///
/// This is a name for it, which anyone who has the domain can use. As a region does, the space itself
/// lives until it's destroyed or the domain ends, whoever made it.
#[derive(Clone, Copy, Debug)]
pub struct Space<'a> {
    domain: &'a Domain,
    id: SpaceId,
}

/// What is known of a space.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SpaceInfo {
    /// The number by which the domain knows it.
    pub space: SpaceId,
    /// What decides what is in its tables.
    pub backend: String,
    /// Number of levels of tables.
    pub levels: u32,
    /// First page of the table pool.
    pub pool_pfn: Pfn,
    /// Number of pages in the table pool.
    pub pool_pages: u64,
    /// The page that is the root table.
    pub root_pfn: Pfn,
    /// How many pages of the pool are tables.
    pub tables: u64,
}

impl SpaceInfo {
    fn new(raw: &abi::p2m_space_info) -> Self {
        let name = raw.backend.split(|byte| *byte == 0).next();
        Self {
            space: SpaceId(raw.space),
            backend: String::from_utf8_lossy(name.unwrap_or_default()).into_owned(),
            levels: raw.nr_levels,
            pool_pfn: Pfn(raw.pool_pfn),
            pool_pages: raw.pool_pages,
            root_pfn: Pfn(raw.root_pfn),
            tables: raw.nr_tables,
        }
    }
}

/// What came of an access by the processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Accessed {
    /// How many words were accessed.
    pub words: u64,
    /// FNV-1a, 64 bits wide, of their bytes.
    pub checksum: u64,
    /// What ended it early.
    pub fault: Option<Fault>,
}

/// A page fault that the processor raised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Fault {
    /// The address that it couldn't access.
    pub address: Address,
    /// Whether there is a page, which forbids this.
    pub protection: bool,
    /// Whether it was a write.
    pub write: bool,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = if self.write { "write" } else { "read" };
        let reason = if self.protection {
            "the page doesn't allow it"
        } else {
            "no page is present"
        };
        write!(f, "page fault by a {access} at {}: {reason}", self.address)
    }
}

impl Domain {
    /// Creates a space, of which the tables come from the pages of `pool`.
    pub fn space(&self, backend: &str, nr_levels: u32, pool: Range<Pfn>) -> Result<Space<'_>> {
        let create = || {
            let mut raw = abi::p2m_space_create::new();
            // One byte stays for the NUL.
            let room = raw.backend.len() - 1;
            if backend.len() > room {
                return Err(Errno::NOENT);
            }
            for (place, byte) in raw.backend.iter_mut().zip(backend.bytes()) {
                *place = byte;
            }
            raw.nr_levels = nr_levels;
            raw.pool_pfn = pool.start.0;
            raw.pool_pages = pool.end.0.saturating_sub(pool.start.0);
            // SAFETY: There is no pointer in it.
            unsafe { raw.call(self.as_fd()) }?;
            Ok(SpaceId(raw.out_space))
        };
        let id = create().attempt(Operation::SpaceCreate)?;
        Ok(self.space_by_id(id))
    }

    /// Returns the spaces in the order of their numbers.
    pub fn spaces(&self) -> Result<Vec<SpaceInfo>> {
        let mut spaces: Vec<SpaceInfo> = Vec::new();
        let mut buffer = vec![abi::p2m_space_info::default(); BATCH];
        loop {
            let mut raw = abi::p2m_space_list::new();
            raw.start_space = match spaces.last() {
                Some(last) => last.space.0.saturating_add(1),
                None => 0,
            };
            raw.nr = BATCH as u32;
            raw.spaces = buffer.as_mut_ptr() as u64;
            // SAFETY: `spaces` points to `nr` elements.
            unsafe { raw.call(self.as_fd()) }.attempt(Operation::SpaceList)?;
            let stored = buffer.iter().take(raw.out_nr as usize);
            spaces.extend(stored.map(SpaceInfo::new));
            if raw.out_nr == 0 || raw.out_nr >= raw.out_total {
                return Ok(spaces);
            }
        }
    }

    /// Names a space that is there already. If it isn't, all that is done with it fails.
    pub fn space_by_id(&self, id: SpaceId) -> Space<'_> {
        Space { domain: self, id }
    }

    /// Returns the number of pages between two addresses.
    fn pages_between(&self, range: &Range<Address>) -> io::Result<u64> {
        let bytes = range.end.0.saturating_sub(range.start.0);
        let page = self.info().page_bytes();
        if bytes % page != 0 {
            return Err(Errno::INVAL);
        }
        Ok(bytes / page)
    }
}

impl<'a> Space<'a> {
    /// Returns the number by which the domain knows it.
    pub fn id(&self) -> SpaceId {
        self.id
    }

    /// Destroys the space. The pages of its tables stay in the domain.
    pub fn destroy(self) -> Result<()> {
        let mut raw = abi::p2m_space_destroy::new();
        raw.space = self.id.0;
        // SAFETY: There is no pointer in it.
        unsafe { raw.call(self.domain.as_fd()) }.attempt(Operation::SpaceDestroy)
    }

    /// Maps frames from an address on, in leaves up to `max_level` where the frames allow it.
    pub fn map(
        &self,
        address: Address,
        frames: Range<Pfn>,
        flags: PteFlags,
        max_level: Level,
    ) -> Result<()> {
        let mut raw = abi::p2m_space_map::new();
        raw.space = self.id.0;
        raw.max_level = max_level.0;
        raw.address = address.0;
        raw.pfn = frames.start.0;
        raw.nr_pages = frames.end.0.saturating_sub(frames.start.0);
        raw.pte_flags = leaf_bits(flags);
        // SAFETY: There is no pointer in it.
        unsafe { raw.call(self.domain.as_fd()) }.attempt(Operation::SpaceMap)
    }

    /// Unmaps what is mapped in a range, and returns how many pages that were.
    pub fn unmap(&self, range: Range<Address>) -> Result<u64> {
        let mut raw = abi::p2m_space_unmap::new();
        raw.space = self.id.0;
        raw.address = range.start.0;
        let result = self.domain.pages_between(&range).and_then(|nr_pages| {
            raw.nr_pages = nr_pages;
            // SAFETY: There is no pointer in it.
            unsafe { raw.call(self.domain.as_fd()) }
        });
        result.attempt_halfway(Operation::SpaceUnmap, raw.out_pages)?;
        Ok(raw.out_pages)
    }

    /// Unmaps all that is mapped, and returns how many pages that were.
    pub fn unmap_all(&self) -> Result<u64> {
        let mut raw = abi::p2m_space_unmap::new();
        raw.flags = abi::P2M_UNMAP_ALL;
        raw.space = self.id.0;
        // SAFETY: There is no pointer in it.
        let result = unsafe { raw.call(self.domain.as_fd()) };
        result.attempt_halfway(Operation::SpaceUnmap, raw.out_pages)?;
        Ok(raw.out_pages)
    }

    /// Gives all leaves of a range other flags, and returns how many pages that are. What was
    /// accessed or dirty remains so.
    pub fn protect(&self, range: Range<Address>, flags: PteFlags) -> Result<u64> {
        let nr_pages = self.domain.pages_between(&range);
        let nr_pages = nr_pages.attempt(Operation::SpaceProtect)?;
        let mut raw = abi::p2m_space_change::new();
        raw.address = range.start.0;
        raw.nr_pages = nr_pages;
        raw.value = leaf_bits(flags);
        self.change(raw, Operation::SpaceProtect)
    }

    /// Maps other frames from an address on, with the flags that are there, and returns how many
    /// pages that are.
    pub fn remap(&self, address: Address, frames: Range<Pfn>) -> Result<u64> {
        let mut raw = abi::p2m_space_change::new();
        raw.flags = abi::P2M_CHANGE_FRAMES;
        raw.address = address.0;
        raw.nr_pages = frames.end.0.saturating_sub(frames.start.0);
        raw.value = frames.start.0;
        self.change(raw, Operation::SpaceRemap)
    }

    fn change(&self, mut raw: abi::p2m_space_change, operation: Operation) -> Result<u64> {
        raw.space = self.id.0;
        // SAFETY: There is no pointer in it.
        let result = unsafe { raw.call(self.domain.as_fd()) };
        result.attempt_halfway(operation, raw.out_pages)?;
        Ok(raw.out_pages)
    }

    /// Returns the way through the tables to an address.
    pub fn walk(&self, address: Address) -> Result<Walk> {
        let mut raw = abi::p2m_space_walk::new();
        raw.space = self.id.0;
        raw.address = address.0;
        // SAFETY: There is no pointer in it.
        unsafe { raw.call(self.domain.as_fd()) }.attempt(Operation::SpaceWalk)?;
        let steps = raw.out_steps.iter().take(raw.out_nr_steps as usize);
        Ok(Walk {
            address,
            steps: steps.map(Into::into).collect(),
        })
    }

    /// Iterates over what is mapped from an address on, in order.
    pub fn spans(&self, start: Address) -> Spans<'a> {
        Spans {
            space: *self,
            next: Some(start),
            batch: Vec::new().into_iter(),
        }
    }

    /// Has the processor read words from an address on.
    pub fn read(&self, address: Address, words: &mut [u64]) -> Result<Accessed> {
        let mut accessed = self.access_parts(address, words.len(), |address, part| {
            let part = &mut words[part];
            // SAFETY: The buffer points to as many words as there are, which may be written to.
            unsafe { self.access(abi::P2M_ACCESS_READ, address, part.as_mut_ptr(), part.len()) }
        })?;
        accessed.checksum = checksum(words.iter().take(accessed.words as usize));
        Ok(accessed)
    }

    /// Has the processor write words from an address on.
    pub fn write(&self, address: Address, words: &[u64]) -> Result<Accessed> {
        let mut accessed = self.access_parts(address, words.len(), |address, part| {
            let part = &words[part];
            let buffer = part.as_ptr().cast_mut();
            // SAFETY: The buffer points to as many words as there are, and is only read.
            unsafe { self.access(abi::P2M_ACCESS_WRITE, address, buffer, part.len()) }
        })?;
        accessed.checksum = checksum(words.iter().take(accessed.words as usize));
        Ok(accessed)
    }

    /// Has the processor read words from an address on, only for their checksum. At most
    /// [`MAX_WORDS`](Self::MAX_WORDS) have one.
    pub fn checksum(&self, address: Address, nr_words: usize) -> Result<Accessed> {
        let access = || {
            if nr_words > Self::MAX_WORDS {
                return Err(Errno::INVAL);
            }
            let op = abi::P2M_ACCESS_CHECKSUM;
            // SAFETY: The buffer isn't used.
            unsafe { self.access(op, address, core::ptr::null_mut(), nr_words) }
        };
        access().attempt(Operation::SpaceAccess)
    }

    /// How many words the processor accesses at once.
    pub const MAX_WORDS: usize = abi::P2M_MAX_ACCESS_WORDS as usize;

    /// Accesses as many words at once as can be, until all are or there is a fault. The checksum is
    /// that of the last part.
    fn access_parts(
        &self,
        address: Address,
        nr_words: usize,
        mut access: impl FnMut(Address, Range<usize>) -> io::Result<Accessed>,
    ) -> Result<Accessed> {
        let mut words = 0;
        let mut start = 0;
        loop {
            let end = nr_words.min(start + Self::MAX_WORDS);
            let offset = (start * size_of::<u64>()) as u64;
            let address = Address(address.0.wrapping_add(offset));
            let part = access(address, start..end).attempt(Operation::SpaceAccess)?;
            words += part.words;
            if end == nr_words || part.fault.is_some() {
                return Ok(Accessed { words, ..part });
            }
            start = end;
        }
    }

    /// Has the processor access words.
    ///
    /// # Safety
    ///
    /// `buffer` points to `nr_words` words if `op` uses it, which may be written to if it reads.
    unsafe fn access(
        &self,
        op: u32,
        address: Address,
        buffer: *mut u64,
        nr_words: usize,
    ) -> io::Result<Accessed> {
        let mut raw = abi::p2m_space_access::new();
        raw.space = self.id.0;
        raw.op = op;
        raw.address = address.0;
        raw.buffer = buffer as u64;
        raw.nr_words = nr_words as u32;
        // SAFETY: By the safety requirements of this function.
        unsafe { raw.call(self.domain.as_fd()) }?;
        let has = |bit| raw.out_fault & bit != 0;
        Ok(Accessed {
            words: raw.out_words.into(),
            checksum: raw.out_checksum,
            fault: has(abi::P2M_FAULT_RAISED).then(|| Fault {
                address: Address(raw.out_fault_address),
                protection: has(abi::P2M_FAULT_PROTECTION),
                write: has(abi::P2M_FAULT_WRITE),
            }),
        })
    }
}

/// Returns FNV-1a of the bytes of words, as the module does.
fn checksum<'a>(words: impl IntoIterator<Item = &'a u64>) -> u64 {
    const BASIS: u64 = 0xcbf2_9ce4_8422_2325;
    const PRIME: u64 = 0x0100_0000_01b3;
    let bytes = words.into_iter().flat_map(|word| word.to_le_bytes());
    bytes.fold(BASIS, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(PRIME)
    })
}

/// Returns the flags to ask for: a leaf is present anyway, and the kernel takes no other bits.
fn leaf_bits(flags: PteFlags) -> u64 {
    flags.bits() & !PteFlags::PRESENT.bits()
}

/// Iterator over what is mapped in a space, by [`Space::spans()`].
#[derive(Debug)]
pub struct Spans<'a> {
    space: Space<'a>,
    /// Where to go on.
    next: Option<Address>,
    /// What was answered.
    batch: vec::IntoIter<Span>,
}

impl Spans<'_> {
    fn next_batch(&mut self, start: Address) -> Result<()> {
        let operation = Operation::SpaceDump;
        let mut buffer = vec![abi::p2m_span::default(); BATCH];
        let mut raw = abi::p2m_space_dump::new();
        raw.space = self.space.id.0;
        raw.nr = BATCH as u32;
        raw.address = start.0;
        raw.spans = buffer.as_mut_ptr() as u64;
        // SAFETY: `spans` points to `nr` elements.
        unsafe { raw.call(self.space.domain.as_fd()) }.attempt(operation)?;
        // An answer that leads nowhere would be asked for forever.
        if raw.out_next != 0 && raw.out_next <= start.0 {
            return Err(Error::Short { operation });
        }
        self.next = (raw.out_next != 0).then_some(Address(raw.out_next));
        let stored = buffer.iter().take(raw.out_nr as usize);
        let spans: Vec<_> = stored.map(Span::from).collect();
        self.batch = spans.into_iter();
        Ok(())
    }
}

impl Iterator for Spans<'_> {
    type Item = Result<Span>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(span) = self.batch.next() {
                return Some(Ok(span));
            }
            // What failed once is not asked again.
            let start = self.next.take()?;
            if let Err(error) = self.next_batch(start) {
                return Some(Err(error));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_present_bit_is_not_asked_for() {
        let flags = PteFlags::PRESENT | PteFlags::RW | PteFlags::NX;
        assert_eq!(leaf_bits(flags), 2 | (1 << 63));
    }

    #[test]
    fn a_fault_says_what_was_wrong() {
        let fault = Fault {
            address: Address(0x7008),
            protection: true,
            write: true,
        };
        assert_eq!(
            fault.to_string(),
            "page fault by a write at 0x7008: the page doesn't allow it"
        );
        let fault = Fault {
            protection: false,
            write: false,
            ..fault
        };
        assert!(fault.to_string().ends_with("no page is present"));
    }

    #[test]
    fn accesses_go_on_until_a_fault() {
        let domain = crate::domain::tests::fake(&[]);
        let space = domain.space_by_id(SpaceId(1));
        let most = Space::MAX_WORDS;
        let fault = Some(Fault {
            address: Address(0x99),
            protection: false,
            write: false,
        });
        // A fault in the part of this number.
        for (faulting, words) in [(0, 5), (1, most + 5), (9, 2 * most + 3)] {
            let mut next = Address(0x1000);
            let mut parts = 0;
            let total = space.access_parts(next, 2 * most + 3, |address, range| {
                assert_eq!(address, next);
                next.0 += 8 * range.len() as u64;
                let is_faulting = parts == faulting;
                parts += 1;
                Ok(Accessed {
                    words: if is_faulting { 5 } else { range.len() as u64 },
                    checksum: 0,
                    fault: fault.filter(|_| is_faulting),
                })
            });
            let total = total.expect("no errors here");
            assert_eq!(total.words, words as u64);
            assert_eq!(total.fault.is_some(), faulting < 3);
        }
    }

    #[test]
    fn checksums_are_those_that_everybody_has() {
        assert_eq!(checksum(&[]), 0xcbf2_9ce4_8422_2325);
        let word = u64::from_le_bytes(*b"chongo w");
        assert_eq!(checksum(&[word]), 0xd1ed_d10b_5073_44d0);
        assert_ne!(checksum(&[1, 2]), checksum(&[2, 1]));
    }

    #[test]
    fn a_checksum_of_too_much_is_refused() {
        let domain = crate::domain::tests::fake(&[]);
        let space = domain.space_by_id(SpaceId(1));
        let errno = |nr| {
            let result = space.checksum(Address(0), nr);
            result.expect_err("a file").errno()
        };
        assert_eq!(errno(Space::MAX_WORDS), Some(Errno::NOTTY));
        assert_eq!(errno(Space::MAX_WORDS + 1), Some(Errno::INVAL));
    }

    #[test]
    fn only_whole_pages_are_asked_for() {
        let domain = crate::domain::tests::fake(&[]);
        let space = domain.space_by_id(SpaceId(1));
        for end in [0x1001, 0x1fff] {
            let error = space.unmap(Address(0x1000)..Address(end));
            assert_eq!(error.expect_err("no page").errno(), Some(Errno::INVAL));
        }
    }

    #[test]
    fn a_name_that_is_too_long_is_no_backend() {
        let domain = crate::domain::tests::fake(&[]);
        let create = |name: &str| {
            domain
                .space(name, 4, Pfn(0)..Pfn(9))
                .map(|space| space.id())
        };
        let errno = |name: &str| create(name).expect_err("a file").errno();
        assert_eq!(errno(&"x".repeat(32)), Some(Errno::NOENT));
        assert_eq!(errno(&"x".repeat(31)), Some(Errno::NOTTY));
    }

    #[test]
    fn a_name_ends_with_its_nul() {
        let mut raw = abi::p2m_space_info {
            space: 7,
            ..Default::default()
        };
        raw.backend[..5].copy_from_slice(b"p2m\0x");
        let info = SpaceInfo::new(&raw);
        assert_eq!((info.space, info.backend.as_str()), (SpaceId(7), "p2m"));
    }

    #[test]
    fn spans_end_with_the_first_error() {
        let domain = crate::domain::tests::fake(&[]);
        let spans: Vec<_> = domain.space_by_id(SpaceId(1)).spans(Address(0)).collect();
        assert_eq!(spans.len(), 1);
        assert!(spans[0].is_err());
    }
}
