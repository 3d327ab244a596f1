// SPDX-License-Identifier: GPL-2.0

//! Failures on demand.

/// Decides which of several attempts fail.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) enum Fuse {
    /// None.
    #[default]
    Never,
    /// The one after so many good ones.
    Once(u64),
    /// All after so many good ones.
    Forever(u64),
}

impl Fuse {
    /// Counts an attempt, and returns whether it has to fail.
    pub(crate) fn blows(&mut self) -> bool {
        match *self {
            Self::Never => false,
            Self::Once(0) => {
                *self = Self::Never;
                true
            }
            Self::Once(left) => {
                *self = Self::Once(left - 1);
                false
            }
            Self::Forever(0) => true,
            Self::Forever(left) => {
                *self = Self::Forever(left - 1);
                false
            }
        }
    }
}
