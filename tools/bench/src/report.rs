// SPDX-License-Identifier: GPL-2.0

//! What was measured, as data and as a table.

use std::fmt::{self, Write as _};
use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::race::{Samples, Stat};

/// What a ratio should be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Goal {
    /// At most so many times what the peer needs.
    AtMost(f64),
    /// At most one so many-th of what the peer needs.
    Faster(f64),
}

/// One comparison.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Figure {
    /// What is measured.
    pub(crate) title: String,
    /// Of what, or how.
    pub(crate) case: String,
    /// What it's compared with.
    pub(crate) peer: String,
    /// The unit of both values.
    pub(crate) unit: String,
    pub(crate) value: Stat,
    pub(crate) peer_value: Stat,
    /// The value as a multiple of the peer's, round by round.
    pub(crate) ratio: Stat,
    pub(crate) goal: Option<Goal>,
}

impl Figure {
    /// Compares what was measured in the same rounds.
    pub(crate) fn of(
        title: &str,
        case: &str,
        (own, peer): (&Samples, &Samples),
        goal: Option<Goal>,
    ) -> Self {
        Self {
            title: title.to_owned(),
            case: case.to_owned(),
            peer: peer.name.clone(),
            unit: "ns".to_owned(),
            value: own.stat(),
            peer_value: peer.stat(),
            ratio: own.ratio(peer),
            goal,
        }
    }

    /// Compares what isn't a matter of time.
    pub(crate) fn exact(
        title: &str,
        case: &str,
        value: f64,
        (peer, peer_value): (&str, f64),
        unit: &str,
        goal: Option<Goal>,
    ) -> Self {
        Self {
            title: title.to_owned(),
            case: case.to_owned(),
            peer: peer.to_owned(),
            unit: unit.to_owned(),
            value: Stat::exactly(value),
            peer_value: Stat::exactly(peer_value),
            ratio: Stat::exactly(value / peer_value),
            goal,
        }
    }

    /// Compares the first one with all others.
    pub(crate) fn of_first(
        title: &str,
        case: &str,
        samples: &[Samples],
        goal: Option<Goal>,
    ) -> Vec<Self> {
        let (own, peers) = samples
            .split_first()
            .expect("there is something to compare");
        let figure = |peer| Self::of(title, case, (own, peer), goal);
        peers.iter().map(figure).collect()
    }

    /// Returns whether all of it are numbers.
    fn is_finite(&self) -> bool {
        [self.value, self.peer_value, self.ratio]
            .iter()
            .all(Stat::is_finite)
    }

    /// Returns whether the goal is reached, if there is one.
    fn is_good(&self) -> Option<bool> {
        Some(match self.goal? {
            Goal::AtMost(limit) => self.ratio.median <= limit,
            Goal::Faster(times) => self.ratio.median * times <= 1.0,
        })
    }

    fn row(&self) -> [String; 8] {
        let percent = 100.0 * self.ratio.noise;
        let (ratio, goal) = match self.goal {
            Some(Goal::Faster(times)) => (
                format!("1/{}", Digits(1.0 / self.ratio.median)),
                format!("≤ 1/{times}"),
            ),
            Some(Goal::AtMost(limit)) => {
                (Digits(self.ratio.median).to_string(), format!("≤ {limit}"))
            }
            None => (Digits(self.ratio.median).to_string(), "–".to_owned()),
        };
        let verdict = match self.is_good() {
            None => "",
            Some(true) => "yes",
            Some(false) => "no",
        };
        [
            self.title.clone(),
            self.case.clone(),
            Value(self.value.median, &self.unit).to_string(),
            format!(
                "{}: {}",
                self.peer,
                Value(self.peer_value.median, &self.unit)
            ),
            ratio,
            format!("{percent:.0}%"),
            goal,
            verdict.to_owned(),
        ]
    }
}

/// A number with three digits.
struct Digits(f64);

impl fmt::Display for Digits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            x if x >= 100.0 => write!(f, "{x:.0}"),
            x if x >= 10.0 => write!(f, "{x:.1}"),
            x => write!(f, "{x:.2}"),
        }
    }
}

/// A value in a unit, of which nanoseconds may be many.
struct Value<'a>(f64, &'a str);

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0, self.1) {
            (x, "ns") if x >= 1e9 => write!(f, "{} s", Digits(x / 1e9)),
            (x, "ns") if x >= 1e6 => write!(f, "{} ms", Digits(x / 1e6)),
            (x, "ns") if x >= 1e3 => write!(f, "{} µs", Digits(x / 1e3)),
            (x, unit) => write!(f, "{} {unit}", Digits(x)),
        }
    }
}

/// How something grows with the size of the space.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Curve {
    pub(crate) name: String,
    /// Size of the space in bytes, and nanoseconds.
    pub(crate) points: Vec<(u64, Stat)>,
}

/// Where it was measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Machine {
    /// Seconds since the epoch.
    pub(crate) time: u64,
    pub(crate) cpu: String,
    pub(crate) nr_cpus: usize,
    pub(crate) kernel: String,
    pub(crate) memory_bytes: u64,
    /// Processes that wanted to run, in the minute before the beginning and before the end.
    pub(crate) load: (f64, f64),
}

impl Machine {
    /// Returns what there is to know of this machine now.
    pub(crate) fn here() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let after = |text: &str, key: &str| -> String {
            let mut lines = text.lines().filter_map(|line| line.split_once(':'));
            let line = lines.find(|(name, _)| name.trim() == key);
            line.map_or_else(String::new, |(_, value)| value.trim().to_owned())
        };
        let memory = after(&read("/proc/meminfo"), "MemTotal");
        let kib = memory.split(' ').next().and_then(|kib| kib.parse().ok());
        Self {
            time: SystemTime::now()
                .duration_since(UNIX_EPOCH)
                .map_or(0, |time| time.as_secs()),
            cpu: after(&read("/proc/cpuinfo"), "model name"),
            nr_cpus: std::thread::available_parallelism().map_or(0, |nr| nr.get()),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            memory_bytes: kib.unwrap_or(0_u64) << 10,
            load: (load(), 0.0),
        }
    }

    /// Returns whether the processor is an emulated one.
    pub(crate) fn is_emulated(&self) -> bool {
        self.cpu.contains("QEMU TCG")
    }
}

fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let first = text.split(' ').next().and_then(|load| load.parse().ok());
    first.unwrap_or(0.0)
}

/// What was measured at one place.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Part {
    pub(crate) machine: Machine,
    pub(crate) figures: Vec<Figure>,
    pub(crate) curves: Vec<Curve>,
    /// What wasn't measured, and why.
    pub(crate) left_out: Vec<String>,
}

impl Part {
    pub(crate) fn new() -> Self {
        Self {
            machine: Machine::here(),
            figures: Vec::new(),
            curves: Vec::new(),
            left_out: Vec::new(),
        }
    }

    pub(crate) fn write(mut self, path: &Path) -> Result<()> {
        self.machine.load.1 = load();
        self.leave_out_no_numbers();
        let text = serde_json::to_string_pretty(&self)?;
        fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Leaves out what JSON has no numbers for, as of something that always failed.
    fn leave_out_no_numbers(&mut self) {
        let (figures, none): (Vec<_>, Vec<_>) = self.figures.drain(..).partition(Figure::is_finite);
        self.figures = figures;
        let reason = |figure: Figure| {
            let Figure {
                title, case, peer, ..
            } = figure;
            format!("{title}, {case}, beside {peer}: no number came of it")
        };
        self.left_out.extend(none.into_iter().map(reason));
        for curve in &mut self.curves {
            curve.points.retain(|(_, stat)| stat.is_finite());
        }
    }

    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = fs::read_to_string(path);
        let text = text.with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("cannot read {}", path.display()))
    }

    /// Writes what is said of a part, and its table.
    fn print(&self, place: &str, out: &mut String) -> fmt::Result {
        let Machine { load, .. } = self.machine;
        let machine = &self.machine;
        writeln!(
            out,
            "## {place}\n\n{} processors, {}, kernel {}, {:.1} GiB; load {} to {}.",
            machine.nr_cpus,
            machine.cpu,
            machine.kernel,
            machine.memory_bytes as f64 / f64::from(1 << 30),
            load.0,
            load.1
        )?;
        if machine.is_emulated() {
            writeln!(
                out,
                "\nThe processor is emulated: only ratios mean something, and they are those of an\n\
                 emulator, in which memory costs next to nothing and each instruction a lot."
            )?;
        }
        let noise = Stat::of(self.figures.iter().map(|figure| figure.ratio.noise));
        writeln!(
            out,
            "\nNoise is the median absolute deviation of a ratio from round to round; half of the\n\
             figures have less than {:.1}%.\n",
            100.0 * noise.median
        )?;
        table(out, &self.figures)?;
        if !self.left_out.is_empty() {
            writeln!(out, "\nLeft out:\n")?;
            for reason in &self.left_out {
                writeln!(out, "- {reason}")?;
            }
        }
        writeln!(out)
    }
}

fn table(out: &mut String, figures: &[Figure]) -> fmt::Result {
    let head = [
        "figure", "case", "p2m", "peer", "ratio", "noise", "goal", "met",
    ];
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(figures.iter().map(Figure::row));
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.max().unwrap_or(0)
    };
    let widths: [usize; 8] = std::array::from_fn(width);
    let rule = widths.map(|width| "-".repeat(width));
    rows.insert(1, rule);
    // A title that stands above needs no repetition.
    let mut last = String::new();
    for mut row in rows {
        if row[0] == last {
            row[0].clear();
        } else {
            last.clone_from(&row[0]);
        }
        for (cell, width) in row.iter().zip(widths) {
            write!(out, "| {cell:width$} ")?;
        }
        writeln!(out, "|")?;
    }
    Ok(())
}

/// All parts, with their names.
#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) host: Part,
    pub(crate) guest: Option<Part>,
}

impl Report {
    /// Returns the table of all parts.
    pub(crate) fn markdown(&self) -> Result<String> {
        let mut out = String::from("# p2m, side by side\n\n");
        self.host.print("The pure code, on the host", &mut out)?;
        if let Some(guest) = &self.guest {
            guest.print("The module, in a guest", &mut out)?;
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_goal_is_met_up_to_its_limit() {
        for (goal, ratio, expected) in [
            (None, 9.0, None),
            (Some(Goal::AtMost(2.0)), 2.0, Some(true)),
            (Some(Goal::AtMost(2.0)), 2.1, Some(false)),
            (Some(Goal::Faster(5.0)), 0.2, Some(true)),
            (Some(Goal::Faster(5.0)), 0.21, Some(false)),
        ] {
            let figure = Figure::exact("", "", ratio, ("", 1.0), "", goal);
            assert_eq!(figure.is_good(), expected, "{goal:?} at {ratio}");
        }
    }

    #[test]
    fn what_is_written_can_be_read_whatever_failed() {
        let mut part = Part::new();
        for value in [1.0, f64::NAN, f64::INFINITY] {
            let figure = Figure::exact("map", &value.to_string(), value, ("peer", 2.0), "ns", None);
            part.figures.push(figure);
        }
        part.curves.push(Curve {
            name: String::new(),
            points: [2.0, f64::NAN].map(|x| (1, Stat::exactly(x))).to_vec(),
        });
        let path = std::env::temp_dir().join(format!("p2m-bench-{}", std::process::id()));
        part.write(&path).expect("write");
        let part = Part::read(&path);
        fs::remove_file(&path).expect("remove");
        let part = part.expect("what was written");
        assert_eq!((part.figures.len(), part.curves[0].points.len()), (1, 1));
        assert_eq!(
            part.left_out,
            ["NaN", "inf"].map(|case| format!("map, {case}, beside peer: no number came of it"))
        );
    }

    #[test]
    fn values_keep_three_digits() {
        for (value, unit, expected) in [
            (0.371, "ns", "0.37 ns"),
            (12.34, "ns", "12.3 ns"),
            (1234.0, "ns", "1.23 µs"),
            (2.5e9, "ns", "2.50 s"),
            (16.0, "bytes", "16.0 bytes"),
        ] {
            assert_eq!(Value(value, unit).to_string(), expected);
        }
    }
}
