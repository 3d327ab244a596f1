// SPDX-License-Identifier: GPL-2.0

//! How things read.

use std::fmt::{self, Display, Formatter};
use std::io::{self, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;

/// A number of bytes, in the largest unit that leaves it above one.
#[derive(Clone, Copy)]
pub(crate) struct Bytes(pub(crate) u64);

impl Display for Bytes {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let units = ["bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
        let step = self.0.checked_ilog2().unwrap_or(0) / 10;
        let unit = units.get(step as usize).copied().unwrap_or_default();
        let one = 1u64 << (10 * step);
        if self.0 % one == 0 {
            write!(f, "{} {unit}", self.0 / one)
        } else {
            write!(f, "{:.1} {unit}", self.0 as f64 / one as f64)
        }
    }
}

/// A number of things, of which the name gets an "s" if there isn't exactly one.
#[derive(Clone, Copy)]
pub(crate) struct Count(pub(crate) u64, pub(crate) &'static str);

impl Display for Count {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self(number, name) = self;
        let plural = if *number == 1 { "" } else { "s" };
        write!(f, "{number} {name}{plural}")
    }
}

/// What a check comes to.
#[derive(Clone, Copy)]
pub(crate) struct Verdict(pub(crate) bool);

impl Display for Verdict {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0 { "ok" } else { "FAILED" })
    }
}

/// Returns how many hexadecimal digits a number has, to pad others to.
pub(crate) fn hex_digits(number: u64) -> usize {
    number.checked_ilog2().unwrap_or(0) as usize / 4 + 1
}

/// Prints lines under one label at the left.
pub(crate) fn section<L: Display>(
    out: &mut impl Write,
    label: &str,
    lines: impl IntoIterator<Item = L>,
) -> io::Result<()> {
    let mut label = label;
    for line in lines {
        writeln!(out, "{label:<8} {line}")?;
        label = "";
    }
    Ok(())
}

/// Prints a value as JSON.
pub(crate) fn json(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)
}

/// A bar that shows how far work got: on a terminal only, and only if it takes a while.
pub(crate) struct Progress {
    bar: ProgressBar,
    start: Instant,
}

impl Progress {
    const PATIENCE: Duration = Duration::from_millis(500);

    pub(crate) fn new(what: &'static str, total: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::hidden());
        let bar = bar.with_message(what);
        let bar = match ProgressStyle::with_template("{msg:<8} {wide_bar} {percent:>3}%") {
            Ok(style) => bar.with_style(style),
            Err(_) => bar,
        };
        let start = Instant::now();
        Self { bar, start }
    }

    pub(crate) fn advance(&self, done: u64) {
        if self.bar.is_hidden() && self.start.elapsed() > Self::PATIENCE {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        self.bar.inc(done);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_in_the_largest_unit() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (64 << 20, "64 MiB"),
            (1 << 30, "1 GiB"),
            ((1 << 30) + (1 << 29), "1.5 GiB"),
            (8 << 40, "8 TiB"),
            (u64::MAX, "16.0 EiB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }

    #[test]
    fn only_one_is_singular() {
        let text = |number| Count(number, "page").to_string();
        assert_eq!(
            [text(0), text(1), text(2)],
            ["0 pages", "1 page", "2 pages"]
        );
    }

    #[test]
    fn digits_are_as_many_as_are_printed() {
        for number in [0, 1, 0xf, 0x10, 0xff, 0x100, u64::MAX] {
            assert_eq!(hex_digits(number), format!("{number:x}").len());
        }
    }

    #[test]
    fn only_the_first_line_has_the_label() {
        let mut out = Vec::new();
        section(&mut out, "label", ["one", "two"]).expect("print");
        assert_eq!(out, b"label    one\n         two\n");
    }
}
