// SPDX-License-Identifier: GPL-2.0

//! Interleaved measurements.
//!
//! What is compared is measured in the same rounds, each contestant once a round and beginning with
//! another one each time. So what disturbs the machine for a while disturbs all of them, and a ratio
//! is the median of the ratios within the rounds. The well-known harnesses measure one thing after
//! the other, which on a shared machine compares the machine with itself.

use std::hint::black_box;
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// The median of samples, and how far they are from it.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Stat {
    pub(crate) median: f64,
    /// Median absolute deviation, as a part of the median.
    pub(crate) noise: f64,
}

impl Stat {
    pub(crate) fn of(samples: impl IntoIterator<Item = f64>) -> Self {
        let mut sorted: Vec<f64> = samples.into_iter().collect();
        let median = median(&mut sorted);
        let mut deviations: Vec<f64> = sorted.iter().map(|x| (x - median).abs()).collect();
        Self {
            median,
            noise: self::median(&mut deviations) / median.abs(),
        }
    }

    /// Returns whether both are numbers.
    pub(crate) fn is_finite(&self) -> bool {
        self.median.is_finite() && self.noise.is_finite()
    }

    /// What was not sampled, but is so.
    pub(crate) fn exactly(value: f64) -> Self {
        Self {
            median: value,
            noise: 0.0,
        }
    }
}

fn median(samples: &mut [f64]) -> f64 {
    samples.sort_by(f64::total_cmp);
    let middle = samples.len() / 2;
    match samples {
        [] => f64::NAN,
        _ if samples.len() % 2 == 1 => samples[middle],
        _ => (samples[middle - 1] + samples[middle]) / 2.0,
    }
}

/// Something that is measured, in `N` ways at once: it returns how many nanoseconds an operation took,
/// each time that it's asked.
pub(crate) struct Contestant<'a, const N: usize = 1> {
    name: String,
    sample: Box<dyn FnMut() -> [f64; N] + 'a>,
}

impl<'a, const N: usize> Contestant<'a, N> {
    /// Something that measures itself.
    pub(crate) fn new(name: impl Into<String>, sample: impl FnMut() -> [f64; N] + 'a) -> Self {
        Self {
            name: name.into(),
            sample: Box::new(sample),
        }
    }
}

impl<'a> Contestant<'a> {
    /// A function that does `nr_ops` operations in this thread and returns something that depends on
    /// all of them. Only the time in which the thread had a processor counts.
    pub(crate) fn timed<T>(
        name: impl Into<String>,
        nr_ops: usize,
        mut run: impl FnMut() -> T + 'a,
    ) -> Self {
        Self::new(name, move || {
            let start = cpu_time();
            black_box(run());
            [(cpu_time() - start) / nr_ops as f64]
        })
    }
}

/// Returns for how many nanoseconds this thread had a processor.
pub(crate) fn cpu_time() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// Returns the nanoseconds since `start`.
pub(crate) fn nanoseconds(start: Instant) -> f64 {
    start.elapsed().as_nanos() as f64
}

/// What was measured of a contestant, round by round.
pub(crate) struct Samples {
    pub(crate) name: String,
    pub(crate) nanoseconds: Vec<f64>,
}

impl Samples {
    fn new(name: String) -> Self {
        Self {
            name,
            nanoseconds: Vec::new(),
        }
    }

    pub(crate) fn stat(&self) -> Stat {
        Stat::of(self.nanoseconds.iter().copied())
    }

    /// Returns how many times as long as `peer` this took.
    pub(crate) fn ratio(&self, peer: &Self) -> Stat {
        let pairs = self.nanoseconds.iter().zip(&peer.nanoseconds);
        Stat::of(pairs.map(|(own, peer)| own / peer))
    }
}

/// Measures all contestants `nr_rounds` times, after one round that doesn't count. Returns what was
/// measured of each, for each way of measuring.
pub(crate) fn race<const N: usize>(
    nr_rounds: usize,
    mut contestants: Vec<Contestant<'_, N>>,
) -> [Vec<Samples>; N] {
    let mut results = [(); N].map(|()| -> Vec<Samples> {
        let names = contestants.iter().map(|contestant| &contestant.name);
        names.cloned().map(Samples::new).collect()
    });
    let nr = contestants.len();
    for round in 0..=nr_rounds {
        for turn in 0..nr {
            let which = (round + turn) % nr;
            let samples = (contestants[which].sample)();
            if round > 0 {
                for (result, sample) in results.iter_mut().zip(samples) {
                    result[which].nanoseconds.push(sample);
                }
            }
        }
    }
    results
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_ignores_what_is_far_away() {
        for (samples, median, noise) in [
            (vec![3.0], 3.0, 0.0),
            (vec![1.0, 3.0], 2.0, 0.5),
            (vec![4.0, 1e9, 2.0], 4.0, 0.5),
            (vec![2.0, 2.0, 1e9, 2.0], 2.0, 0.0),
        ] {
            let stat = Stat::of(samples);
            assert_eq!((stat.median, stat.noise), (median, noise));
        }
    }

    #[test]
    fn a_ratio_is_taken_within_rounds() {
        // The machine is ten times as slow in the second half, for both.
        let samples = |nanoseconds: &[f64]| Samples {
            name: String::new(),
            nanoseconds: nanoseconds.to_vec(),
        };
        let own = samples(&[2.0, 2.0, 20.0, 20.0]);
        let peer = samples(&[1.0, 1.0, 10.0, 10.0]);
        let ratio = own.ratio(&peer);
        assert_eq!((ratio.median, ratio.noise), (2.0, 0.0));
    }

    #[test]
    fn each_contestant_is_first_in_turn_and_the_first_round_does_not_count() {
        let log = std::cell::RefCell::new(Vec::new());
        let contestant = |name| {
            let log = &log;
            Contestant::new(name, move || {
                log.borrow_mut().push(name);
                [log.borrow().len() as f64]
            })
        };
        let [results] = race(3, ["a", "b"].map(contestant).into());
        assert_eq!(log.borrow().join(""), "abbaabba");
        assert_eq!(results[0].nanoseconds, [4.0, 5.0, 8.0]);
        assert_eq!(results[1].nanoseconds, [3.0, 6.0, 7.0]);
    }
}
