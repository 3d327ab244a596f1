// SPDX-License-Identifier: GPL-2.0

//! Maps from numbers to values that go on from number to number.

use std::collections::BTreeMap;

/// A value for the first of several numbers.
pub(crate) trait Advance: Copy + PartialEq {
    /// Returns the value that goes with it, `nr` numbers further.
    fn after(self, nr: u64) -> Self;
}

/// A number that goes on as it's counted.
impl Advance for u64 {
    fn after(self, nr: u64) -> Self {
        self + nr
    }
}

/// Values of `nr` numbers from the first one on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Extent<T> {
    pub(crate) start: u64,
    pub(crate) nr: u64,
    pub(crate) value: T,
}

/// A map from numbers to values that go on from number to number.
#[derive(Clone, Debug)]
pub(crate) struct Extents<T>(BTreeMap<u64, (u64, T)>);

impl<T> Default for Extents<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T: Advance> Extents<T> {
    pub(crate) fn get(&self, at: u64) -> Option<T> {
        let (start, (nr, value)) = self.0.range(..=at).next_back()?;
        (at - start < *nr).then(|| value.after(at - start))
    }

    /// Makes `at` a number at which an extent begins, if there is one.
    fn cut(&mut self, at: u64) {
        if let Some((start, (nr, value))) = self.0.range_mut(..at).next_back() {
            let len = at - start;
            if len < *nr {
                let rest = (*nr - len, value.after(len));
                *nr = len;
                self.0.insert(at, rest);
            }
        }
    }

    pub(crate) fn remove(&mut self, start: u64, nr: u64) {
        self.cut(start);
        self.cut(start + nr);
        let gone: Vec<u64> = self.0.range(start..start + nr).map(|(at, _)| *at).collect();
        for at in gone {
            self.0.remove(&at);
        }
    }

    pub(crate) fn insert(&mut self, start: u64, nr: u64, value: T) {
        self.remove(start, nr);
        self.0.insert(start, (nr, value));
    }

    pub(crate) fn change(&mut self, start: u64, nr: u64, change: impl Fn(&mut T)) {
        self.cut(start);
        self.cut(start + nr);
        for (_, (_, value)) in self.0.range_mut(start..start + nr) {
            change(value);
        }
    }

    /// Returns the parts of extents that are in a range.
    pub(crate) fn within(&self, start: u64, nr: u64) -> Vec<Extent<T>> {
        let first = self.0.range(..=start).next_back();
        let from = first.map_or(start, |(at, _)| *at);
        let part = |(&at, &(len, value)): (&u64, &(u64, T))| {
            let begin = at.max(start);
            let nr = (at + len).min(start + nr).checked_sub(begin)?;
            (nr > 0).then(|| Extent {
                start: begin,
                nr,
                value: value.after(begin - at),
            })
        };
        self.0.range(from..start + nr).filter_map(part).collect()
    }

    /// Returns how many numbers of a range have a value.
    pub(crate) fn nr_within(&self, start: u64, nr: u64) -> u64 {
        self.within(start, nr).iter().map(|part| part.nr).sum()
    }

    /// Returns all extents, those that go on from the one before joined with it.
    pub(crate) fn merged(&self) -> Vec<Extent<T>> {
        let all = self.0.iter();
        merge(all.map(|(&start, &(nr, value))| Extent { start, nr, value }))
    }
}

/// Joins extents, which are in order, with those before that they go on from.
pub(crate) fn merge<T: Advance>(extents: impl IntoIterator<Item = Extent<T>>) -> Vec<Extent<T>> {
    let mut merged: Vec<Extent<T>> = Vec::new();
    for extent in extents {
        match merged.last_mut() {
            Some(last)
                if last.start + last.nr == extent.start
                    && last.value.after(last.nr) == extent.value =>
            {
                last.nr += extent.nr;
            }
            _ => merged.push(extent),
        }
    }
    merged
}

#[test]
fn extents_are_a_map() {
    // Every pair of ranges in a small space, inserted and removed, against an array.
    let ranges = || (0..7u64).flat_map(|start| (1..=7 - start).map(move |nr| (start, nr)));
    for (first, second) in ranges().flat_map(|a| ranges().map(move |b| (a, b))) {
        for is_removed in [false, true] {
            let mut extents = Extents::<u64>::default();
            extents.insert(first.0, first.1, 100 + first.0);
            let mut array: Vec<Option<u64>> = (0..8)
                .map(|at| (at >= first.0 && at < first.0 + first.1).then_some(100 + at))
                .collect();
            if is_removed {
                extents.remove(second.0, second.1);
            } else {
                extents.insert(second.0, second.1, 200);
            }
            for at in 0..second.1 {
                array[(second.0 + at) as usize] = (!is_removed).then_some(200 + at);
            }
            for at in 0..8 {
                assert_eq!(extents.get(at), array[at as usize]);
            }
            for (start, nr) in ranges() {
                let part = array.iter().skip(start as usize).take(nr as usize);
                let expected = part.flatten().count() as u64;
                assert_eq!(extents.nr_within(start, nr), expected);
            }
        }
    }
}
