// SPDX-License-Identifier: GPL-2.0

//! Counters of what happens to pages, for fdinfo and debugfs. They only count up.

use kernel::{
    seq_file::SeqFile,
    seq_print,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

/// What is counted.
#[derive(Clone, Copy)]
pub(crate) enum Counter {
    /// Pages that got a frame.
    Populated,
    /// Pages that gave their frame back.
    Released,
    /// Pages that got another frame.
    Moved,
    /// Pages that should have got another frame and were left alone.
    Busy,
}

/// The counters and their names, in order.
const NAMES: [&str; 4] = ["populated", "released", "moved", "busy"];

/// Counters of all domains that there ever were.
static TOTAL: Counters = Counters::new();

/// A set of counters.
pub(crate) struct Counters([Atomic<u64>; NAMES.len()]);

impl Counters {
    /// Nothing has happened yet.
    pub(crate) const fn new() -> Self {
        Self([const { Atomic::new(0) }; NAMES.len()])
    }

    /// Counts pages of a domain, and of all domains.
    pub(crate) fn add(&self, counter: Counter, nr_pages: u64) {
        for counters in [self, &TOTAL] {
            // CAST: It's the position of one of the names.
            if let Some(place) = counters.0.get(counter as usize) {
                place.fetch_add(nr_pages, Relaxed);
            }
        }
    }

    fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let values = self.0.iter().map(|place| place.load(Relaxed));
        NAMES.into_iter().zip(values)
    }

    /// Prints the counters of a domain.
    pub(crate) fn show(&self, m: &SeqFile) {
        for (name, value) in self.iter() {
            seq_print!(m, "p2m-{}:\t{}\n", name, value);
        }
    }

    /// Prints the counters of all domains.
    pub(crate) fn write_total(f: &mut impl core::fmt::Write) -> core::fmt::Result {
        TOTAL
            .iter()
            .try_for_each(|(name, value)| writeln!(f, "{name} {value}"))
    }
}
