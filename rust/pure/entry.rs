// SPDX-License-Identifier: GPL-2.0

//! P2M entries.
//!
//! The encoding is Xen's, see `INVALID_P2M_ENTRY`, `FOREIGN_FRAME_BIT` and `IDENTITY_FRAME_BIT` in
//! `arch/x86/include/asm/xen/page.h`:
//!
//! ```text
//!  63        62         61                               0
//!  foreign   identity   MFN                                   all ones: invalid
//! ```

use super::frame::Mfn;

/// The word of an entry with nothing behind it. An M2P entry without a PFN is the same word.
pub const INVALID: u64 = !0;

/// The word of an M2P entry for a frame that is a guard: it belongs to the domain, is at no PFN, and
/// is next to a frame that is.
pub const GUARD: u64 = !1;

/// The frame belongs to somebody else.
pub const FOREIGN: u64 = 1 << 63;

/// The PFN is the machine frame itself.
///
/// Comparing numbers can't tell this: a frame may come to be at the PFN of its own number.
pub const IDENTITY: u64 = 1 << 62;

/// What is at a PFN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Nothing.
    Invalid,
    /// A machine frame of the same number, not owned by the domain.
    Identity(Mfn),
    /// A machine frame that belongs to somebody else.
    Foreign(Mfn),
    /// A machine frame of the domain.
    Present(Mfn),
}

impl Entry {
    /// Returns the entry that a word stands for.
    ///
    /// Every word stands for one: those that [`raw()`](Self::raw) never makes are
    /// [`Invalid`](Self::Invalid).
    #[inline]
    pub const fn from_raw(word: u64) -> Self {
        // What nearly all words are needs one comparison.
        if let Some(mfn) = Mfn::new(word) {
            return Self::Present(mfn);
        }
        // `INVALID` needs no case of its own: without its two tag bits it's not an MFN.
        match Mfn::new(word & !(FOREIGN | IDENTITY)) {
            None => Self::Invalid,
            Some(mfn) => match (word & FOREIGN != 0, word & IDENTITY != 0) {
                (true, false) => Self::Foreign(mfn),
                (false, true) => Self::Identity(mfn),
                _ => Self::Invalid,
            },
        }
    }

    /// Returns the word that stands for the entry.
    #[inline]
    pub const fn raw(self) -> u64 {
        match self {
            Self::Invalid => INVALID,
            Self::Identity(mfn) => mfn.get() | IDENTITY,
            Self::Foreign(mfn) => mfn.get() | FOREIGN,
            Self::Present(mfn) => mfn.get(),
        }
    }

    /// Returns the machine frame, whoever owns it.
    #[inline]
    pub const fn mfn(self) -> Option<Mfn> {
        match self {
            Self::Invalid => None,
            Self::Identity(mfn) | Self::Foreign(mfn) | Self::Present(mfn) => Some(mfn),
        }
    }

    /// Returns the machine frame, if the domain owns it.
    #[inline]
    pub const fn owned(self) -> Option<Mfn> {
        match self {
            Self::Present(mfn) => Some(mfn),
            _ => None,
        }
    }

    /// Returns the machine frame, if it is one of memory that somebody answers for.
    #[inline]
    pub const fn memory(self) -> Option<Mfn> {
        match self {
            Self::Present(mfn) | Self::Foreign(mfn) => Some(mfn),
            _ => None,
        }
    }

    /// Returns the entry with its frame number blotted out, for those who must not see it.
    #[inline]
    pub const fn redacted(self) -> Self {
        const NONE: Mfn = match Mfn::new(0) {
            Some(mfn) => mfn,
            None => panic!(),
        };

        match self {
            Self::Invalid => Self::Invalid,
            Self::Identity(_) => Self::Identity(NONE),
            Self::Foreign(_) => Self::Foreign(NONE),
            Self::Present(_) => Self::Present(NONE),
        }
    }

    /// Returns the entry that continues a run that begins with `self`, `nr` pages further: none
    /// where there are no MFNs any more.
    #[inline]
    pub const fn advance(self, nr: u64) -> Option<Self> {
        let advanced = match self {
            Self::Invalid => return Some(Self::Invalid),
            Self::Identity(mfn) | Self::Foreign(mfn) | Self::Present(mfn) => mfn.checked_add(nr),
        };
        match (self, advanced) {
            (Self::Identity(_), Some(mfn)) => Some(Self::Identity(mfn)),
            (Self::Foreign(_), Some(mfn)) => Some(Self::Foreign(mfn)),
            (Self::Present(_), Some(mfn)) => Some(Self::Present(mfn)),
            _ => None,
        }
    }
}
