// SPDX-License-Identifier: GPL-2.0

//! What a region is made of.

use std::fmt::{self, Display, Formatter};

use p2m::{Entry, Mfn, Pfn, Policy, Region, Run};
use serde::Serialize;

use crate::format::{Bytes, Count, hex_digits};

/// A region, as it's printed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Extent {
    #[serde(flatten)]
    region: Region,
    bytes: u64,
}

impl Extent {
    pub(crate) fn new(region: Region, page_bytes: u64) -> Self {
        Self {
            region,
            bytes: region.nr_pages.saturating_mul(page_bytes),
        }
    }
}

impl Display for Extent {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { region, bytes } = self;
        let range = region.range();
        let pages = Count(region.nr_pages, "page");
        write!(
            f,
            "PFN {}..{} ({}, {pages})",
            range.start,
            range.end,
            Bytes(*bytes)
        )?;
        write!(f, ", policy {}", region.policy)?;
        if region.policy == Policy::SCATTER {
            write!(f, ", seed {}", region.seed)?;
        }
        if region.on_demand {
            f.write_str(", on demand")?;
        }
        region.constraint.fmt(f)
    }
}

/// What is known of the machine frames behind a range of PFNs.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct Machine {
    runs: u64,
    longest_run_pages: u64,
    start_mfn: Option<Mfn>,
    end_mfn: Option<Mfn>,
}

impl Machine {
    /// Takes the sum of runs. Those with nothing behind don't count.
    pub(crate) fn of<E>(runs: impl IntoIterator<Item = Result<Run, E>>) -> Result<Self, E> {
        let mut machine = Self::default();
        for run in runs {
            let run = run?;
            let Some(mfn) = run.entry.mfn() else {
                continue;
            };
            let end = Mfn(mfn.0.saturating_add(run.nr_pages));
            machine.runs += 1;
            machine.longest_run_pages = machine.longest_run_pages.max(run.nr_pages);
            machine.start_mfn = Some(machine.start_mfn.map_or(mfn, |start| start.min(mfn)));
            machine.end_mfn = machine.end_mfn.max(Some(end));
        }
        Ok(machine)
    }
}

impl Display for Machine {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let longest = Count(self.longest_run_pages, "page");
        write!(f, "{}, longest {longest}", Count(self.runs, "run"))?;
        if let (Some(start), Some(end)) = (self.start_mfn, self.end_mfn) {
            write!(f, ", MFN {start}..{end}")?;
        }
        Ok(())
    }
}

/// One page, as it's printed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Page {
    pub(crate) pfn: Pfn,
    #[serde(flatten)]
    pub(crate) entry: Entry,
}

/// Some pages of a region.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub(crate) struct Sample(Vec<Page>);

impl Sample {
    /// How many of the first pages are in it; the last one is too.
    const FIRST: u64 = 3;

    /// Asks for the entries of some pages of a region.
    pub(crate) fn of<E>(
        region: &Region,
        translate: impl FnOnce(&[Pfn]) -> Result<Vec<Entry>, E>,
    ) -> Result<Self, E> {
        let last = region.nr_pages.saturating_sub(1);
        let numbers = (0..Self::FIRST.min(last)).chain([last]);
        let pfns: Vec<_> = numbers.map(|n| Pfn(region.base_pfn.0 + n)).collect();
        let entries = translate(&pfns)?;
        let pages = pfns.into_iter().zip(entries);
        Ok(Self(
            pages.map(|(pfn, entry)| Page { pfn, entry }).collect(),
        ))
    }

    /// Returns the lines to print, with three dots for pages left out.
    pub(crate) fn lines(&self) -> Vec<String> {
        let pfn_digits = self.digits(|page| Some(page.pfn.0));
        let mfn_digits = self.digits(|page| page.entry.mfn().map(|mfn| mfn.0));
        let mut lines = Vec::new();
        let mut next = None;
        for Page { pfn, entry } in &self.0 {
            if next.is_some_and(|next| next != *pfn) {
                lines.push("...".to_owned());
            }
            lines.push(format!("PFN {pfn:pfn_digits$} -> {entry:mfn_digits$}"));
            next = Some(Pfn(pfn.0 + 1));
        }
        lines
    }

    fn digits(&self, number: impl Fn(&Page) -> Option<u64>) -> usize {
        hex_digits(self.0.iter().filter_map(number).max().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2m::Constraint;
    use std::convert::Infallible;

    fn run(pfn: u64, nr_pages: u64, entry: u64) -> Result<Run, Infallible> {
        Ok(Run {
            pfn: Pfn(pfn),
            nr_pages,
            entry: Entry::from_raw(entry),
        })
    }

    fn region(nr_pages: u64, policy: Policy) -> Region {
        Region {
            base_pfn: Pfn(0x10),
            nr_pages,
            policy,
            seed: 7,
            on_demand: false,
            constraint: Constraint::default(),
        }
    }

    fn sample(nr_pages: u64) -> Vec<String> {
        let translate = |pfns: &[Pfn]| -> Result<_, Infallible> {
            Ok(pfns
                .iter()
                .map(|pfn| Entry::from_raw(0x1000 - pfn.0))
                .collect())
        };
        let Ok(sample) = Sample::of(&region(nr_pages, Policy::ANY), translate);
        sample.lines()
    }

    #[test]
    fn an_extent_tells_the_seed_only_if_it_matters() {
        let text = |policy| Extent::new(region(16384, policy), 4096).to_string();
        let scattered = "PFN 0x10..0x4010 (64 MiB, 16384 pages), policy scatter, seed 7";
        assert_eq!(text(Policy::SCATTER), scattered);
        assert!(text(Policy::ANY).ends_with("policy any"));
        let on_demand = Region {
            on_demand: true,
            ..region(2, Policy::ANY)
        };
        let text = Extent::new(on_demand, 4096).to_string();
        assert!(text.ends_with("policy any, on demand"));
        let guarded = Region {
            constraint: Constraint {
                guarded: true,
                ..Constraint::default()
            },
            ..on_demand
        };
        let text = Extent::new(guarded, 4096).to_string();
        assert!(text.ends_with("policy any, on demand, guarded"));
    }

    #[test]
    fn json_of_an_extent_is_flat_and_complete() {
        let json = serde_json::to_value(Extent::new(region(2, Policy::SCATTER), 4096));
        let expected = serde_json::json!({
            "base_pfn": 16, "nr_pages": 2, "policy": "scatter", "seed": 7, "on_demand": false,
            "guarded": false, "node": null, "mfns": null, "colour": null, "bytes": 8192,
        });
        assert_eq!(json.expect("serializable"), expected);
    }

    #[test]
    fn machine_counts_runs_and_spans_their_frames() {
        let runs = [run(0, 4, 0x50), run(4, 9, u64::MAX), run(13, 2, 0x20)];
        let Ok(machine) = Machine::of(runs);
        assert_eq!(
            machine.to_string(),
            "2 runs, longest 4 pages, MFN 0x20..0x54"
        );
    }

    #[test]
    fn machine_of_nothing_has_no_frames() {
        let Ok(machine) = Machine::of([run(0, 9, u64::MAX)]);
        assert_eq!(machine.to_string(), "0 runs, longest 0 pages");
    }

    #[test]
    fn a_failing_run_fails_the_machine() {
        assert_eq!(Machine::of([Err("torn")]), Err("torn"));
    }

    #[test]
    fn a_sample_shows_each_page_once_and_dots_for_a_gap() {
        assert_eq!(sample(1), ["PFN 0x10 -> MFN 0xff0"]);
        assert_eq!(sample(2).len(), 2);
        assert_eq!(sample(4).len(), 4);
        assert!(!sample(4).contains(&"...".to_owned()));
        let lines = [
            "PFN 0x010 -> MFN 0xff0",
            "PFN 0x011 -> MFN 0xfef",
            "PFN 0x012 -> MFN 0xfee",
            "...",
            "PFN 0x10f -> MFN 0xef1",
        ];
        assert_eq!(sample(256), lines);
    }
}
