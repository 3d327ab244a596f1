// SPDX-License-Identifier: GPL-2.0

//! Which memory is free while pieces are being placed.

use core::ops::Range;

/// Free ranges of addresses, in order, none of them empty, no two touching.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layout {
    free: Vec<Range<u64>>,
}

impl Layout {
    /// Makes one of ranges, which come in order.
    pub(crate) fn of(ranges: impl IntoIterator<Item = Range<u64>>) -> Self {
        let mut layout = Self::default();
        for range in ranges {
            layout.add(range);
        }
        layout
    }

    /// Adds a range. Ranges come in order.
    fn add(&mut self, range: Range<u64>) {
        match self.free.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ if range.is_empty() => {}
            _ => self.free.push(range),
        }
    }

    /// Takes exactly this range, and returns whether all of it was free.
    #[must_use]
    pub(crate) fn take(&mut self, range: Range<u64>) -> bool {
        if range.is_empty() {
            return true;
        }
        let holds = |free: &Range<u64>| free.start <= range.start && range.end <= free.end;
        let Some(index) = self.free.iter().position(holds) else {
            return false;
        };
        let free = self.free[index].clone();
        let rest = [free.start..range.start, range.end..free.end];
        let rest = rest.into_iter().filter(|rest| !rest.is_empty());
        self.free.splice(index..=index, rest);
        true
    }

    /// Takes the lowest range that begins at a multiple of `align`, a power of two, at `from` or
    /// above, and ends at `below` or before.
    #[must_use]
    pub(crate) fn take_lowest(
        &mut self,
        bytes: u64,
        align: u64,
        from: u64,
        below: u64,
    ) -> Option<u64> {
        let start = self.free.iter().find_map(|free| {
            let start = free.start.max(from).checked_next_multiple_of(align)?;
            let end = start.checked_add(bytes)?;
            (end <= free.end.min(below)).then_some(start)
        })?;
        self.take(start..start + bytes).then_some(start)
    }

    /// Takes the highest range that begins at a multiple of `align`, a power of two, and ends at
    /// `below` or before.
    #[must_use]
    pub(crate) fn take_highest(&mut self, bytes: u64, align: u64, below: u64) -> Option<u64> {
        let start = self.free.iter().rev().find_map(|free| {
            let end = free.end.min(below);
            let start = end.checked_sub(bytes)? & !(align - 1);
            (start >= free.start).then_some(start)
        })?;
        self.take(start..start + bytes).then_some(start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn layout(ranges: &[Range<u64>]) -> Layout {
        Layout::of(ranges.iter().cloned())
    }

    #[test]
    fn only_what_is_free_can_be_taken() {
        let mut layout = layout(&[0..10, 10..20, 30..40]);
        assert_eq!(layout.free, [0..20, 30..40]);
        assert!(layout.take(5..15));
        for range in [5..6, 0..6, 14..16, 15..31, 39..41, 20..30] {
            assert!(!layout.take(range.clone()), "{range:?}");
        }
        assert!(layout.take(0..5) && layout.take(15..20) && layout.take(30..40));
        assert_eq!(layout.free, []);
    }

    #[test]
    fn nothing_is_found_at_the_edge_of_numbers() {
        let mut layout = layout(&[u64::MAX - 20..u64::MAX]);
        assert_eq!(layout.take_lowest(8, 16, 0, u64::MAX), Some(u64::MAX - 15));
        assert_eq!(layout.take_lowest(8, 16, 0, u64::MAX), None);
        assert_eq!(layout.take_lowest(u64::MAX, 1, 1, u64::MAX), None);
        assert_eq!(layout.take_highest(u64::MAX, 1, u64::MAX), None);
    }

    proptest! {
        /// Whatever is taken, in whatever way: every piece is within what was free at first, on its
        /// boundary and within its limits, and no two have a byte in common. What is refused would
        /// not have fit anywhere, by trying every address.
        #[test]
        fn pieces_are_apart_and_a_refusal_is_right(
            wanted in proptest::collection::vec((1u64..12, 0u32..4, 0u64..64, 0u64..70, any::<bool>()), 1..20)
        ) {
            let memory = [0..7u64, 9..30, 33..64];
            let mut layout = layout(&memory);
            let mut used = [false; 64];
            for range in [7..9, 30..33usize] {
                used[range].fill(true);
            }
            for (bytes, align, from, below, low) in wanted {
                let align = 1u64 << align;
                let from = if low { from } else { 0 };
                let fits = |start: u64| {
                    start % align == 0 && start >= from && start + bytes <= below.min(64)
                        && (start..start + bytes).all(|at| !used[at as usize])
                };
                let mut fitting = (0..64).filter(|&start| fits(start));
                let expected = if low { fitting.next() } else { fitting.next_back() };
                let found = if low {
                    layout.take_lowest(bytes, align, from, below)
                } else {
                    layout.take_highest(bytes, align, below)
                };
                prop_assert_eq!(found, expected);
                if let Some(start) = found {
                    used[start as usize..(start + bytes) as usize].fill(true);
                }
            }
        }
    }
}
