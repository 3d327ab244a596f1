// SPDX-License-Identifier: GPL-2.0

//! Draws what was measured: how lookups grow, and how far each figure is from its goal.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use anyhow::{Context, Result};
use font8x8::UnicodeFonts;
use plotters::coord::Shift;
use plotters::prelude::*;

use crate::report::{Curve, Figure, Goal, Report};

type Area<'a> = DrawingArea<BitMapBackend<'a>, Shift>;
type Point = (i32, i32);

const WIDTH: u32 = 1100;
/// Height of the curves.
const CURVES: i32 = 420;
/// Height of a bar and the gap above it.
const BAR: i32 = 14;
/// Size of a letter.
const LETTER: i32 = 8;
const MARGIN: i32 = 70;

const COLOURS: [RGBColor; 4] = [
    RGBColor(0, 90, 160),
    RGBColor(120, 170, 210),
    RGBColor(190, 70, 0),
    RGBColor(230, 160, 110),
];
const GOOD: RGBColor = RGBColor(60, 140, 80);
const BAD: RGBColor = RGBColor(190, 70, 60);

/// Draws a report into a PNG file.
pub(crate) fn write(report: &Report, path: &Path) -> Result<()> {
    let parts = [Some(&report.host), report.guest.as_ref()];
    let parts: Vec<_> = parts.into_iter().flatten().collect();
    let curves: Vec<&Curve> = parts.iter().flat_map(|part| &part.curves).collect();
    let figures = parts.iter().flat_map(|part| &part.figures);
    let bars: Vec<(&Figure, f64)> = figures
        .filter_map(|fig| Some((fig, to_goal(fig)?)))
        .collect();
    // CAST: Few of them.
    let height = (CURVES + BAR * (bars.len() as i32 + 4)).unsigned_abs();
    let mut pixels = vec![0; (WIDTH * height * 3) as usize];
    {
        let area = BitMapBackend::with_buffer(&mut pixels, (WIDTH, height)).into_drawing_area();
        let draw = || {
            area.fill(&WHITE)?;
            draw_curves(&area, &curves)?;
            draw_bars(&area, &bars)?;
            area.present()
        };
        draw().map_err(|error| anyhow::anyhow!("cannot draw: {error}"))?;
    }
    let encode = || -> Result<(), png::EncodingError> {
        let mut encoder = png::Encoder::new(BufWriter::new(File::create(path)?), WIDTH, height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        let mut writer = encoder.write_header()?;
        writer.write_image_data(&pixels)?;
        writer.finish()
    };
    encode().with_context(|| format!("cannot write {}", path.display()))
}

/// Returns the ratio as a multiple of what it should be at most.
fn to_goal(figure: &Figure) -> Option<f64> {
    Some(match figure.goal? {
        Goal::AtMost(limit) => figure.ratio.median / limit,
        Goal::Faster(times) => figure.ratio.median * times,
    })
}

type Drawn<'a> = Result<(), DrawingAreaErrorKind<<BitMapBackend<'a> as DrawingBackend>::ErrorType>>;

/// A logarithmic axis.
struct Axis {
    values: (f64, f64),
    pixels: (i32, i32),
}

impl Axis {
    fn at(&self, value: f64) -> i32 {
        let (low, high) = (self.values.0.log2(), self.values.1.log2());
        let part = (value.log2() - low) / (high - low);
        let (start, end) = self.pixels;
        // CAST: A pixel, to be rounded.
        start + (part * f64::from(end - start)) as i32
    }
}

fn text<'a>(area: &Area<'a>, (left, top): Point, text: &str) -> Drawn<'a> {
    for (letter, index) in text.chars().zip(0..) {
        let basic = font8x8::BASIC_FONTS.get(letter);
        let Some(rows) = basic.or_else(|| font8x8::LATIN_FONTS.get(letter)) else {
            continue;
        };
        for (row, y) in rows.into_iter().zip(0..) {
            for x in (0..LETTER).filter(|x| (row >> x) & 1 != 0) {
                area.draw_pixel((left + index * LETTER + x, top + y), &BLACK)?;
            }
        }
    }
    Ok(())
}

fn line<'a>(area: &Area<'a>, points: Vec<Point>, style: impl Into<ShapeStyle>) -> Drawn<'a> {
    area.draw(&PathElement::new(points, style))
}

fn draw_curves<'a>(area: &Area<'a>, curves: &[&Curve]) -> Drawn<'a> {
    text(
        area,
        (MARGIN, 10),
        "ns for a lookup that waits for the one before it, by size of the space",
    )?;
    let points = || curves.iter().flat_map(|curve| &curve.points);
    let bounds = |values: Vec<f64>| {
        let low = values.iter().copied().fold(f64::INFINITY, f64::min);
        let high = values.iter().copied().fold(0.0, f64::max);
        (low, high.max(low * 2.0))
    };
    if points().next().is_none() {
        return Ok(());
    }
    let x = Axis {
        values: bounds(points().map(|&(bytes, _)| bytes as f64).collect()),
        pixels: (MARGIN, WIDTH as i32 - 260),
    };
    let y = Axis {
        values: bounds(points().map(|(_, stat)| stat.median).collect()),
        pixels: (CURVES - 60, 40),
    };
    let (left, right) = x.pixels;
    let (bottom, top) = y.pixels;
    let mut sizes: Vec<u64> = points().map(|&(bytes, _)| bytes).collect();
    sizes.sort_unstable();
    sizes.dedup();
    for bytes in sizes {
        let name = match bytes >> 20 {
            mib if mib < 1024 => format!("{mib}M"),
            mib => format!("{}G", mib >> 10),
        };
        let at = x.at(bytes as f64);
        line(area, vec![(at, bottom), (at, bottom + 4)], BLACK)?;
        text(area, (at - 8, bottom + 8), &name)?;
    }
    let grid = RGBColor(220, 220, 220);
    for power in -2..12 {
        let value = 2_f64.powi(power);
        if (y.values.0..=y.values.1).contains(&value) {
            let at = y.at(value);
            line(area, vec![(left, at), (right, at)], grid)?;
            text(area, (left - 40, at - 4), &value.to_string())?;
        }
    }
    line(
        area,
        vec![(left, top), (left, bottom), (right, bottom)],
        BLACK,
    )?;
    for (nr, (curve, colour)) in (0..).zip(curves.iter().zip(COLOURS)) {
        let points = curve.points.iter();
        let points = points.map(|(bytes, stat)| (x.at(*bytes as f64), y.at(stat.median)));
        line(area, points.collect(), colour.stroke_width(2))?;
        let (legend, at) = (right + 20, top + nr * 20);
        let sample = vec![(legend, at + 4), (legend + 24, at + 4)];
        line(area, sample, colour.stroke_width(3))?;
        text(area, (legend + 32, at), &curve.name)?;
    }
    Ok(())
}

fn draw_bars<'a>(area: &Area<'a>, bars: &[(&Figure, f64)]) -> Drawn<'a> {
    text(
        area,
        (MARGIN, CURVES),
        "ratios, as multiples of the goal: left of the line is better",
    )?;
    let axis = Axis {
        values: (1.0 / 64.0, 64.0),
        pixels: (560, WIDTH as i32 - 20),
    };
    let (low, high) = axis.values;
    let goal = axis.at(1.0);
    let first = CURVES + 2 * BAR;
    for (nr, &(figure, ratio)) in (0..).zip(bars) {
        let top = first + nr * BAR;
        let name = format!("{}, {}, {}", figure.title, figure.case, figure.peer);
        let name: String = name.chars().take(66).collect();
        text(area, (10, top + 2), &name)?;
        let at = axis.at(ratio.clamp(low, high));
        let colour = if ratio <= 1.0 { GOOD } else { BAD };
        let corners = [(at.min(goal), top), (at.max(goal), top + BAR - 4)];
        area.draw(&Rectangle::new(corners, colour.filled()))?;
    }
    // CAST: Few of them.
    let bottom = first + bars.len() as i32 * BAR;
    line(area, vec![(goal, first - 4), (goal, bottom)], BLACK)?;
    for value in [1.0 / 16.0, 1.0 / 4.0, 1.0, 4.0, 16.0] {
        text(area, (axis.at(value) - 8, bottom + 4), &value.to_string())?;
    }
    Ok(())
}
