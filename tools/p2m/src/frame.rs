// SPDX-License-Identifier: GPL-2.0

//! Frame numbers, and what a P2M says about them.

use core::fmt;
use core::ops::Range;
use core::str::FromStr;

use serde::{Serialize, Serializer};

use crate::abi;
use crate::paging::Address;

/// A pseudo-physical frame number: what the owner of a domain sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Pfn(pub u64);

/// A machine frame number: the page frame that really holds the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct Mfn(pub u64);

impl Mfn {
    /// What the kernel shows instead of an MFN to an opener without `CAP_SYS_ADMIN`.
    ///
    /// No page is there: the first frame of a PC belongs to the firmware.
    pub const HIDDEN: Self = Self(0);
}

/// Hexadecimal with a prefix, padded to the width asked for: `{:8}` gives eight digits.
macro_rules! display_as_hex {
    ($($type:ident)*) => {$(
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:#01$x}", self.0, f.width().map_or(0, |digits| digits + 2))
            }
        }
    )*};
}

display_as_hex! { Pfn Mfn Address }

/// A P2M entry: what is at a PFN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Entry(u64);

/// The kinds of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// There is nothing.
    Invalid,
    /// A frame of the domain.
    Frame(Mfn),
    /// A frame that belongs to somebody else.
    Foreign(Mfn),
    /// The PFN is that machine frame itself.
    Identity(Mfn),
}

impl Entry {
    /// The entry of a PFN that nothing is at.
    pub const INVALID: Self = Self(abi::ENTRY_INVALID);

    /// Returns the entry that a word of the ABI stands for.
    pub const fn from_raw(word: u64) -> Self {
        Self(word)
    }

    /// Returns the word of the ABI.
    pub const fn raw(self) -> u64 {
        self.0
    }

    /// Returns what the entry says.
    pub const fn kind(self) -> EntryKind {
        let mfn = Mfn(self.0 & abi::ENTRY_MFN_MASK);
        let foreign = self.0 & abi::ENTRY_FOREIGN != 0;
        let identity = self.0 & abi::ENTRY_IDENTITY != 0;
        match (foreign, identity) {
            (false, false) => EntryKind::Frame(mfn),
            (true, false) => EntryKind::Foreign(mfn),
            (false, true) => EntryKind::Identity(mfn),
            // All ones; the kernel makes no other word with both bits.
            (true, true) => EntryKind::Invalid,
        }
    }

    /// Returns the machine frame, whoever owns it.
    pub const fn mfn(self) -> Option<Mfn> {
        match self.kind() {
            EntryKind::Invalid => None,
            EntryKind::Frame(mfn) | EntryKind::Foreign(mfn) | EntryKind::Identity(mfn) => Some(mfn),
        }
    }

    /// Returns the entry of the PFN that is `nr` pages further in the same run.
    ///
    /// That of an invalid or hidden one is the same: there is no number to count on.
    pub const fn advance(self, nr: u64) -> Self {
        match self.mfn() {
            None | Some(Mfn::HIDDEN) => self,
            Some(_) => Self(self.0.wrapping_add(nr)),
        }
    }
}

impl From<EntryKind> for Entry {
    fn from(kind: EntryKind) -> Self {
        match kind {
            EntryKind::Invalid => Self::INVALID,
            EntryKind::Frame(mfn) => Self(mfn.0),
            EntryKind::Foreign(mfn) => Self(mfn.0 | abi::ENTRY_FOREIGN),
            EntryKind::Identity(mfn) => Self(mfn.0 | abi::ENTRY_IDENTITY),
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.mfn() {
            None => return f.write_str("nothing"),
            Some(Mfn::HIDDEN) => f.write_str("MFN hidden")?,
            Some(mfn) => {
                f.write_str("MFN ")?;
                mfn.fmt(f)?;
            }
        }
        match self.kind() {
            EntryKind::Foreign(_) => f.write_str(" (foreign)"),
            EntryKind::Identity(_) => f.write_str(" (identity)"),
            EntryKind::Invalid | EntryKind::Frame(_) => Ok(()),
        }
    }
}

impl Serialize for Entry {
    /// As `{"type": "frame", "mfn": 4711}`; the MFN is null if there is none or it's hidden.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Form {
            r#type: &'static str,
            mfn: Option<Mfn>,
        }
        let r#type = match self.kind() {
            EntryKind::Invalid => "invalid",
            EntryKind::Frame(_) => "frame",
            EntryKind::Foreign(_) => "foreign",
            EntryKind::Identity(_) => "identity",
        };
        let mfn = self.mfn().filter(|&mfn| mfn != Mfn::HIDDEN);
        Form { r#type, mfn }.serialize(serializer)
    }
}

/// Consecutive PFNs with consecutive MFNs, or with nothing at all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Run {
    /// First PFN.
    pub pfn: Pfn,
    /// Number of pages.
    pub nr_pages: u64,
    /// Entry of the first PFN.
    #[serde(flatten)]
    pub entry: Entry,
}

impl Run {
    /// Returns the PFNs and their entries.
    pub fn pages(self) -> impl Iterator<Item = (Pfn, Entry)> {
        (0..self.nr_pages).map(move |n| (Pfn(self.pfn.0 + n), self.entry.advance(n)))
    }
}

/// Where the machine frames of a region come from, and in which order.
///
/// A newer module may have policies that this library has no name for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Policy(pub u32);

impl Policy {
    /// Whatever is fastest.
    pub const ANY: Self = Self(abi::P2M_POLICY_ANY);
    /// No two neighbours are machine neighbours.
    pub const SCATTER: Self = Self(abi::P2M_POLICY_SCATTER);
    /// One machine run.
    pub const CONTIGUOUS: Self = Self(abi::P2M_POLICY_CONTIGUOUS);
    /// Machine frames of 2 MiB, wherever pages are as aligned.
    pub const SUPERPAGE: Self = Self(abi::P2M_POLICY_SUPERPAGE);

    /// The names of the policies that this library knows.
    pub const NAMES: [(&'static str, Self); 4] = [
        ("any", Self::ANY),
        ("scatter", Self::SCATTER),
        ("contiguous", Self::CONTIGUOUS),
        ("superpage", Self::SUPERPAGE),
    ];
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::NAMES.iter().find(|(_, policy)| policy == self) {
            Some((name, _)) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

/// Is none of the names of [`Policy::NAMES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such policy")]
pub struct UnknownPolicy;

impl FromStr for Policy {
    type Err = UnknownPolicy;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::NAMES
            .iter()
            .find(|(name, _)| *name == text)
            .map(|&(_, policy)| policy)
            .ok_or(UnknownPolicy)
    }
}

impl Serialize for Policy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A populated range of PFNs in a domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Region {
    /// First PFN.
    pub base_pfn: Pfn,
    /// Number of pages.
    pub nr_pages: u64,
    /// The policy given at its creation.
    pub policy: Policy,
    /// The seed given at its creation.
    pub seed: u64,
    /// Whether its pages come when they are touched.
    pub on_demand: bool,
    /// What is asked of its frames.
    #[serde(flatten)]
    pub constraint: Constraint,
}

/// What is asked of the machine frames of a region, besides the order that its policy puts them
/// into. By default nothing is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Constraint {
    /// Whether there is a guard on either side of each frame.
    pub guarded: bool,
    /// The NUMA node they are of.
    pub node: Option<u32>,
    /// All of them are in this range.
    pub mfns: Option<MfnRange>,
    /// What their numbers have in common.
    pub colour: Option<Colour>,
}

/// A range of machine frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MfnRange {
    /// The first one.
    pub start: Mfn,
    /// The first one behind those.
    pub end: Mfn,
}

/// The frames whose numbers have a remainder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Colour {
    /// The remainder.
    pub colour: u32,
    /// What is divided by: the number of colours.
    pub of: u32,
}

impl fmt::Display for Constraint {
    /// What follows in a list of what is special about a region.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.guarded {
            f.write_str(", guarded")?;
        }
        if let Some(node) = self.node {
            write!(f, ", node {node}")?;
        }
        if let Some(MfnRange { start, end }) = self.mfns {
            write!(f, ", MFN {start}..{end}")?;
        }
        if let Some(Colour { colour, of }) = self.colour {
            write!(f, ", colour {colour} of {of}")?;
        }
        Ok(())
    }
}

impl Region {
    /// Returns its PFNs.
    pub fn range(&self) -> Range<Pfn> {
        pages(self.base_pfn, self.nr_pages)
    }
}

/// Returns `nr` PFNs from `start` on; fewer if the numbers end there.
pub fn pages(start: Pfn, nr: u64) -> Range<Pfn> {
    start..Pfn(start.0.saturating_add(nr))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every combination of tag bits, with the least, some and the largest MFN.
    fn entries() -> impl Iterator<Item = Entry> {
        (0..4u64).flat_map(|tags| {
            [0, 1, 0x1234, abi::ENTRY_MFN_MASK].map(|mfn| Entry::from_raw((tags << 62) | mfn))
        })
    }

    #[test]
    fn kind_and_entry_are_inverse() {
        for entry in entries().filter(|entry| entry.kind() != EntryKind::Invalid) {
            assert_eq!(Entry::from(entry.kind()), entry);
        }
        assert_eq!(Entry::from(EntryKind::Invalid), Entry::INVALID);
        assert_eq!(Entry::INVALID.kind(), EntryKind::Invalid);
    }

    #[test]
    fn mfn_never_shows_tag_bits() {
        for mfn in entries().filter_map(Entry::mfn) {
            assert_eq!(mfn.0 >> 62, 0);
        }
    }

    #[test]
    fn advancing_counts_mfns_and_keeps_the_kind() {
        for make in [EntryKind::Frame, EntryKind::Foreign, EntryKind::Identity] {
            let entry = Entry::from(make(Mfn(7)));
            assert_eq!(entry.advance(5).kind(), make(Mfn(12)));
            let hidden = Entry::from(make(Mfn::HIDDEN));
            assert_eq!(hidden.advance(5), hidden);
        }
        assert_eq!(Entry::INVALID.advance(5), Entry::INVALID);
    }

    #[test]
    fn pages_of_a_run_are_consecutive() {
        let run = Run {
            pfn: Pfn(3),
            nr_pages: 3,
            entry: Entry::from(EntryKind::Frame(Mfn(9))),
        };
        let pages: Vec<_> = run.pages().map(|(pfn, e)| (pfn.0, e.raw())).collect();
        assert_eq!(pages, [(3, 9), (4, 10), (5, 11)]);
    }

    #[test]
    fn entries_read_well() {
        let text = |word| format!("{:5}", Entry::from_raw(word));
        assert_eq!(text(u64::MAX), "nothing");
        assert_eq!(text(0x1b), "MFN 0x0001b");
        assert_eq!(text(0x1b | (1 << 63)), "MFN 0x0001b (foreign)");
        assert_eq!(text(0x1b | (1 << 62)), "MFN 0x0001b (identity)");
        assert_eq!(text(0), "MFN hidden");
    }

    #[test]
    fn json_has_no_number_where_there_is_no_mfn() {
        let json = |word| serde_json::to_string(&Entry::from_raw(word)).expect("serializable");
        assert_eq!(json(u64::MAX), r#"{"type":"invalid","mfn":null}"#);
        assert_eq!(json(0), r#"{"type":"frame","mfn":null}"#);
        assert_eq!(json(27), r#"{"type":"frame","mfn":27}"#);
    }

    #[test]
    fn a_constraint_says_only_what_is_asked() {
        assert_eq!(Constraint::default().to_string(), "");
        let all = Constraint {
            guarded: true,
            node: Some(1),
            mfns: Some(MfnRange {
                start: Mfn(0),
                end: Mfn(0x100000),
            }),
            colour: Some(Colour { colour: 3, of: 16 }),
        };
        assert_eq!(
            all.to_string(),
            ", guarded, node 1, MFN 0x0..0x100000, colour 3 of 16"
        );
    }

    #[test]
    fn policy_names_and_policies_are_inverse() {
        for (name, policy) in Policy::NAMES {
            assert_eq!(policy.to_string(), name);
            assert_eq!(name.parse(), Ok(policy));
        }
        assert_eq!(Policy(9).to_string(), "9");
        assert_eq!("9".parse::<Policy>(), Err(UnknownPolicy));
    }
}
