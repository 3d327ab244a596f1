// SPDX-License-Identifier: GPL-2.0

//! Lookups in the tables of a domain without a system call.

use core::mem::offset_of;
use core::sync::atomic::{Ordering, fence};

use crate::abi::p2m_header;
use crate::frame::{Entry, EntryKind, Mfn, Pfn};
use crate::mapping::Mapping;

/// The word of the mapped header that a member is at.
macro_rules! word {
    ($member:ident) => {
        offset_of!(p2m_header, $member) / size_of::<u64>()
    };
}

/// The P2M and the M2P of a domain, mapped read-only.
///
/// It goes on to show the tables as they are, also when regions come and go.
///
/// # Invariants
///
/// `header` has all words of the header.
#[derive(Debug)]
pub struct TableView {
    header: Mapping,
    p2m: Mapping,
    m2p: Mapping,
}

impl TableView {
    /// Makes a view of mappings of the header, the P2M and the M2P, if there is a whole header.
    pub(crate) fn new(header: Mapping, p2m: Mapping, m2p: Mapping) -> Option<Self> {
        // INVARIANT: Checked here.
        (header.len_bytes() >= size_of::<p2m_header>()).then_some(Self { header, p2m, m2p })
    }

    /// Returns what is at a PFN.
    #[inline]
    pub fn lookup(&self, pfn: Pfn) -> Entry {
        self.settled(word!(generation), || {
            if pfn.0 < self.header_word(word!(end_pfn)) {
                self.p2m.load(pfn.0).map_or(Entry::INVALID, Entry::from_raw)
            } else {
                Entry::INVALID
            }
        })
    }

    /// Returns the PFN that a machine frame is at, if it's one of the domain.
    #[inline]
    pub fn reverse(&self, mfn: Mfn) -> Option<Pfn> {
        let claim = self.settled(word!(m2p_generation), || {
            if mfn.0 < self.header_word(word!(end_mfn)) {
                self.m2p.load(mfn.0)
            } else {
                None
            }
        });
        // The M2P is a claim only: what counts is that the P2M names the frame too. This also turns
        // away the word that says that there is no PFN.
        claim
            .map(Pfn)
            .filter(|&pfn| self.lookup(pfn).kind() == EntryKind::Frame(mfn))
    }

    /// Returns what `read` reads while the structure of a table doesn't change.
    ///
    /// The word at `generation` is odd while it does, and has another value afterwards.
    #[inline]
    fn settled<T>(&self, generation: usize, read: impl Fn() -> T) -> T {
        // Nearly always the first look does, and has no use for a loop and its registers.
        match self.look(generation, &read) {
            Some(value) => value,
            None => self.look_again(generation, read),
        }
    }

    #[cold]
    #[inline(never)]
    fn look_again<T>(&self, generation: usize, read: impl Fn() -> T) -> T {
        loop {
            // Whoever changes the structure may need this CPU.
            std::thread::yield_now();
            if let Some(value) = self.look(generation, &read) {
                return value;
            }
        }
    }

    /// Returns what `read` reads, unless the structure of a table changes meanwhile.
    #[inline(always)]
    fn look<T>(&self, generation: usize, read: impl Fn() -> T) -> Option<T> {
        let before = self.header_word(generation);
        if before % 2 != 0 {
            return None;
        }
        // What is read comes after the generation.
        fence(Ordering::Acquire);
        let value = read();
        // And the generation once more after what was read.
        fence(Ordering::Acquire);
        (self.header_word(generation) == before).then_some(value)
    }

    /// Loads a word of the header.
    #[inline(always)]
    fn header_word(&self, index: usize) -> u64 {
        const NR_WORDS: usize = size_of::<p2m_header>() / size_of::<u64>();
        assert!(index < NR_WORDS, "it's a word of the header");
        // SAFETY: By the type invariants, the header has that many words.
        unsafe { self.header.load_unchecked(index) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping::{Access, Populate};
    use std::sync::atomic::AtomicBool;

    /// The tables of a fake domain, and a view of them.
    struct Fake {
        header: Mapping,
        p2m: Mapping,
        m2p: Mapping,
        view: TableView,
    }

    impl Fake {
        fn new() -> Self {
            let [(header, a), (p2m, b), (m2p, c)] = [(); 3].map(|()| {
                let file = tempfile::tempfile().expect("temporary file");
                file.set_len(4096).expect("grow");
                [Access::ReadWrite, Access::Read]
                    .map(|access| Mapping::new(&file, 0, 4096, access, Populate::Lazily))
                    .map(|mapping| mapping.expect("map"))
                    .into()
            });
            let view = TableView::new(a, b, c).expect("a page is large enough");
            Self {
                header,
                p2m,
                m2p,
                view,
            }
        }
    }

    fn store(table: &Mapping, index: u64, word: u64) {
        table.words().expect("writable")[index as usize].store(word, Ordering::Release);
    }

    #[test]
    fn what_is_stored_is_found_in_both_directions() {
        let fake = Fake::new();
        store(&fake.header, word!(end_pfn) as u64, 512);
        store(&fake.header, word!(end_mfn) as u64, 512);
        for pfn in 0..512 {
            store(&fake.p2m, pfn, 511 - pfn);
            store(&fake.m2p, 511 - pfn, pfn);
        }
        for pfn in 0..512 {
            let entry = fake.view.lookup(Pfn(pfn));
            assert_eq!(entry.mfn(), Some(Mfn(511 - pfn)));
            assert_eq!(fake.view.reverse(Mfn(511 - pfn)), Some(Pfn(pfn)));
        }
    }

    #[test]
    fn nothing_is_at_or_above_the_end() {
        let fake = Fake::new();
        store(&fake.header, word!(end_pfn) as u64, 3);
        store(&fake.header, word!(end_mfn) as u64, 3);
        assert_eq!(fake.view.lookup(Pfn(2)).mfn(), Some(Mfn(0)));
        for beyond in [3, 512, u64::MAX] {
            assert_eq!(fake.view.lookup(Pfn(beyond)), Entry::INVALID);
            assert_eq!(fake.view.reverse(Mfn(beyond)), None);
        }
    }

    #[test]
    fn an_m2p_entry_that_the_p2m_does_not_confirm_is_none() {
        let fake = Fake::new();
        store(&fake.header, word!(end_pfn) as u64, 512);
        store(&fake.header, word!(end_mfn) as u64, 512);
        store(&fake.m2p, 5, 7);
        store(&fake.p2m, 7, 6);
        assert_eq!(fake.view.reverse(Mfn(5)), None);
        // Somebody else's frame has no PFN here, whatever the table says.
        store(&fake.p2m, 7, 5 | (1 << 63));
        assert_eq!(fake.view.reverse(Mfn(5)), None);
        store(&fake.p2m, 7, 5);
        assert_eq!(fake.view.reverse(Mfn(5)), Some(Pfn(7)));
    }

    #[test]
    fn no_lookup_returns_what_was_there_during_a_change() {
        const TORN: u64 = 0xbad;
        let fake = Fake::new();
        store(&fake.header, word!(end_pfn) as u64, 1);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for change in 0..20_000 {
                    store(&fake.header, word!(generation) as u64, 2 * change + 1);
                    store(&fake.p2m, 0, TORN);
                    store(&fake.p2m, 0, change % 7);
                    store(&fake.header, word!(generation) as u64, 2 * change + 2);
                }
                done.store(true, Ordering::Relaxed);
            });
            while !done.load(Ordering::Relaxed) {
                assert_ne!(fake.view.lookup(Pfn(0)).raw(), TORN);
            }
        });
    }
}
