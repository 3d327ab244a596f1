// SPDX-License-Identifier: GPL-2.0

//! Entries and their words.

use std::collections::BTreeMap;

use p2m_pure::entry::{Entry, FOREIGN, IDENTITY, INVALID};
use p2m_pure::frame::{Mfn, Pfn, PAGE_SHIFT};
use p2m_pure::map::header;
use proptest::prelude::*;

/// Frame numbers at the limits of everything, some of which are none.
const NUMBERS: [u64; 14] = [
    0,
    1,
    2,
    511,
    512,
    Pfn::LIMIT - 1,
    Pfn::LIMIT,
    Mfn::LIMIT - 2,
    Mfn::LIMIT - 1,
    Mfn::LIMIT,
    Mfn::LIMIT + 1,
    1 << 52,
    1 << 61,
    (1 << 62) - 1,
];

const KINDS: [fn(Mfn) -> Entry; 3] = [Entry::Present, Entry::Foreign, Entry::Identity];

fn mfns() -> impl Iterator<Item = Mfn> {
    NUMBERS.into_iter().filter_map(Mfn::new)
}

/// All entries that the numbers above make.
fn entries() -> impl Iterator<Item = Entry> {
    let some = mfns().flat_map(|mfn| KINDS.map(|kind| kind(mfn)));
    some.chain([Entry::Invalid])
}

#[test]
fn every_word_is_an_entry() {
    for number in NUMBERS {
        let mfn = Mfn::new(number);
        for (tag, kind) in [(0, KINDS[0]), (FOREIGN, KINDS[1]), (IDENTITY, KINDS[2])] {
            let expected = mfn.map_or(Entry::Invalid, kind);
            assert_eq!(Entry::from_raw(number | tag), expected, "{number:#x}");
        }
        let both = number | FOREIGN | IDENTITY;
        assert_eq!(Entry::from_raw(both), Entry::Invalid, "{both:#x}");
    }
    assert_eq!(Entry::from_raw(INVALID), Entry::Invalid);
}

#[test]
fn entries_survive_being_words() {
    for entry in entries() {
        assert_eq!(Entry::from_raw(entry.raw()), entry);
    }
}

#[test]
fn different_entries_are_different_words() {
    let all: Vec<Entry> = entries().collect();
    let words: BTreeMap<u64, Entry> = all.iter().map(|entry| (entry.raw(), *entry)).collect();
    assert_eq!(words.len(), all.len());
}

#[test]
fn only_present_entries_are_owned() {
    for mfn in mfns() {
        assert_eq!(Entry::Present(mfn).owned(), Some(mfn));
        assert_eq!(Entry::Foreign(mfn).owned(), None);
        assert_eq!(Entry::Identity(mfn).owned(), None);
        for kind in KINDS {
            assert_eq!(kind(mfn).mfn(), Some(mfn));
        }
    }
    assert_eq!(Entry::Invalid.owned(), None);
    assert_eq!(Entry::Invalid.mfn(), None);
}

#[test]
fn a_redacted_entry_tells_its_kind_only() {
    for kind in KINDS {
        for mfn in mfns() {
            assert_eq!(kind(mfn).redacted(), kind(Mfn::ZERO));
        }
    }
    assert_eq!(Entry::Invalid.redacted(), Entry::Invalid);
}

#[test]
fn entries_advance_as_their_frames_do() {
    for nr in NUMBERS.into_iter().chain([u64::MAX]) {
        for mfn in mfns() {
            let number = mfn.get().checked_add(nr);
            let advanced = number.and_then(Mfn::new);
            for kind in KINDS {
                assert_eq!(kind(mfn).advance(nr), advanced.map(kind));
            }
        }
        assert_eq!(Entry::Invalid.advance(nr), Some(Entry::Invalid));
    }
}

/// The numeric constants of the ABI's header, by name.
fn abi() -> BTreeMap<&'static str, u64> {
    let define = |line: &'static str| {
        let mut words = line.strip_prefix("#define ")?.split_whitespace();
        let (name, value) = (words.next()?, words.next()?);
        let value = value.trim_end_matches("ULL");
        let value = match value.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16),
            None => value.parse(),
        };
        Some((name, value.ok()?))
    };
    ABI.lines().filter_map(define).collect()
}

const ABI: &str = include_str!("../../../../include/uapi/p2m.h");

#[test]
fn numbers_are_those_of_the_abi() {
    let abi = abi();
    assert_eq!(abi["P2M_ENTRY_INVALID"], INVALID);
    assert_eq!(abi["P2M_ENTRY_FOREIGN"], FOREIGN);
    assert_eq!(abi["P2M_ENTRY_IDENTITY"], IDENTITY);
    assert_eq!(abi["P2M_ENTRY_MFN_MASK"], !(FOREIGN | IDENTITY));
    assert_eq!(abi["P2M_MAX_PFN"], Pfn::LIMIT);
    // Each window of the views has room for the space that is seen through it.
    assert_eq!(
        abi["P2M_OFFSET_HEADER"] - abi["P2M_OFFSET_MEMORY"],
        Pfn::LIMIT << PAGE_SHIFT
    );
    assert!(abi["P2M_OFFSET_M2P"] - abi["P2M_OFFSET_P2M"] >= 8 * Pfn::LIMIT);
}

#[test]
fn words_of_the_header_are_those_of_the_abi() {
    let (_, members) = ABI.split_once("\nstruct p2m_header {\n").unwrap();
    let (members, _) = members.split_once("\n}").unwrap();
    let words: Vec<&str> = members
        .lines()
        .filter_map(|line| line.trim().strip_prefix("__aligned_u64 "))
        .collect();
    // The first word is two halves.
    for (word, name) in [
        (header::GENERATION, "generation;"),
        (header::END_PFN, "end_pfn;"),
        (header::END_MFN, "end_mfn;"),
        (header::M2P_GENERATION, "m2p_generation;"),
    ] {
        assert_eq!(words[word as usize - 1], name);
    }
}

proptest! {
    #[test]
    fn a_word_is_its_entry_or_invalid(word: u64) {
        let entry = Entry::from_raw(word);
        if entry == Entry::Invalid {
            prop_assert_eq!(entry.raw(), INVALID);
        } else {
            prop_assert_eq!(entry.raw(), word);
        }
    }

    #[test]
    fn advancing_twice_is_advancing_by_the_sum(
        number in 0..Mfn::LIMIT,
        first in 0..Mfn::LIMIT,
        second in 0..Mfn::LIMIT,
    ) {
        let mfn = Mfn::new(number).unwrap();
        for kind in KINDS {
            let twice = kind(mfn).advance(first).and_then(|entry| entry.advance(second));
            prop_assert_eq!(twice, kind(mfn).advance(first + second));
        }
    }
}
