// SPDX-License-Identifier: GPL-2.0

//! Draws which machine frames are where: PFNs from left to right, MFNs from bottom to top.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use font8x8::UnicodeFonts;
use p2m::{Mfn, Pfn, Run};
use plotters::coord::Shift;
use plotters::prelude::*;
use serde::Serialize;

use crate::args::{self, Args};
use crate::format::Count;
use crate::inspect::{attach, chosen};

/// What is drawn.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Layout {
    start_pfn: Pfn,
    end_pfn: Pfn,
    start_mfn: Mfn,
    end_mfn: Mfn,
    /// Where it was drawn, if not in the terminal.
    file: Option<PathBuf>,
    runs: Vec<Run>,
}

pub(crate) fn plot(args: &Args, what: &args::Plot, out: &mut impl Write) -> Result<bool> {
    let domain = attach(args, &what.target)?;
    if !domain.info().mfn_visible {
        bail!("cannot draw: machine frame numbers are shown only with CAP_SYS_ADMIN");
    }
    let ranges = chosen(what.range.as_ref(), &domain.regions()?);
    let runs = ranges.into_iter().flat_map(|range| domain.runs(range));
    let mut layout = Layout::of(runs)?.context("cannot draw: there is no page with a frame")?;
    if let Some(path) = &what.out {
        layout.write_png(path)?;
        layout.file = Some(path.clone());
    }
    if args.json {
        crate::format::json(out, &layout)?;
    } else if let Some(path) = &layout.file {
        let runs = Count(layout.runs.len() as u64, "run");
        crate::format::section(out, "plot", [format!("{runs} in {}", path.display())])?;
    } else {
        layout.print(out, terminal_size())?;
    }
    Ok(true)
}

/// Returns the columns and rows to draw in.
fn terminal_size() -> (usize, usize) {
    let size = rustix::termios::tcgetwinsize(io::stdout()).ok();
    let (columns, rows) = size.map_or((0, 0), |size| (size.ws_col, size.ws_row));
    match (columns, rows) {
        // No terminal, or one that doesn't know.
        (0, _) | (_, 0) => (80, 24),
        size => (size.0.into(), size.1.into()),
    }
}

/// Where numbers are on an axis.
struct Axis {
    numbers: Range<u64>,
    size: usize,
}

impl Axis {
    /// Returns the position of a number.
    fn position(&self, number: u64) -> usize {
        let Range { start, end } = self.numbers;
        let all = u128::from(end.saturating_sub(start).max(1));
        let part = u128::from(number.saturating_sub(start));
        (part * self.size as u128 / all) as usize
    }
}

/// Dots that are drawn as letters of two by four of them, of the Unicode block Braille Patterns.
struct Canvas {
    columns: usize,
    /// The dots of each letter.
    letters: Vec<u8>,
}

impl Canvas {
    const WIDTH: usize = 2;
    const HEIGHT: usize = 4;

    /// The bits of the dots of a letter, row by row.
    const BITS: [[u8; Self::WIDTH]; Self::HEIGHT] =
        [[0x01, 0x08], [0x02, 0x10], [0x04, 0x20], [0x40, 0x80]];

    fn new(columns: usize, rows: usize) -> Self {
        Self {
            columns,
            letters: vec![0; columns * rows],
        }
    }

    /// Draws a dot, counted from the left and from the top.
    fn draw(&mut self, x: usize, y: usize) {
        let index = y / Self::HEIGHT * self.columns + x / Self::WIDTH;
        if let Some(letter) = self.letters.get_mut(index) {
            *letter |= Self::BITS[y % Self::HEIGHT][x % Self::WIDTH];
        }
    }

    fn lines(&self) -> impl Iterator<Item = String> {
        let letter = |dots: &u8| char::from_u32(0x2800 | u32::from(*dots)).unwrap_or('?');
        self.letters
            .chunks(self.columns)
            .map(move |line| line.iter().map(letter).collect())
    }
}

impl Layout {
    /// Takes runs together. [`None`] if there's no frame at all.
    fn of<E>(runs: impl IntoIterator<Item = Result<Run, E>>) -> Result<Option<Self>, E> {
        let mut layout: Option<Self> = None;
        for run in runs {
            let run = run?;
            let Some(mfn) = run.entry.mfn() else {
                continue;
            };
            let end_pfn = Pfn(run.pfn.0.saturating_add(run.nr_pages));
            let end_mfn = Mfn(mfn.0.saturating_add(run.nr_pages));
            let layout = layout.get_or_insert_with(|| Self {
                start_pfn: run.pfn,
                end_pfn,
                start_mfn: mfn,
                end_mfn,
                file: None,
                runs: Vec::new(),
            });
            layout.start_pfn = layout.start_pfn.min(run.pfn);
            layout.end_pfn = layout.end_pfn.max(end_pfn);
            layout.start_mfn = layout.start_mfn.min(mfn);
            layout.end_mfn = layout.end_mfn.max(end_mfn);
            layout.runs.push(run);
        }
        Ok(layout)
    }

    /// Returns the axes of a drawing of some size.
    fn axes(&self, width: usize, height: usize) -> (Axis, Axis) {
        let axis = |numbers, size| Axis { numbers, size };
        (
            axis(self.start_pfn.0..self.end_pfn.0, width),
            axis(self.start_mfn.0..self.end_mfn.0, height),
        )
    }

    /// Calls `draw` with all dots of a drawing of some size, counted from the left and the bottom.
    fn for_dots<E>(
        &self,
        width: usize,
        height: usize,
        mut draw: impl FnMut(usize, usize) -> Result<(), E>,
    ) -> Result<(), E> {
        let (x, y) = self.axes(width, height);
        for run in &self.runs {
            let Some(mfn) = run.entry.mfn() else {
                continue;
            };
            let last = run.nr_pages.saturating_sub(1);
            let ends = |axis: &Axis, start| (axis.position(start), axis.position(start + last));
            let ((x, x_end), (y, y_end)) = (ends(&x, run.pfn.0), ends(&y, mfn.0));
            // As many dots as there are in the direction in which there are more.
            let nr = (x_end - x).max(y_end - y);
            for dot in 0..=nr {
                let part = |start, end| start + (end - start) * dot / nr.max(1);
                draw(part(x, x_end), part(y, y_end))?;
            }
        }
        Ok(())
    }

    /// Draws in letters, as large as a terminal.
    fn print(&self, out: &mut impl Write, (columns, rows): (usize, usize)) -> io::Result<()> {
        let (top, bottom) = (Mfn(self.end_mfn.0 - 1), self.start_mfn);
        let label = |mfn: &dyn Display| format!("MFN {mfn}");
        let (top, bottom) = (label(&top), label(&bottom));
        let margin = top.len().max(bottom.len());
        // At the left the label and the axis; below the axis, its label and the prompt.
        let columns = columns.saturating_sub(margin + 2).max(16);
        let rows = rows.saturating_sub(3).max(4);

        let mut canvas = Canvas::new(columns, rows);
        let (width, height) = (columns * Canvas::WIDTH, rows * Canvas::HEIGHT);
        self.for_dots(width, height, |x, y| {
            canvas.draw(x, height - 1 - y);
            Ok::<_, io::Error>(())
        })?;

        for (line, index) in canvas.lines().zip(0..) {
            let (label, edge) = match index {
                0 => (top.as_str(), '┤'),
                _ if index == rows - 1 => (bottom.as_str(), '┤'),
                _ => ("", '│'),
            };
            writeln!(out, "{label:>margin$} {edge}{line}")?;
        }
        writeln!(out, "{:margin$} └{}", "", "─".repeat(columns))?;
        let first = format!("PFN {}", self.start_pfn);
        let last = Pfn(self.end_pfn.0 - 1).to_string();
        let space = columns.saturating_sub(first.len());
        writeln!(out, "{:margin$}  {first}{last:>space$}", "")
    }

    fn write_png(&self, path: &Path) -> Result<()> {
        const SIZE: (u32, u32) = (1200, 800);
        let mut pixels = vec![0; (SIZE.0 * SIZE.1 * 3) as usize];
        {
            let area = BitMapBackend::with_buffer(&mut pixels, SIZE).into_drawing_area();
            self.draw(&area)
                .map_err(|error| anyhow::anyhow!("cannot draw: {error}"))?;
        }
        let encode = || -> Result<(), png::EncodingError> {
            let mut encoder =
                png::Encoder::new(BufWriter::new(File::create(path)?), SIZE.0, SIZE.1);
            encoder.set_color(png::ColorType::Rgb);
            encoder.set_depth(png::BitDepth::Eight);
            let mut writer = encoder.write_header()?;
            writer.write_image_data(&pixels)?;
            writer.finish()
        };
        encode().with_context(|| format!("cannot write {}", path.display()))
    }

    fn draw<B: DrawingBackend>(
        &self,
        area: &DrawingArea<B, Shift>,
    ) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
        const GRID: i32 = 8;
        const DOT: RGBColor = RGBColor(0, 96, 160);
        const LINE: RGBColor = RGBColor(224, 224, 224);

        area.fill(&WHITE)?;
        let (labels, margin) = (Text::width(&self.end_mfn.to_string()), 16);
        let plot = area.margin(
            3 * Text::HEIGHT,
            3 * Text::HEIGHT,
            labels + 2 * margin,
            2 * margin,
        );
        let (columns, rows) = plot.get_pixel_range();
        let (left, top) = (columns.start, rows.start);
        let (width, height) = (columns.end - left, rows.end - top);

        // Text has a font of its own here, so that none has to be installed.
        for line in 0..=GRID {
            let part = |size: i32| size * line / GRID;
            let number = |start: u64, end: u64| {
                let size = u128::from(end - 1 - start);
                start + (size * line as u128 / GRID as u128) as u64
            };
            let (x, y) = (part(width - 1), height - 1 - part(height - 1));
            plot.draw(&PathElement::new([(x, 0), (x, height - 1)], LINE))?;
            plot.draw(&PathElement::new([(0, y), (width - 1, y)], LINE))?;
            let mfn = Mfn(number(self.start_mfn.0, self.end_mfn.0));
            let text = Text(format!("{mfn}"));
            let x_of_label = left - margin - Text::width(&text.0);
            text.draw(area, (x_of_label, top + y - Text::HEIGHT / 2))?;
            // Not at every line, or they would run into each other.
            if line % 2 == 0 {
                let pfn = Pfn(number(self.start_pfn.0, self.end_pfn.0));
                let text = Text(format!("{pfn}"));
                // In the middle below the line, unless that is outside.
                let most = area.dim_in_pixel().0 as i32 - Text::width(&text.0);
                let x_of_label = (left + x - Text::width(&text.0) / 2).min(most);
                text.draw(area, (x_of_label, top + height + Text::HEIGHT))?;
            }
        }
        let title = format!("MFN over PFN, {}", Count(self.runs.len() as u64, "run"));
        Text(title).draw(area, (left, Text::HEIGHT))?;

        let nr_pages: u64 = self.runs.iter().map(|run| run.nr_pages).sum();
        // A page that would be lost in white is a larger dot.
        let radius = if nr_pages < 1 << 14 { 2 } else { 1 };
        self.for_dots(width as usize, height as usize, |x, y| {
            let (x, y) = (x as i32, height - 1 - y as i32);
            plot.draw(&Circle::new((x, y), radius, DOT.filled()))
        })
    }
}

/// A line of text of pixels.
struct Text(String);

impl Text {
    /// How large a pixel of the font is drawn.
    const SCALE: i32 = 2;
    const HEIGHT: i32 = 8 * Self::SCALE;

    fn width(text: &str) -> i32 {
        text.chars().count() as i32 * Self::HEIGHT
    }

    /// Draws it to the right and below of a position.
    fn draw<B: DrawingBackend>(
        &self,
        area: &DrawingArea<B, Shift>,
        (left, top): (i32, i32),
    ) -> Result<(), DrawingAreaErrorKind<B::ErrorType>> {
        for (letter, index) in self.0.chars().zip(0..) {
            let Some(rows) = font8x8::BASIC_FONTS.get(letter) else {
                continue;
            };
            let left = left + index * Self::HEIGHT;
            for (row, y) in rows.into_iter().zip(0..) {
                let is_set = |x: &i32| (row >> (x / Self::SCALE)) & 1 != 0;
                for x in (0..Self::HEIGHT).filter(is_set) {
                    for part in 0..Self::SCALE {
                        area.draw_pixel((left + x, top + y * Self::SCALE + part), &BLACK)?;
                    }
                }
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use p2m::Entry;
    use std::convert::Infallible;

    fn layout(runs: &[(u64, u64, u64)]) -> Option<Layout> {
        let runs = runs.iter().map(|&(pfn, nr_pages, entry)| {
            Ok::<_, Infallible>(Run {
                pfn: Pfn(pfn),
                nr_pages,
                entry: Entry::from_raw(entry),
            })
        });
        let Ok(layout) = Layout::of(runs);
        layout
    }

    fn dots(layout: &Layout, width: usize, height: usize) -> Vec<(usize, usize)> {
        let mut dots = Vec::new();
        let Ok(()) = layout.for_dots(width, height, |x, y| {
            assert!(x < width && y < height);
            dots.push((x, y));
            Ok::<_, Infallible>(())
        });
        dots
    }

    #[test]
    fn nothing_can_not_be_drawn() {
        assert_eq!(layout(&[]), None);
        assert_eq!(layout(&[(0, 9, u64::MAX)]), None);
    }

    #[test]
    fn bounds_are_those_of_frames() {
        let layout = layout(&[(0, 4, u64::MAX), (4, 4, 0x50), (8, 2, 0x20)]).expect("frames");
        assert_eq!((layout.start_pfn, layout.end_pfn), (Pfn(4), Pfn(10)));
        assert_eq!((layout.start_mfn, layout.end_mfn), (Mfn(0x20), Mfn(0x54)));
        assert_eq!(layout.runs.len(), 2);
    }

    #[test]
    fn a_run_is_a_line_without_gaps() {
        for (width, height) in [(10, 10), (7, 40), (40, 7), (1, 1)] {
            for nr_pages in [1, 2, 9, 1000] {
                let layout = layout(&[(5, nr_pages, 0x100)]).expect("frames");
                let dots = dots(&layout, width, height);
                assert_eq!(dots[0], (0, 0));
                for pair in dots.windows(2) {
                    let ((x, y), (next_x, next_y)) = (pair[0], pair[1]);
                    assert!(next_x - x <= 1 && next_y - y <= 1);
                }
            }
        }
    }

    #[test]
    fn every_page_is_a_dot_of_its_own_if_there_is_room() {
        let runs: Vec<_> = (0..10).map(|pfn| (pfn, 1, 100 - 2 * pfn)).collect();
        let layout = layout(&runs).expect("frames");
        let expected: Vec<_> = (0..10).map(|n| (n, 18 - 2 * n)).collect();
        assert_eq!(dots(&layout, 10, 19), expected);
    }

    #[test]
    fn a_plot_in_letters_has_its_numbers() {
        let layout = layout(&[(0, 64, 0x1000)]).expect("frames");
        let mut out = Vec::new();
        layout.print(&mut out, (32, 7)).expect("print");
        let expected = "\
MFN 0x103f ┤⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⢀⣀⡠⠤⠒⠉
           │⠀⠀⠀⠀⠀⠀⠀⠀⠀⣀⡠⠤⠒⠊⠉⠁⠀⠀⠀⠀
           │⠀⠀⠀⠀⢀⣀⡠⠤⠒⠉⠁⠀⠀⠀⠀⠀⠀⠀⠀⠀
MFN 0x1000 ┤⣀⡠⠤⠒⠊⠉⠁⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀⠀
           └────────────────────
            PFN 0x0         0x3f
";
        let text = String::from_utf8(out).expect("UTF-8");
        // The slope of the dots is a matter of rounding, the frame isn't.
        let frame = |text: &str| -> Vec<String> {
            let is_dot = |letter: char| ('\u{2800}'..='\u{28ff}').contains(&letter);
            let lines = text.lines();
            lines.map(|line| line.replace(is_dot, ".")).collect()
        };
        assert_eq!(frame(&text), frame(expected));
        let last = |text: &str| text.lines().next().and_then(|line| line.chars().last());
        assert_ne!(last(&text), Some('\u{2800}'));
    }

    #[test]
    fn a_png_has_dots_where_the_frames_are() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("plot.png");
        let layout = layout(&[(0, 64, 0x1000)]).expect("frames");
        layout.write_png(&path).expect("write");

        let file = io::BufReader::new(File::open(&path).expect("open"));
        let mut reader = png::Decoder::new(file).read_info().expect("a PNG");
        let mut pixels = vec![0; reader.output_buffer_size().expect("a size")];
        let info = reader.next_frame(&mut pixels).expect("an image");
        assert_eq!((info.width, info.height), (1200, 800));
        let blue = pixels.chunks(3).filter(|pixel| *pixel == [0, 96, 160]);
        // A line across it.
        assert!(blue.count() > 500);
        let black = pixels.chunks(3).filter(|pixel| *pixel == [0, 0, 0]);
        // And some letters.
        assert!(black.count() > 1000);
    }

    #[test]
    fn a_file_that_can_not_be_written_is_told() {
        let layout = layout(&[(0, 1, 1)]).expect("frames");
        let error = layout.write_png("/nonexistent/plot.png".as_ref());
        let error = error.expect_err("no such directory");
        assert!(error.to_string().contains("/nonexistent/plot.png"));
    }
}
