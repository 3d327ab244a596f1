// SPDX-License-Identifier: GPL-2.0

//! Failures on purpose, for kernels that have none of their own.
//!
//! As with `/proc/self/fail-nth`, the n-th place that can fail does so, once. But it counts for an
//! open file, and it works without `CONFIG_FAULT_INJECTION`.

use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

/// What is left to count before something fails on purpose.
pub(crate) struct Injection {
    left: Atomic<u64>,
}

impl Injection {
    /// Nothing fails on purpose.
    pub(crate) fn new() -> Self {
        Self {
            left: Atomic::new(0),
        }
    }

    /// Has the `nth` place that can fail from now on do so, or none if it's 0. Returns what was left
    /// to count.
    pub(crate) fn set(&self, nth: u64) -> u64 {
        self.left.xchg(nth, Relaxed)
    }

    /// Returns whether this place has to fail.
    #[inline]
    #[must_use]
    pub(crate) fn should_fail(&self) -> bool {
        self.left.load(Relaxed) != 0 && self.count()
    }

    #[cold]
    fn count(&self) -> bool {
        let mut left = self.left.load(Relaxed);
        while left != 0 {
            match self.left.cmpxchg(left, left - 1, Relaxed) {
                Ok(_) => return left == 1,
                Err(now) => left = now,
            }
        }
        false
    }

    /// Fails with `error` if this place has to.
    #[inline]
    pub(crate) fn check(&self, error: Error) -> Result {
        if self.should_fail() {
            return Err(error);
        }
        Ok(())
    }
}
