// SPDX-License-Identifier: GPL-2.0

//! Page tables as the processor walks them: what is in their entries.

use core::fmt;
use core::ops::{BitOr, Range};
use core::str::FromStr;

use serde::{Serialize, Serializer};

use crate::abi;
use crate::frame::{Mfn, Pfn};

/// An address in a space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Address(pub u64);

/// A level of page tables: 0 is the lowest one, of which the entries map pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Level(pub u32);

impl Level {
    /// The names that Linux has for entries of the levels. With four levels, the top one is folded
    /// into the one above it.
    const NAMES: [&'static str; abi::P2M_MAX_STEPS as usize] = ["pte", "pmd", "pud", "p4d", "pgd"];

    /// Returns how many pages an entry of this level stands for.
    pub fn pages(self) -> u64 {
        1u64.checked_shl(TABLE_BITS * self.0).unwrap_or(0)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::NAMES.get(self.0 as usize) {
            Some(name) => f.pad(name),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for Level {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// log2 of the number of entries of a table.
const TABLE_BITS: u32 = 9;

const PAGE_SHIFT: u32 = 12;

/// Says in an entry above the lowest level that it's a leaf, where that one has its PAT bit.
const LARGE: u64 = 1 << 7;

/// The PAT bit of a large leaf.
const PAT_LARGE: u64 = 1 << 12;

/// The frame number of an entry.
const FRAME: u64 = 0x000f_ffff_ffff_f000;

/// What an entry allows, and whether it was used.
///
/// It reads as a letter for each bit, or `-` where it isn't set, such as `rw-u---AD`:
///
/// | letter | meaning |
/// |---|---|
/// | `r` | present |
/// | `w` | writes are allowed |
/// | `x` | instructions can be fetched |
/// | `u` | user mode may use it |
/// | `t` | write-through caching |
/// | `c` | no caching |
/// | `p` | another memory type (PAT) |
/// | `A` | accessed |
/// | `D` | dirty |
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PteFlags(u64);

impl PteFlags {
    /// The entry translates something.
    pub const PRESENT: Self = Self(1);
    /// Writes are allowed.
    pub const RW: Self = Self(abi::P2M_PTE_RW as u64);
    /// User mode may use it.
    pub const USER: Self = Self(abi::P2M_PTE_USER as u64);
    /// Write-through caching.
    pub const PWT: Self = Self(abi::P2M_PTE_PWT as u64);
    /// No caching.
    pub const PCD: Self = Self(abi::P2M_PTE_PCD as u64);
    /// The processor used the entry.
    pub const ACCESSED: Self = Self(abi::P2M_PTE_ACCESSED as u64);
    /// The processor wrote through the entry.
    pub const DIRTY: Self = Self(abi::P2M_PTE_DIRTY as u64);
    /// Selects a memory type.
    pub const PAT: Self = Self(abi::P2M_PTE_PAT as u64);
    /// Instructions can't be fetched.
    pub const NX: Self = Self(abi::PTE_NX);

    /// The bits in the order of their letters, and whether a letter means that its bit is set.
    const LETTERS: [(char, Self, bool); 9] = [
        ('r', Self::PRESENT, true),
        ('w', Self::RW, true),
        ('x', Self::NX, false),
        ('u', Self::USER, true),
        ('t', Self::PWT, true),
        ('c', Self::PCD, true),
        ('p', Self::PAT, true),
        ('A', Self::ACCESSED, true),
        ('D', Self::DIRTY, true),
    ];

    /// Returns the flags of an entry of a table at some level.
    pub fn of_entry(level: Level, word: u64) -> Self {
        let known = Self::LETTERS
            .iter()
            .fold(0, |known, (_, bit, _)| known | bit.0);
        if level == Level(0) {
            return Self(word & known);
        }
        // Only a leaf has a PAT bit, and has it elsewhere.
        let is_pat = word & LARGE != 0 && word & PAT_LARGE != 0;
        let pat = if is_pat { Self::PAT } else { Self(0) };
        Self(word & known & !Self::PAT.0) | pat
    }

    /// Returns the bits of the processor's entry, with PAT where the lowest level has it.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Returns whether all of the others are set.
    pub const fn contains(self, others: Self) -> bool {
        self.0 & others.0 == others.0
    }
}

impl BitOr for PteFlags {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

impl fmt::Display for PteFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letters = Self::LETTERS.map(|(letter, bit, if_set)| {
            if self.contains(bit) == if_set {
                letter
            } else {
                '-'
            }
        });
        f.pad(&letters.iter().collect::<String>())
    }
}

/// Has a letter that is none of those of [`PteFlags`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no flag '{0}', the letters are rwxutcpAD")]
pub struct UnknownFlag(pub char);

impl FromStr for PteFlags {
    type Err = UnknownFlag;

    /// Takes letters in any order. A `-` is passed over.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        for letter in text.chars() {
            if letter != '-' && !Self::LETTERS.iter().any(|(known, ..)| *known == letter) {
                return Err(UnknownFlag(letter));
            }
        }
        let bits = Self::LETTERS
            .iter()
            .filter(|(letter, _, if_set)| text.contains(*letter) == *if_set);
        Ok(bits.fold(Self(0), |flags, &(_, bit, _)| flags | bit))
    }
}

impl Serialize for PteFlags {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// An entry of a table at some level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableEntry {
    /// The level of the table.
    pub level: Level,
    /// The entry.
    pub word: u64,
}

impl TableEntry {
    /// Returns what it allows.
    pub fn flags(self) -> PteFlags {
        PteFlags::of_entry(self.level, self.word)
    }

    /// Returns whether it translates something.
    pub fn is_present(self) -> bool {
        self.flags().contains(PteFlags::PRESENT)
    }

    /// Returns whether it maps pages, and not a table.
    pub fn is_leaf(self) -> bool {
        self.level == Level(0) || self.word & LARGE != 0
    }

    /// Returns its frame number.
    pub fn frame(self) -> u64 {
        // The lower bits of a large leaf aren't its frame.
        let span = if self.is_leaf() {
            self.level.pages()
        } else {
            1
        };
        ((self.word & FRAME) >> PAGE_SHIFT) & !span.wrapping_sub(1)
    }
}

/// What a walk finds at one level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    /// The level.
    pub level: Level,
    /// Number of the entry in the table.
    pub index: u32,
    /// The page that is the table.
    pub table_pfn: Pfn,
    /// Its machine frame, unless it's hidden.
    pub table_mfn: Mfn,
    /// The entry as it is in the table. If MFNs are hidden, its frame is.
    pub raw: u64,
    /// The entry as the backend translates it, which is what the page-table code sees.
    pub val: u64,
}

impl Step {
    /// Returns the entry as it is in the table, for the processor.
    pub fn machine(&self) -> TableEntry {
        let (level, word) = (self.level, self.raw);
        TableEntry { level, word }
    }

    /// Returns the entry as the page-table code sees it.
    pub fn pseudo_physical(&self) -> TableEntry {
        let (level, word) = (self.level, self.val);
        TableEntry { level, word }
    }
}

impl From<&abi::p2m_step> for Step {
    fn from(raw: &abi::p2m_step) -> Self {
        Self {
            level: Level(raw.level),
            index: raw.index,
            table_pfn: Pfn(raw.table_pfn),
            table_mfn: Mfn(raw.table_mfn),
            raw: raw.raw,
            val: raw.val,
        }
    }
}

/// The way through the tables of a space to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Walk {
    /// The address.
    pub address: Address,
    /// What there is at each level, from the root down.
    pub steps: Vec<Step>,
}

impl Walk {
    /// Returns the page that is mapped at the address, and the machine frame that the table has
    /// for it, unless that is hidden.
    pub fn page(&self) -> Option<(Pfn, Mfn)> {
        let step = self.steps.last()?;
        let (machine, pseudo_physical) = (step.machine(), step.pseudo_physical());
        if !pseudo_physical.is_present() || !pseudo_physical.is_leaf() {
            return None;
        }
        let offset = (self.address.0 >> PAGE_SHIFT) & (step.level.pages() - 1);
        let mfn = match Mfn(machine.frame()) {
            Mfn::HIDDEN => Mfn::HIDDEN,
            mfn => Mfn(mfn.0 + offset),
        };
        Some((Pfn(pseudo_physical.frame() + offset), mfn))
    }
}

/// Consecutive addresses that are translated alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First address.
    pub address: Address,
    /// Number of pages.
    pub nr_pages: u64,
    /// PFN of the first page, the others follow.
    pub pfn: Pfn,
    /// Machine frame of the first page, the others follow. Hidden also if nothing is present.
    pub mfn: Mfn,
    /// What the leaves allow.
    pub flags: PteFlags,
    /// Level of the leaves.
    pub level: Level,
}

impl Span {
    /// Returns its PFNs.
    pub fn range(&self) -> Range<Pfn> {
        crate::frame::pages(self.pfn, self.nr_pages)
    }
}

impl From<&abi::p2m_span> for Span {
    fn from(raw: &abi::p2m_span) -> Self {
        let level = Level(raw.level);
        Self {
            address: Address(raw.address),
            nr_pages: raw.nr_pages,
            pfn: Pfn(raw.pfn),
            mfn: Mfn(raw.mfn),
            flags: PteFlags::of_entry(level, raw.pte_flags),
            level,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn letters_and_flags_are_inverse() {
        for bits in 0..1u64 << PteFlags::LETTERS.len() {
            let flags = PteFlags::LETTERS
                .iter()
                .enumerate()
                .filter(|(index, _)| (bits >> index) & 1 != 0)
                .fold(PteFlags(0), |flags, (_, &(_, bit, _))| flags | bit);
            let text = flags.to_string();
            assert_eq!(text.len(), PteFlags::LETTERS.len());
            assert_eq!(text.parse(), Ok(flags), "{text}");
        }
    }

    #[test]
    fn flags_read_well() {
        let text = |bits| PteFlags::of_entry(Level(0), bits).to_string();
        assert_eq!(text(0x67), "rwxu---AD");
        assert_eq!(text((1 << 63) | 0x07), "rw-u-----");
        assert_eq!(text(0x9d), "r-xutcp--");
        assert_eq!(text(0), "--x------");
    }

    #[test]
    fn letters_come_in_any_order() {
        let flags = Ok(PteFlags::PRESENT | PteFlags::RW | PteFlags::USER | PteFlags::NX);
        assert_eq!("urw".parse::<PteFlags>(), flags);
        assert_eq!("rw-u-----".parse::<PteFlags>(), flags);
        assert_eq!("rwz".parse::<PteFlags>(), Err(UnknownFlag('z')));
        assert_eq!("RW".parse::<PteFlags>(), Err(UnknownFlag('R')));
    }

    #[test]
    fn a_large_leaf_has_its_pat_elsewhere() {
        let flags = |level, word| PteFlags::of_entry(Level(level), word);
        // Bit 7 of a large leaf says that it is one.
        assert_eq!(flags(1, 0x83), PteFlags::PRESENT | PteFlags::RW);
        let with_pat = PteFlags::PRESENT | PteFlags::PAT;
        assert_eq!(flags(1, 0x1081), with_pat);
        assert_eq!(flags(0, 0x81), with_pat);
        // In a link, bit 12 is one of the table's frame number.
        assert_eq!(flags(1, 0x1001), PteFlags::PRESENT);
    }

    #[test]
    fn the_frame_of_a_large_leaf_is_aligned() {
        let frame = |level, word| {
            let level = Level(level);
            TableEntry { level, word }.frame()
        };
        assert_eq!(frame(0, (1 << 63) | 0x1234_5fff), 0x12345);
        assert_eq!(frame(1, 0x4020_1067), 0x40201);
        assert_eq!(frame(1, 0x4020_10e7), 0x40200);
        assert_eq!(frame(2, 0x4020_10e7), 0x40000);
        assert_eq!(frame(0, u64::MAX), (1 << 40) - 1);
    }

    fn step(level: u32, raw: u64, val: u64) -> Step {
        Step {
            level: Level(level),
            index: 0,
            table_pfn: Pfn(1),
            table_mfn: Mfn(2),
            raw,
            val,
        }
    }

    fn walk(address: u64, last: Step) -> Walk {
        let (address, steps) = (Address(address), vec![step(3, 0x7007, 0x5007), last]);
        Walk { address, steps }
    }

    #[test]
    fn a_walk_ends_at_a_page_of_its_leaf() {
        let small = walk(0x1234_5678, step(0, 0x9007, 0x8007));
        assert_eq!(small.page(), Some((Pfn(8), Mfn(9))));
        let large = walk(0x1234_5678, step(1, 0x60_0087, 0x40_0087));
        assert_eq!(large.page(), Some((Pfn(0x545), Mfn(0x745))));
        let hidden = walk(0x1234_5678, step(1, 0x87, 0x40_0087));
        assert_eq!(hidden.page(), Some((Pfn(0x545), Mfn::HIDDEN)));
    }

    #[test]
    fn a_walk_that_ends_before_a_leaf_finds_no_page() {
        assert_eq!(walk(0, step(1, 0, 0)).page(), None);
        assert_eq!(walk(0, step(0, 0x8006, 0x8006)).page(), None);
        assert_eq!(walk(0, step(1, 0x8007, 0x8007)).page(), None);
        let (address, steps) = (Address(0), Vec::new());
        assert_eq!(Walk { address, steps }.page(), None);
    }

    #[test]
    fn levels_have_names_and_sizes() {
        let text: Vec<_> = (0..6).map(|level| Level(level).to_string()).collect();
        assert_eq!(text, ["pte", "pmd", "pud", "p4d", "pgd", "5"]);
        assert_eq!([0, 1, 2].map(|n| Level(n).pages()), [1, 512, 512 * 512]);
        assert_eq!(Level(u32::MAX / 9).pages(), 0);
    }

    #[test]
    fn flags_of_spans_mean_the_same_at_all_levels() {
        let flags = |level, pte_flags| {
            let raw = abi::p2m_span {
                level,
                pte_flags,
                ..Default::default()
            };
            Span::from(&raw).flags
        };
        assert_eq!(flags(0, 0x87), flags(1, 0x1087));
        assert_eq!(flags(0, 0x07), flags(2, 0x0087));
    }
}
