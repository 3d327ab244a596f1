// SPDX-License-Identifier: GPL-2.0

//! Laws of what hooks make of entries.
//!
//! Cases are the semantics of Xen's hooks, numbered: where a backend of ours differs by design, the
//! difference is what is asserted.

use p2m_pure::entry::Entry;
use p2m_pure::frame::{Mfn, Pfn};
use p2m_pure::pv::{bits, Busy, Context, Lazy, Machine, MmuOps, Native, Pte, Slot, MAX_LEVELS};
use proptest::prelude::*;

use crate::sim::Sim;
use crate::world::{at, backends, Backend, Unbacked, FRESH, G1, M2};

crate::laws! {
    case_1_a_present_entry_makes_the_round_trip,
    case_2_what_is_not_present_passes,
    case_2_a_page_can_be_backed_anew_while_its_entry_is_off,
    case_3_an_unbacked_page_is_not_mapped,
    case_4_an_unknown_frame_is_not_present,
    case_5_a_frame_of_somebody_else_has_no_pfn,
    case_5_an_identity_is_itself,
    case_7_any_number_is_a_question,
    case_21_each_entry_is_translated,
    case_21_a_run_of_entries_is_each_of_them,
    case_21_a_run_is_stored_after_what_was_put_off,
    case_21_no_bit_gets_lost_in_between,
    case_21_an_emptied_entry_stays_empty,
    flags_obey_their_algebra,
    a_large_leaf_needs_an_aligned_frame,
    a_run_is_a_leaf_if_the_machine_agrees,
    tables_are_protected_as_long_as_they_are_tables,
    the_root_keeps_its_other_bits,
    flushes_reach_the_processor,
}

/// A PFN at which there is a frame that is aligned for a leaf of `level`.
fn aligned(level: usize) -> u64 {
    match level {
        0 => at::SCATTERED + 77,
        1 => at::ALIGNED + M2,
        _ => at::GIANT,
    }
}

/// All kinds of present entries: the level, the PFN, and what makes it a leaf.
fn kinds() -> impl Iterator<Item = (usize, u64, u64)> {
    let leaves = [
        (0, at::SCATTERED),
        (0, at::SCATTERED + 2 * M2 - 1),
        (0, at::ALIGNED + 5),
        (0, at::IDENTITY + 1),
        (0, at::MISALIGNED),
        (1, at::ALIGNED),
        (1, at::ALIGNED + M2),
        (1, at::IDENTITY),
        (1, at::GIANT + G1 + M2),
        (2, at::GIANT),
    ];
    let leaf = |(level, pfn)| (level, pfn, if level > 0 { bits::PSE } else { 0 });
    let links = (1..MAX_LEVELS).flat_map(|level| {
        [at::SCATTERED + 3, at::MISALIGNED + 1, at::POOL].map(|pfn| (level, pfn, 0))
    });
    leaves.into_iter().map(leaf).chain(links)
}

/// Bits that aren't a frame in any entry, and that no backend has to know.
const OTHERS: [u64; 10] = [
    bits::RW,
    bits::USER,
    bits::PWT | bits::PCD,
    bits::ACCESSED,
    bits::DIRTY,
    bits::GLOBAL,
    // For the system: software bits, soft dirty, and the protection key.
    (1 << 9) | (1 << 11),
    1 << 58,
    (1 << 59) | (1 << 62),
    bits::NX,
];

/// All combinations of these bits.
fn subsets(bits: &[u64]) -> impl Iterator<Item = u64> + '_ {
    (0..1u64 << bits.len()).map(|set| {
        let chosen = bits
            .iter()
            .enumerate()
            .filter(|(at, _)| (set >> at) & 1 != 0);
        chosen.fold(0, |all, (_, bit)| all | bit)
    })
}

/// The flags of a kind of entry, each of them alone, all but each, none and all.
fn some_flags(level: usize, leaf: u64) -> impl Iterator<Item = u64> {
    let flags = flags(level, leaf);
    let all = flags.iter().fold(0, |all, bit| all | bit);
    flags
        .into_iter()
        .flat_map(move |bit| [bit, all & !bit])
        .chain([0, all])
}

/// The bits that a kind of entry can have besides.
fn flags(level: usize, leaf: u64) -> Vec<u64> {
    let mut flags = OTHERS.to_vec();
    match (level, leaf) {
        (0, _) => flags.push(bits::PAT),
        (_, 0) => (),
        _ => flags.push(bits::PAT_LARGE),
    }
    flags
}

fn case_1_a_present_entry_makes_the_round_trip(backend: &Backend) {
    let sim = backend.world();
    for (level, pfn, leaf) in kinds() {
        let mfn = backend.mfn(&sim, pfn).unwrap();
        if backend.translates() && sim.peek(pfn) != Entry::Identity(Mfn::new(pfn).unwrap()) {
            assert_ne!(mfn, pfn);
        }
        for flags in subsets(&flags(level, leaf)) {
            let flags = flags | leaf | bits::PRESENT;
            let raw = backend.ops.make(&*sim, level, (pfn << 12) | flags);
            assert_eq!(raw, (mfn << 12) | flags, "level {level}, {pfn:#x}");
            assert_eq!(backend.ops.val(&*sim, level, raw), (pfn << 12) | flags);
        }
    }
}

fn case_2_what_is_not_present_passes(backend: &Backend) {
    let sim = backend.world();
    let swap = |offset: u64| (!offset << 9) & !(bits::PRESENT | bits::GLOBAL);
    let off = |pfn: u64| (pfn << 12) | bits::GLOBAL | bits::USER;
    for level in 0..MAX_LEVELS {
        for val in [
            0,
            swap(0),
            swap(1234),
            off(at::SCATTERED),
            off(!at::SCATTERED & ((1 << 40) - 1)),
            off(at::HOLE),
            (aligned(level) << 12) | bits::PSE | bits::PAT_LARGE,
            !bits::PRESENT,
        ] {
            assert_eq!(backend.ops.make(&*sim, level, val), val, "level {level}");
            assert_eq!(backend.ops.val(&*sim, level, val), val, "level {level}");
        }
    }
}

fn case_2_a_page_can_be_backed_anew_while_its_entry_is_off(backend: &Backend) {
    let sim = backend.world();
    let val = (at::SCATTERED << 12) | bits::PRESENT | bits::RW | bits::NX;
    let before = backend.ops.make(&*sim, 0, val);
    // As `mprotect(PROT_NONE)` and back.
    let val = backend.ops.val(&*sim, 0, before);
    let off = backend
        .ops
        .make(&*sim, 0, val & !bits::PRESENT | bits::GLOBAL);
    sim.set(at::SCATTERED, 1, Entry::Present(Mfn::new(FRESH).unwrap()));
    let val = backend.ops.val(&*sim, 0, off) & !bits::GLOBAL | bits::PRESENT;
    let after = backend.ops.make(&*sim, 0, val);
    let mfn = backend.mfn(&sim, at::SCATTERED).unwrap();
    assert_eq!(after, (mfn << 12) | before & !bits::FRAME);
    assert_eq!(backend.translates(), mfn == FRESH);
}

fn case_3_an_unbacked_page_is_not_mapped(backend: &Backend) {
    let sim = backend.world();
    for level in 0..MAX_LEVELS {
        for leaf in [0, bits::PSE] {
            let pfn = at::HOLE + M2;
            let pfn = if level > 1 && leaf != 0 { 0 } else { pfn };
            if pfn == 0 {
                sim.set(0, 1, Entry::Invalid);
            }
            for flags in some_flags(level, leaf) {
                let val = (pfn << 12) | flags | leaf | bits::PRESENT;
                let raw = backend.ops.make(&*sim, level, val);
                let expected = match backend.unbacked {
                    Unbacked::Mapped => val,
                    Unbacked::Empty => 0,
                    Unbacked::Absent => val & !bits::PRESENT,
                };
                assert_eq!(raw, expected, "level {level}");
                assert_eq!(backend.ops.val(&*sim, level, raw), expected);
            }
        }
    }
    // When it comes to be backed, nothing is lost but the bit, unless all is.
    let val = (at::HOLE << 12) | bits::PRESENT | bits::RW;
    let raw = backend.ops.make(&*sim, 0, val);
    sim.set(at::HOLE, 1, Entry::Present(Mfn::new(FRESH).unwrap()));
    let again = backend
        .ops
        .make(&*sim, 0, backend.ops.val(&*sim, 0, raw) | bits::PRESENT);
    match backend.unbacked {
        Unbacked::Mapped => assert_eq!(again, val),
        Unbacked::Empty => assert_ne!(again >> 12, FRESH),
        Unbacked::Absent => assert_eq!(again, (FRESH << 12) | bits::PRESENT | bits::RW),
    }
}

/// Frames that the domain doesn't have, each with a large leaf's alignment.
fn unknown() -> [u64; 4] {
    [FRESH, 8 * Pfn::LIMIT, Mfn::LIMIT - G1, 3 * G1]
}

fn case_4_an_unknown_frame_is_not_present(backend: &Backend) {
    let sim = backend.world();
    for mfn in unknown() {
        // Not even if the M2P says otherwise: it may be stale.
        for stale in [None, Some(at::SCATTERED), Some(at::GIANT), Some(at::HOLE)] {
            if let Some(pfn) = stale {
                sim.set_m2p(mfn, pfn);
            }
            for level in 0..MAX_LEVELS {
                for leaf in [0, bits::PSE] {
                    if level > 2 && leaf != 0 {
                        continue;
                    }
                    for flags in some_flags(level, leaf) {
                        let flags = flags | leaf;
                        let raw = (mfn << 12) | flags | bits::PRESENT;
                        let expected = if backend.translates() { flags } else { raw };
                        assert_eq!(backend.ops.val(&*sim, level, raw), expected);
                    }
                }
            }
        }
    }
}

fn case_5_a_frame_of_somebody_else_has_no_pfn(backend: &Backend) {
    let sim = backend.world();
    for (level, pfn) in [
        (0, at::FOREIGN + 3),
        (0, at::FOREIGN_HIGH + 3),
        (1, at::FOREIGN),
        (1, at::FOREIGN_HIGH),
    ] {
        let flags = bits::PRESENT | bits::RW | if level > 0 { bits::PSE } else { 0 };
        let val = (pfn << 12) | flags;
        let raw = backend.ops.make(&*sim, level, val);
        let mfn = backend.mfn(&sim, pfn).unwrap();
        assert_eq!(raw, (mfn << 12) | flags);
        if backend.translates() {
            // Xen's rule would be an identity for a frame beyond its table.
            for is_forged in [false, true] {
                if is_forged {
                    sim.set_m2p(mfn, pfn);
                }
                let expected = flags & !bits::PRESENT;
                assert_eq!(backend.ops.val(&*sim, level, raw), expected);
            }
        }
    }
}

fn case_5_an_identity_is_itself(backend: &Backend) {
    let sim = backend.world();
    let val = (at::IDENTITY << 12) | bits::PRESENT;
    assert_eq!(backend.ops.make(&*sim, 0, val), val);
    assert_eq!(backend.ops.val(&*sim, 0, val), val);
    if backend.translates() {
        // Only the P2M makes one of a frame, not that the numbers are the same.
        let frame = Mfn::new(at::IDENTITY).unwrap();
        for entry in [Entry::Foreign(frame), Entry::Invalid] {
            sim.set(at::IDENTITY, 1, entry);
            assert_eq!(backend.ops.val(&*sim, 0, val), 0);
        }
        sim.set(at::IDENTITY, 1, Entry::Present(frame));
        assert_eq!(backend.ops.val(&*sim, 0, val), val);
        // A frame of the domain comes before an identity.
        sim.set(at::IDENTITY, 1, Entry::Identity(frame));
        sim.set(at::HOLE, 1, Entry::Present(frame));
        assert_eq!(
            backend.ops.val(&*sim, 0, val),
            (at::HOLE << 12) | bits::PRESENT
        );
    }
}

fn case_7_any_number_is_a_question(backend: &Backend) {
    let sim = backend.world();
    let numbers = [
        0,
        1,
        4 * G1,
        Pfn::LIMIT - 1,
        Pfn::LIMIT,
        (1 << 40) - 1,
        1 << 39,
    ];
    let words = numbers.into_iter().flat_map(|number| {
        [
            0,
            bits::PSE,
            bits::PAT_LARGE,
            !bits::FRAME,
            !bits::FRAME & !bits::PSE,
        ]
        .map(|flags| (number << 12) | flags | bits::PRESENT)
    });
    for word in words.chain([u64::MAX, bits::PRESENT, i64::MAX as u64]) {
        for level in 0..MAX_LEVELS {
            check_word(backend, &sim, level, word);
        }
    }
    // Beyond the space there is nothing, while with Xen there are identities.
    let val = (Pfn::LIMIT << 12) | bits::PRESENT;
    let expected = match backend.unbacked {
        Unbacked::Mapped => val,
        Unbacked::Empty => 0,
        Unbacked::Absent => val & !bits::PRESENT,
    };
    assert_eq!(backend.ops.make(&*sim, 0, val), expected);
}

/// Returns where an entry has its frame number.
fn frame_bits(level: usize, word: u64) -> u64 {
    match word & bits::PSE {
        0 => bits::FRAME,
        _ if level == 0 => bits::FRAME,
        _ => bits::FRAME & (!0 << (12 + 9 * level)),
    }
}

/// Checks what holds for every word: both directions keep or clear a frame and nothing but that.
fn check_word(backend: &Backend, sim: &Sim, level: usize, word: u64) {
    let mask = frame_bits(level, word);
    let raw = backend.ops.make(sim, level, word);
    let mfn = backend.mfn(sim, (word & mask) >> 12);
    match mfn.filter(|mfn| (mfn << 12) & !mask == 0) {
        _ if word & bits::PRESENT == 0 => assert_eq!(raw, word),
        Some(mfn) => assert_eq!(raw, (mfn << 12) | word & !mask),
        None if backend.unbacked == Unbacked::Empty => assert_eq!(raw, 0),
        None => assert_eq!(raw, word & !bits::PRESENT),
    }
    let val = backend.ops.val(sim, level, word);
    if val & bits::PRESENT != 0 {
        assert_eq!(backend.ops.make(sim, level, val), word);
        assert_eq!(val & !mask, word & !mask);
    } else if word & bits::PRESENT != 0 {
        assert_eq!(val, word & !mask & !bits::PRESENT);
    } else {
        assert_eq!(val, word);
    }
}

/// Numbers that are likely to be those of frames, of one kind or the other.
fn number() -> impl Strategy<Value = u64> {
    prop_oneof![
        0..16 * M2,
        0x10_0000..0x10_1000u64,
        prop::sample::select(vec![
            at::GIANT,
            at::ALIGNED,
            at::FOREIGN,
            5 * G1,
            0x24_0000,
            FRESH
        ]),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 50,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn any_word_of_any_level_keeps_its_other_bits(
        words in prop::collection::vec((any::<u64>(), number()), 100),
    ) {
        for backend in backends() {
            let sim = backend.world();
            for level in 0..MAX_LEVELS {
                for (word, number) in &words {
                    check_word(&backend, &sim, level, *word);
                    check_word(&backend, &sim, level, word & !bits::FRAME | (number << 12));
                }
            }
        }
    }
}

/// A table for tests of single entries.
const TABLE: u64 = at::POOL;

fn slot(index: u64) -> Slot {
    Slot {
        table: Pfn::new(TABLE).unwrap(),
        index,
    }
}

/// Calls what works on a machine and a queue.
fn with_context<T>(sim: &Sim, work: impl FnOnce(&mut Context<'_>) -> T) -> T {
    let mut lazy = Lazy::new();
    work(&mut Context {
        machine: sim,
        lazy: &mut lazy,
    })
}

fn word(sim: &Sim, index: u64) -> u64 {
    sim.table(slot(0).table).unwrap().load(index)
}

/// As `set_ptes()`: there is no arithmetic on machine frames.
fn case_21_each_entry_is_translated(backend: &Backend) {
    let sim = backend.world();
    sim.adopt(TABLE);
    for level in 0..MAX_LEVELS {
        for index in 0..M2 {
            let val = ((at::SCATTERED + 5 + index) << 12) | bits::PRESENT | bits::RW;
            let raw = backend.ops.make(&*sim, level, val);
            with_context(&sim, |cx| backend.ops.set(cx, level, slot(index), raw));
        }
        for index in 0..M2 {
            let mfn = backend.mfn(&sim, at::SCATTERED + 5 + index).unwrap();
            assert_eq!(word(&sim, index), (mfn << 12) | bits::PRESENT | bits::RW);
        }
    }
}

fn case_21_a_run_of_entries_is_each_of_them(backend: &Backend) {
    let sim = backend.world();
    // Where one kind of frames ends and another begins, and behind all of them.
    let starts = [
        0,
        M2,
        2 * M2,
        6 * M2,
        8 * M2,
        9 * M2,
        10 * M2,
        12 * M2,
        13 * M2,
    ];
    for flags in [
        0,
        bits::PRESENT | bits::RW,
        bits::PRESENT | bits::NX | bits::PAT,
    ] {
        for start in starts.into_iter().chain([Pfn::LIMIT - 40]) {
            for nr in [0, 1, 7, 40] {
                let first = start.saturating_sub(3);
                let mut words = vec![!0; nr as usize];
                let pfn = Pfn::new(first).unwrap();
                backend.ops.make_ptes(&*sim, pfn, flags, &mut words);
                for (pfn, word) in (first..).zip(words) {
                    let one = backend.ops.make_pte(&*sim, (pfn << 12) | flags);
                    assert_eq!(word, one.0, "PFN {pfn:#x} of {nr} from {first:#x}");
                }
            }
        }
    }
}

fn case_21_a_run_is_stored_after_what_was_put_off(backend: &Backend) {
    for (first, words) in [
        (0, vec![]),
        (5, vec![16]),
        (0, (8..520).collect()),
        (500, vec![24; 12]),
    ] {
        let sim = backend.world();
        sim.adopt(TABLE);
        let mut lazy = Lazy::new();
        let mut cx = Context {
            machine: &*sim,
            lazy: &mut lazy,
        };
        cx.enable_lazy_mode();
        backend.ops.set_pte(&mut cx, slot(first), Pte(32));
        backend.ops.set_ptes(&mut cx, slot(first), &words);
        cx.disable_lazy_mode(backend.ops);
        let mut expected = [0; 512];
        expected[first as usize] = 32;
        expected[first as usize..][..words.len()].copy_from_slice(&words);
        let seen: Vec<u64> = (0..512).map(|index| word(&sim, index)).collect();
        assert_eq!(seen, expected, "{} from {first}", words.len());
    }
}

fn case_21_no_bit_gets_lost_in_between(backend: &Backend) {
    let ops = backend.ops;
    for meanwhile in [0, bits::ACCESSED, bits::DIRTY, bits::ACCESSED | bits::DIRTY] {
        for old in [0, bits::ACCESSED] {
            let sim = backend.world();
            sim.adopt(TABLE);
            let val = (at::SCATTERED << 12) | bits::PRESENT | bits::RW | old;
            let raw = ops.make(&*sim, 0, val);
            with_context(&sim, |cx| {
                ops.set_pte(cx, slot(9), Pte(raw));
                let pte = ops.ptep_modify_prot_start(cx, slot(9));
                assert_eq!(pte.0, raw);
                // The processor sets bits only in what it finds present.
                let table = sim.table(slot(9).table).unwrap();
                let seen = table.load(9) & bits::PRESENT != 0;
                assert_eq!(seen, backend.translates(), "present in between");
                if seen {
                    table.update(9, |word| word | meanwhile);
                }
                // As `pte_modify()`.
                let new = ops.pte_val(&*sim, pte) & !bits::RW | bits::NX;
                let pte = ops.make_pte(&*sim, new);
                ops.ptep_modify_prot_commit(cx, slot(9), pte);
                let mut expected = raw & !bits::RW | bits::NX;
                if seen {
                    expected |= meanwhile;
                }
                assert_eq!(table.load(9), expected);
            });
        }
    }
}

fn case_21_an_emptied_entry_stays_empty(backend: &Backend) {
    let sim = backend.world();
    sim.adopt(TABLE);
    let val = (at::SCATTERED << 12) | bits::PRESENT | bits::ACCESSED | bits::DIRTY;
    with_context(&sim, |cx| {
        let pte = backend.ops.make_pte(&*sim, val);
        backend.ops.set_pte(cx, slot(0), pte);
        backend.ops.ptep_modify_prot_start(cx, slot(0));
        backend.ops.ptep_modify_prot_commit(cx, slot(0), Pte(0));
    });
    assert_eq!(word(&sim, 0), 0);
}

/// The laws of `pte_basic_tests()` and its like in `mm/debug_vm_pgtable.c`, where each helper
/// translates an entry, changes a bit and makes an entry again.
fn flags_obey_their_algebra(backend: &Backend) {
    let sim = backend.world();
    for (level, pfn, leaf) in kinds() {
        let change = |entry: u64, set: u64, clear: u64| {
            let val = backend.ops.val(&*sim, level, entry);
            backend.ops.make(&*sim, level, val & !clear | set)
        };
        let [young, old] = [(bits::ACCESSED, 0), (0, bits::ACCESSED)];
        let [dirty, clean] = [(bits::DIRTY, 0), (0, bits::DIRTY)];
        let [write, wrprotect] = [(bits::RW, 0), (0, bits::RW)];
        let all = [young, old, dirty, clean, write, wrprotect];
        let bits_of = |(set, clear): (u64, u64)| set | clear;
        let memory_type = flags(level, leaf).split_off(OTHERS.len());
        let varied = [
            &[bits::RW, bits::ACCESSED, bits::DIRTY, bits::NX],
            &*memory_type,
        ]
        .concat();
        for flags in subsets(&varied) {
            let entry = (pfn << 12) | flags | leaf | bits::PRESENT;
            let entry = backend.ops.make(&*sim, level, entry);
            let apply = |entry, (set, clear)| change(entry, set, clear);
            assert_eq!(change(entry, 0, 0), entry);
            for first in all {
                let once = apply(entry, first);
                // What it does, and nothing else.
                assert_eq!(once, entry & !first.1 | first.0);
                assert_eq!(apply(once, first), once);
                for second in all {
                    let twice = apply(once, second);
                    if bits_of(first) == bits_of(second) {
                        // !young(mkyoung(mkold)), dirty(mkdirty(mkclean)), ...
                        assert_eq!(twice, apply(entry, second));
                    } else {
                        // dirty(wrprotect(mkdirty)), !dirty(mkwrite(mkclean)), ...
                        assert_eq!(twice, apply(apply(entry, second), first));
                    }
                }
            }
            // A leaf stays one, and what isn't one stays so.
            assert_eq!(entry & bits::PSE, flags & bits::PSE | leaf);
        }
    }
}

fn a_large_leaf_needs_an_aligned_frame(backend: &Backend) {
    let sim = backend.world();
    // The PFN is aligned, the frame isn't.
    let val = (at::MISALIGNED << 12) | bits::PRESENT | bits::PSE | bits::RW;
    let raw = backend.ops.make(&*sim, 1, val);
    let expected = match backend.unbacked {
        Unbacked::Mapped => val,
        Unbacked::Empty => 0,
        Unbacked::Absent => val & !bits::PRESENT,
    };
    assert_eq!(raw, expected);
    if backend.translates() {
        // The frame is aligned, its PFN isn't.
        sim.set(at::HOLE + 1, 1, Entry::Present(Mfn::new(FRESH).unwrap()));
        let raw = (FRESH << 12) | bits::PRESENT | bits::PSE | bits::RW;
        let expected = bits::PSE | bits::RW;
        assert_eq!(backend.ops.val(&*sim, 1, raw), expected);
    }
}

fn a_run_is_a_leaf_if_the_machine_agrees(backend: &Backend) {
    let sim = backend.world();
    let can = |level, pfn| {
        let pfn = Pfn::new(pfn).unwrap();
        backend.ops.can_be_leaf(&*sim, level, pfn)
    };
    let is_native = !backend.translates();
    for (level, pfn, expected) in [
        (1, at::SCATTERED, false),
        (1, at::ALIGNED, true),
        (1, at::ALIGNED + 3 * M2, true),
        (1, at::MISALIGNED, false),
        (1, at::FOREIGN, true),
        (1, at::FOREIGN_HIGH, true),
        (1, at::IDENTITY, true),
        (1, at::HOLE, false),
        (2, at::GIANT, true),
        (1, at::GIANT + M2, true),
        (2, at::ALIGNED, false),
        (2, 2 * G1, false),
        (2, 0, false),
        // Its end is no PFN any more.
        (2, Pfn::LIMIT - 1, false),
        (0, at::SCATTERED, true),
        (0, at::HOLE, false),
    ] {
        assert_eq!(can(level, pfn), expected || is_native, "{level}, {pfn:#x}");
    }
    // One page that is elsewhere, of another kind or not there, at any place.
    for at in [0, 1, M2 / 2, M2 - 1] {
        let pfn = at::ALIGNED + at;
        let frame = sim.peek(pfn).mfn().unwrap();
        for entry in [
            Entry::Present(Mfn::new(FRESH).unwrap()),
            Entry::Foreign(frame),
            Entry::Identity(frame),
            Entry::Invalid,
        ] {
            sim.set(pfn, 1, entry);
            // A frame is what it is: only the first one alone would be aligned.
            assert_eq!(can(1, at::ALIGNED), is_native, "{entry:?} at {at}");
        }
        sim.set(pfn, 1, Entry::Present(frame));
        assert!(can(1, at::ALIGNED));
    }
}

fn tables_are_protected_as_long_as_they_are_tables(backend: &Backend) {
    let sim = backend.world();
    for level in 0..MAX_LEVELS {
        let pfn = Pfn::new(TABLE + level as u64).unwrap();
        assert_eq!(backend.ops.alloc(&*sim, level, pfn), Ok(()));
        assert_eq!(sim.is_protected(pfn.get()), backend.translates());
        sim.busy.blow_after(0);
        let other = Pfn::new(TABLE + 9).unwrap();
        let refused = backend.ops.alloc(&*sim, level, other).is_err();
        assert_eq!(refused, backend.translates());
        sim.busy.mend();
    }
    for level in 0..MAX_LEVELS {
        let pfn = Pfn::new(TABLE + level as u64).unwrap();
        backend.ops.release(&*sim, level, pfn);
        assert!(!sim.is_protected(pfn.get()));
    }
    assert_eq!(sim.nr_protected(), 0);
}

fn the_root_keeps_its_other_bits(backend: &Backend) {
    let sim = backend.world();
    // A PCID, and that nothing be forgotten.
    for pcid in [0, 1, 0xfff] {
        for top in [0, 1 << 63] {
            for pfn in [at::POOL, at::SCATTERED + 1, at::POOL + 5] {
                let mfn = backend.mfn(&sim, pfn).unwrap();
                backend.ops.write_cr3(&*sim, (pfn << 12) | pcid | top);
                let loaded = sim.roots.borrow_mut().pop();
                assert_eq!(loaded, Some((mfn << 12) | pcid | top));
            }
        }
    }
    // There is no such root.
    for pfn in [at::HOLE, Pfn::LIMIT, (1 << 40) - 1] {
        backend.ops.write_cr3(&*sim, (pfn << 12) | bits::PRESENT);
        let loaded = sim.roots.borrow_mut().pop();
        assert_eq!(loaded.is_some(), !backend.translates());
    }
}

fn flushes_reach_the_processor(backend: &Backend) {
    let sim = backend.world();
    backend.ops.flush_tlb_user(&*sim);
    backend.ops.flush_tlb_one_user(&*sim, 0x1234);
    backend.ops.flush_tlb_one_user(&*sim, u64::MAX);
    backend.ops.flush_tlb_multi(&*sim, 0x1000, 0x3000);
    let flushes = sim.flushes.take();
    let max = u64::MAX;
    let expected = [(0, max), (0x1234, 0x1235), (max, max), (0x1000, 0x3000)];
    assert_eq!(flushes, expected);
}

/// A backend with nothing but a name.
struct Nameless;

impl MmuOps for Nameless {
    fn name(&self) -> &'static str {
        "nameless"
    }
}

#[test]
fn a_missing_hook_is_native() {
    let nameless = Backend {
        ops: &Nameless,
        unbacked: Unbacked::Mapped,
    };
    assert_eq!(nameless.name(), "nameless");
    for (_, law) in LAWS
        .iter()
        .chain(crate::lazy::LAWS)
        .chain(&crate::space::LAWS[..4])
    {
        law(&nameless);
    }
    // And native is what the name says.
    let sim = nameless.world();
    let native: &dyn MmuOps = &Native;
    for word in [0, 1, 0x1234_5067, u64::MAX] {
        for level in 0..MAX_LEVELS {
            assert_eq!(native.make(&*sim, level, word), word);
            assert_eq!(native.val(&*sim, level, word), word);
        }
    }
    assert_eq!(native.alloc_pte(&*sim, Pfn::ZERO), Ok::<(), Busy>(()));
    assert_eq!(sim.nr_protected(), 0);
}

/// Backends by name: case by case, as there is no more to it than a list.
mod registry {
    use p2m_pure::pv::{MmuOps, Native, P2M, P2M_LOSSLESS};
    use p2m_pure::pv::{Registry, RegistryError, MAX_BACKENDS};

    struct Named(&'static str);

    impl MmuOps for Named {
        fn name(&self) -> &'static str {
            self.0
        }
    }

    fn named(name: &'static str) -> &'static dyn MmuOps {
        Box::leak(Box::new(Named(name)))
    }

    #[test]
    fn backends_are_found_by_name() {
        let mut registry = Registry::default();
        assert_eq!(registry.names().count(), 0);
        assert!(registry.get("native").is_none());
        for ops in [&Native as &dyn MmuOps, &P2M, &P2M_LOSSLESS] {
            assert_eq!(registry.register(ops), Ok(()));
        }
        let names: Vec<&str> = registry.names().collect();
        assert_eq!(names, ["native", "p2m", "p2m-lossless"]);
        for name in names {
            assert_eq!(registry.get(name).map(|ops| ops.name()), Some(name));
        }
        for name in ["", "p2", "p2m-", "P2M"] {
            assert!(registry.get(name).is_none());
        }
    }

    #[test]
    fn a_name_is_taken_once() {
        let mut registry = Registry::new();
        assert_eq!(registry.register(named("a")), Ok(()));
        assert_eq!(registry.register(named("a")), Err(RegistryError::Exists));
        assert_eq!(registry.unregister("a"), Ok(()));
        assert_eq!(registry.unregister("a"), Err(RegistryError::Unknown));
        assert_eq!(registry.register(named("a")), Ok(()));
    }

    #[test]
    fn there_is_room_for_some() {
        let names = ["a", "b", "c", "d", "e", "f", "g", "h"];
        assert_eq!(names.len(), MAX_BACKENDS);
        let mut registry = Registry::new();
        for name in names {
            assert_eq!(registry.register(named(name)), Ok(()));
        }
        assert_eq!(registry.register(named("i")), Err(RegistryError::Full));
        assert_eq!(registry.register(named("a")), Err(RegistryError::Exists));
        // A place that is free again is one, wherever it is.
        assert_eq!(registry.unregister("c"), Ok(()));
        assert_eq!(registry.register(named("i")), Ok(()));
        assert!(registry.get("i").is_some() && registry.get("h").is_some());
    }

    #[test]
    fn a_backend_in_use_stays() {
        let mut registry = Registry::new();
        registry.register(named("a")).unwrap();
        registry.register(named("b")).unwrap();
        for _ in 0..3 {
            assert!(registry.get("a").is_some());
        }
        for _ in 0..3 {
            assert_eq!(registry.unregister("a"), Err(RegistryError::InUse));
            registry.put("a");
        }
        // The uses of one are not those of another, and one that never was is none.
        registry.put("b");
        registry.put("c");
        assert!(registry.get("b").is_some());
        assert_eq!(registry.unregister("a"), Ok(()));
        assert_eq!(registry.unregister("b"), Err(RegistryError::InUse));
    }
}
