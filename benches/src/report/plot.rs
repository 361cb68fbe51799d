//! Plots of the result file's rows, as SVG.

use super::{Part, Report, Row};
use plotters::prelude::*;

/// Which plots a part has, of what is in the report: file names and titles.
pub fn of_part(report: &Report, part: Part) -> Vec<(&'static str, &'static str)> {
    let plot = match part {
        Part::Engine => ("peers-size.svg", "ns per packet over size"),
        Part::Scale => ("peers-sas.svg", "ns per packet over SAs"),
        Part::Aead | Part::Gateway => return Vec::new(),
    };
    if series(report, part).is_empty() { Vec::new() } else { vec![plot] }
}

/// All plots: file names and contents.
pub fn all(report: &Report) -> anyhow::Result<Vec<(&'static str, String)>> {
    let mut plots = Vec::new();
    for part in Part::ALL {
        for (name, title) in of_part(report, part) {
            plots.push((name, draw(title, part, &series(report, part))?));
        }
    }
    Ok(plots)
}

/// A line: its name, whether it is ours, and its points.
struct Series {
    name: String,
    ours: bool,
    points: Vec<(f64, f64)>,
}

fn series(report: &Report, part: Part) -> Vec<Series> {
    let mut lines: Vec<Series> = Vec::new();
    let mut add =
        |name: String, ours: bool, point: (f64, f64)| match lines.iter_mut().find(|l| l.name == name) {
            Some(line) if line.points.contains(&point) => {}
            Some(line) => line.points.push(point),
            None => lines.push(Series { name, ours, points: vec![point] }),
        };
    let rows = report.rows.iter().filter(|row| row.part == part && row.unit == "ns" && is_passing(row));
    for row in rows {
        let at = if part == Part::Scale { f64::from(row.sas) } else { row.size as f64 };
        if part == Part::Scale {
            // The peer is ourselves at one SA.
            add(row.what.clone(), true, (1.0, row.theirs));
        } else {
            add(format!("{}, {}", row.what, row.peer), false, (at, row.theirs));
        }
        let name = if part == Part::Scale { row.what.clone() } else { format!("{}, Spindle", row.what) };
        add(name, true, (at, row.ours));
    }
    for line in &mut lines {
        line.points.sort_by(|a, b| a.0.total_cmp(&b.0));
        // One for each place: the rounds of rows that share the peer differ a little.
        line.points.dedup_by_key(|point| point.0);
    }
    lines
}

/// Is it the time of a packet's passage?
fn is_passing(row: &Row) -> bool {
    ["encapsulate", "decapsulate"].iter().any(|verb| row.what.starts_with(verb))
}

fn draw(title: &str, part: Part, lines: &[Series]) -> anyhow::Result<String> {
    let mut text = String::new();
    let points = || lines.iter().flat_map(|line| &line.points);
    let (right, top) = points().fold((0.0f64, 0.0f64), |most, p| (most.0.max(p.0), most.1.max(p.1)));
    let area = SVGBackend::with_string(&mut text, (760, 420)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut builder = ChartBuilder::on(&area);
    builder.caption(title, ("sans-serif", 18)).margin(12).x_label_area_size(44).y_label_area_size(56);
    macro_rules! finish {
        ($chart:expr, $label:expr) => {{
            let mut chart = $chart;
            chart
                .configure_mesh()
                .x_desc($label)
                .y_desc("ns per packet")
                .light_line_style(TRANSPARENT)
                .draw()?;
            for (at, line) in lines.iter().enumerate() {
                let color = Palette99::pick(at).to_rgba();
                let style = color.stroke_width(if line.ours { 3 } else { 1 });
                chart
                    .draw_series(LineSeries::new(line.points.iter().copied(), style))?
                    .label(&line.name)
                    .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 20, y)], style));
                chart.draw_series(line.points.iter().map(|point| Circle::new(*point, 3, color.filled())))?;
            }
            chart
                .configure_series_labels()
                .position(SeriesLabelPosition::UpperLeft)
                .background_style(WHITE.mix(0.8))
                .border_style(BLACK.mix(0.3))
                .draw()?;
        }};
    }
    let height = 0.0..top * 1.35;
    match part {
        Part::Scale => {
            finish!(builder.build_cartesian_2d((1.0..right.max(10.0)).log_scale(), height)?, "SAs")
        }
        _ => finish!(builder.build_cartesian_2d(0.0..right * 1.05, height)?, "octets of the inner packet"),
    }
    area.present()?;
    drop(area);
    Ok(text)
}
