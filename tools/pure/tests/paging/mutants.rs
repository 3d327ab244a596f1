// SPDX-License-Identifier: GPL-2.0

//! Backends that are broken, each in one way. If the laws let one pass, they prove nothing.

use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::Mutex;

use p2m_pure::frame::{Mfn, Pfn};
use p2m_pure::pv::{bits, Busy, Context, Machine, MmuOps, P4d, Pgd, Pmd, Pte, Pud, Slot, P2M};

use crate::world::{Backend, Law, Unbacked};

/// What is wrong with a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Flaw {
    /// Nothing.
    None,
    /// It doesn't translate entries of one level, in either direction.
    SkipsLevel(usize),
    /// It translates entries of one level on their way in only.
    SkipsVal(usize),
    /// It has Xen's one mask for the frames of all entries, so that bit 12 is always a frame's.
    ForgetsPat,
    /// It loses flags above the frame.
    ForgetsHighFlags,
    /// It translates what isn't present.
    TranslatesAbsent,
    /// It takes an unknown frame for an identity, as Xen does for high ones.
    InventsIdentity,
    /// It believes the frame of an unbacked PFN to be that of the number.
    InventsFrame,
    /// It takes a run for a leaf without a look at the machine.
    AnyRunIsLeaf,
    /// It takes a run for a leaf after a look at its first page.
    FirstPageIsEnough,
    /// Changing an entry forgets what the processor set meanwhile.
    LosesBits,
    /// Changing an entry ignores what was put off before.
    ChangesTooEarly,
    /// It puts stores off and makes them in reverse order.
    ReversesOrder,
    /// It puts stores off also out of lazy mode.
    IsAlwaysLazy,
    /// It makes what was put off only when the queue is full.
    NeverFlushes,
    /// It makes a table of a level without protecting it.
    ForgetsProtection(usize),
    /// It never unprotects the tables of a level.
    KeepsProtection(usize),
    /// It doesn't flush ranges.
    ForgetsRanges,
    /// It flushes the first page of a range.
    FlushesOnePage,
    /// It doesn't flush all.
    ForgetsAll,
    /// It loads the root as it is.
    SkipsRoot,
    /// It takes the PCID for a part of an entry.
    LosesPcid,
}

/// All flaws.
const FLAWS: &[Flaw] = &[
    Flaw::SkipsLevel(0),
    Flaw::SkipsLevel(1),
    Flaw::SkipsLevel(2),
    Flaw::SkipsLevel(3),
    Flaw::SkipsLevel(4),
    Flaw::SkipsVal(0),
    Flaw::SkipsVal(3),
    Flaw::ForgetsPat,
    Flaw::ForgetsHighFlags,
    Flaw::TranslatesAbsent,
    Flaw::InventsIdentity,
    Flaw::InventsFrame,
    Flaw::AnyRunIsLeaf,
    Flaw::FirstPageIsEnough,
    Flaw::LosesBits,
    Flaw::ChangesTooEarly,
    Flaw::ReversesOrder,
    Flaw::IsAlwaysLazy,
    Flaw::NeverFlushes,
    Flaw::ForgetsProtection(0),
    Flaw::ForgetsProtection(4),
    Flaw::KeepsProtection(1),
    Flaw::ForgetsRanges,
    Flaw::FlushesOnePage,
    Flaw::ForgetsAll,
    Flaw::SkipsRoot,
    Flaw::LosesPcid,
];

/// Flaws of which a space doesn't get to know.
const BEYOND_SPACES: &[Flaw] = &[
    // A large leaf is a run, so bit 12 comes back with the frame of the next page.
    Flaw::ForgetsPat,
    // No slot is stored to twice in lazy mode, and nothing is changed in it.
    Flaw::ReversesOrder,
    Flaw::ChangesTooEarly,
    // The user of a space loads its root.
    Flaw::LosesPcid,
];

/// A backend with a flaw.
struct Mutant {
    flaw: Flaw,
    /// What it puts off by itself.
    queue: Mutex<Vec<(Slot, u64)>>,
}

const ANY_FRAME: u64 = bits::FRAME;

impl Mutant {
    fn make(&self, machine: &dyn Machine, level: usize, val: u64) -> u64 {
        let p2m: &dyn MmuOps = &P2M;
        match self.flaw {
            Flaw::SkipsLevel(skipped) if level == skipped => val,
            Flaw::ForgetsPat if val & bits::PRESENT != 0 => {
                let entry = machine.entry((val & ANY_FRAME) >> 12);
                let mfn = entry.mfn().map(Mfn::get);
                mfn.map_or(0, |mfn| (mfn << 12) | val & !ANY_FRAME)
            }
            Flaw::ForgetsHighFlags => p2m.make(machine, level, val) & ((1 << 52) - 1),
            Flaw::TranslatesAbsent => {
                let raw = p2m.make(machine, level, val | bits::PRESENT);
                if val & bits::PRESENT == 0 {
                    raw & !bits::PRESENT
                } else {
                    raw
                }
            }
            Flaw::InventsFrame => match p2m.make(machine, level, val) {
                0 => val,
                raw => raw,
            },
            _ => p2m.make(machine, level, val),
        }
    }

    fn val(&self, machine: &dyn Machine, level: usize, word: u64) -> u64 {
        let p2m: &dyn MmuOps = &P2M;
        match self.flaw {
            Flaw::SkipsLevel(skipped) | Flaw::SkipsVal(skipped) if level == skipped => word,
            Flaw::ForgetsPat if word & bits::PRESENT != 0 => {
                let mfn = Mfn::new((word & ANY_FRAME) >> 12);
                match mfn.and_then(|mfn| machine.mfn_to_pfn(mfn)) {
                    Some(pfn) => (pfn.get() << 12) | word & !ANY_FRAME,
                    None => word & !ANY_FRAME & !bits::PRESENT,
                }
            }
            Flaw::InventsIdentity => {
                let val = p2m.val(machine, level, word);
                if word & !val & bits::PRESENT != 0 {
                    word
                } else {
                    val
                }
            }
            _ => p2m.val(machine, level, word),
        }
    }

    fn set(&self, cx: &mut Context<'_>, level: usize, slot: Slot, word: u64) {
        let p2m: &dyn MmuOps = &P2M;
        match self.flaw {
            Flaw::ReversesOrder if cx.lazy.is_active() => {
                self.queue.lock().unwrap().push((slot, word));
            }
            Flaw::IsAlwaysLazy => self.queue.lock().unwrap().push((slot, word)),
            _ => p2m.set(cx, level, slot, word),
        }
    }

    fn alloc(&self, machine: &dyn Machine, level: usize, pfn: Pfn) -> Result<(), Busy> {
        if self.flaw == Flaw::ForgetsProtection(level) {
            return Ok(());
        }
        machine.protect(pfn)
    }

    fn release(&self, machine: &dyn Machine, level: usize, pfn: Pfn) {
        // Without its own fault, it would be noticed that nothing is to be undone.
        if ![Flaw::KeepsProtection(level), Flaw::ForgetsProtection(level)].contains(&self.flaw) {
            machine.unprotect(pfn);
        }
    }
}

macro_rules! by_level {
    ($(
        $level:literal $ty:ident $val:ident $make:ident $set:ident $alloc:ident $release:ident;
    )*) => {$(
        fn $val(&self, machine: &dyn Machine, entry: $ty) -> u64 {
            self.val(machine, $level, entry.0)
        }
        fn $make(&self, machine: &dyn Machine, val: u64) -> $ty {
            $ty(self.make(machine, $level, val))
        }
        fn $set(&self, cx: &mut Context<'_>, slot: Slot, entry: $ty) {
            self.set(cx, $level, slot, entry.0);
        }
        fn $alloc(&self, machine: &dyn Machine, pfn: Pfn) -> Result<(), Busy> {
            self.alloc(machine, $level, pfn)
        }
        fn $release(&self, machine: &dyn Machine, pfn: Pfn) {
            self.release(machine, $level, pfn);
        }
    )*};
}

impl MmuOps for Mutant {
    fn name(&self) -> &'static str {
        "mutant"
    }

    by_level! {
        0 Pte pte_val make_pte set_pte alloc_pte release_pte;
        1 Pmd pmd_val make_pmd set_pmd alloc_pmd release_pmd;
        2 Pud pud_val make_pud set_pud alloc_pud release_pud;
        3 P4d p4d_val make_p4d set_p4d alloc_p4d release_p4d;
        4 Pgd pgd_val make_pgd set_pgd pgd_alloc pgd_free;
    }

    fn can_be_leaf(&self, machine: &dyn Machine, level: usize, pfn: Pfn) -> bool {
        match self.flaw {
            Flaw::AnyRunIsLeaf => true,
            Flaw::FirstPageIsEnough => {
                let first = machine.entry(pfn.get()).mfn();
                first.is_some_and(|mfn| mfn.get() % (1 << (9 * level)) == 0)
            }
            _ => P2M.can_be_leaf(machine, level, pfn),
        }
    }

    fn ptep_modify_prot_start(&self, cx: &mut Context<'_>, slot: Slot) -> Pte {
        P2M.ptep_modify_prot_start(cx, slot)
    }

    fn ptep_modify_prot_commit(&self, cx: &mut Context<'_>, slot: Slot, pte: Pte) {
        match self.flaw {
            Flaw::LosesBits => {
                self.lazy_mode_flush(cx);
                P2M.set_pte(cx, slot, pte);
                self.lazy_mode_flush(cx);
            }
            Flaw::ChangesTooEarly => {
                if let Some(table) = cx.machine.table(slot.table) {
                    let ad = bits::ACCESSED | bits::DIRTY;
                    table.update(slot.index, |word| match pte.0 {
                        0 => 0,
                        new => new | word & ad,
                    });
                }
            }
            _ => {
                self.lazy_mode_flush(cx);
                P2M.ptep_modify_prot_commit(cx, slot, pte);
            }
        }
    }

    fn flush_tlb_user(&self, machine: &dyn Machine) {
        if self.flaw != Flaw::ForgetsAll {
            P2M.flush_tlb_user(machine);
        }
    }

    fn flush_tlb_multi(&self, machine: &dyn Machine, start: u64, end: u64) {
        match self.flaw {
            Flaw::ForgetsRanges => (),
            Flaw::FlushesOnePage => P2M.flush_tlb_one_user(machine, start),
            _ => P2M.flush_tlb_multi(machine, start, end),
        }
    }

    fn write_cr3(&self, machine: &dyn Machine, cr3: u64) {
        match self.flaw {
            Flaw::SkipsRoot => machine.load_cr3(cr3),
            Flaw::LosesPcid => P2M.write_cr3(machine, cr3 & bits::FRAME),
            _ => P2M.write_cr3(machine, cr3),
        }
    }

    fn lazy_mode_flush(&self, cx: &mut Context<'_>) {
        let mut queue = std::mem::take(&mut *self.queue.lock().unwrap());
        if self.flaw == Flaw::ReversesOrder {
            queue.reverse();
        }
        for (slot, word) in queue {
            if let Some(table) = cx.machine.table(slot.table) {
                table.store(slot.index, word);
            }
        }
        if self.flaw != Flaw::NeverFlushes {
            P2M.lazy_mode_flush(cx);
        }
    }
}

fn backend(flaw: Flaw) -> Backend {
    let mutant = Box::new(Mutant {
        flaw,
        queue: Mutex::default(),
    });
    Backend {
        ops: Box::leak(mutant),
        unbacked: Unbacked::Empty,
    }
}

/// Returns the first law that a backend breaks.
fn broken(backend: &Backend, laws: &[(&'static str, Law)]) -> Option<&'static str> {
    let is_broken = |law: Law| catch_unwind(AssertUnwindSafe(|| law(backend))).is_err();
    let broken = laws.iter().find(|(_, law)| is_broken(*law));
    broken.map(|(name, _)| *name)
}

fn of_hooks() -> Vec<(&'static str, Law)> {
    let mut laws = [crate::maps::LAWS, crate::hooks::LAWS, crate::lazy::LAWS].concat();
    // The last ones are the quickest.
    laws.reverse();
    laws
}

/// The laws of spaces that are quick, and those that some flaws need.
fn of_spaces() -> Vec<(&'static str, Law)> {
    let slow = [
        "every_alignment_maps_and_unmaps",
        "a_part_of_a_large_leaf_changes",
        "all_flags_are_kept_by_a_split",
        "walks_find_what_is_there",
    ];
    let quick = crate::space::LAWS
        .iter()
        .filter(|(name, _)| !slow.contains(name));
    quick.copied().collect()
}

#[test]
fn a_mutant_without_a_flaw_breaks_no_law() {
    let sound = backend(Flaw::None);
    for laws in [of_hooks(), of_spaces()] {
        assert_eq!(broken(&sound, &laws), None);
    }
    for laws in [
        crate::faults::LAWS,
        crate::exchange::LAWS,
        crate::large::LAWS,
    ] {
        let name = laws.first();
        assert_eq!(broken(&sound, &laws[..1]), None, "{name:?}");
    }
}

#[test]
fn the_laws_of_hooks_find_every_flaw() {
    for &flaw in FLAWS {
        let found = broken(&backend(flaw), &of_hooks());
        println!("{flaw:?} breaks {found:?}");
        assert_ne!(found, None, "{flaw:?}");
    }
}

#[test]
fn the_laws_of_spaces_find_what_concerns_them() {
    for flaw in FLAWS.iter().filter(|flaw| !BEYOND_SPACES.contains(flaw)) {
        let found = broken(&backend(*flaw), &of_spaces());
        println!("{flaw:?} breaks {found:?}");
        assert_ne!(found, None, "{flaw:?}");
    }
}
