// SPDX-License-Identifier: GPL-2.0

//! The guards of guarded regions.

use std::fmt::{self, Display, Formatter};
use std::io::Write;

use anyhow::Result;
use p2m::{Broken, Guards, OnBroken, Word};
use serde::Serialize;

use crate::args::{Args, CheckGuards};
use crate::format::{Count, Verdict, json, section};
use crate::inspect::{attach, chosen};

/// What a check of several ranges comes to.
#[derive(Serialize)]
struct Report {
    ok: bool,
    #[serde(flatten)]
    guards: Guards,
    refilled: bool,
}

pub(crate) fn check(args: &Args, what: &CheckGuards, out: &mut impl Write) -> Result<bool> {
    let domain = attach(args, &what.pages.target)?;
    let on_broken = match what.refill {
        true => OnBroken::Refill,
        false => OnBroken::Leave,
    };
    let mut guards = Guards::default();
    for range in chosen(what.pages.range.as_ref(), &domain.regions()?) {
        let found = domain.check_guards(range, on_broken)?;
        guards.checked += found.checked;
        guards.broken += found.broken;
        guards.first = guards.first.or(found.first);
    }
    let report = Report {
        ok: guards.broken == 0,
        guards,
        refilled: what.refill,
    };
    if args.json {
        json(out, &report)?;
    } else {
        section(out, "guards", [&report])?;
        section(out, "first", guards.first.map(described))?;
    }
    Ok(report.ok)
}

impl Display for Report {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Guards {
            checked, broken, ..
        } = self.guards;
        write!(f, "{} looked at", Count(checked, "guard"))?;
        if broken > 0 {
            let refilled = if self.refilled { " and refilled" } else { "" };
            write!(f, ", {broken} broken{refilled}")?;
        }
        write!(f, ": {}", Verdict(self.ok))
    }
}

/// Says where somebody has run over an edge.
fn described(broken: Broken) -> String {
    let Broken { pfn, offset, value } = broken;
    let place = match offset {
        ..0 => format!("{} bytes before it", offset.unsigned_abs()),
        _ => format!("at byte {offset:#x} behind its beginning"),
    };
    let pattern = Word(Broken::PATTERN);
    format!("PFN {pfn}, {place}: {value} instead of {pattern}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2m::Pfn;

    #[test]
    fn the_edge_is_told() {
        let text = |offset| {
            described(Broken {
                pfn: Pfn(7),
                offset,
                value: Word(0x41),
            })
        };
        let rest = ": 0x0000000000000041 instead of 0x7261756721326d70";
        assert_eq!(text(-3), format!("PFN 0x7, 3 bytes before it{rest}"));
        let behind = "PFN 0x7, at byte 0x1000 behind its beginning";
        assert_eq!(text(4096), format!("{behind}{rest}"));
    }

    #[test]
    fn a_report_reads_at_a_glance() {
        let text = |broken, refilled| {
            let guards = Guards {
                checked: 12,
                broken,
                first: None,
            };
            let ok = broken == 0;
            Report {
                ok,
                guards,
                refilled,
            }
            .to_string()
        };
        assert_eq!(text(0, true), "12 guards looked at: ok");
        assert_eq!(text(2, false), "12 guards looked at, 2 broken: FAILED");
        assert_eq!(
            text(2, true),
            "12 guards looked at, 2 broken and refilled: FAILED"
        );
    }
}
