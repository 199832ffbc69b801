//! A curve over a logarithmic axis, as SVG that is legible on light and on dark.

use std::fmt::Write as _;

/// A line of the plot.
pub struct Series {
    pub name: &'static str,
    /// Places on both axes, in order.
    pub points: Vec<(f64, f64)>,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 360.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 40.0;
const TOP: f64 = 50.0;
const BOTTOM: f64 = 50.0;
const GREY: &str = "#808080";
/// Of middle brightness.
const COLOURS: [&str; 4] = ["#3b82c4", "#d97706", "#2f9e60", "#b0579b"];

/// Horizontally powers of ten, vertically from zero.
pub fn svg(across: &str, up: &str, series: &[Series]) -> String {
    let points = || series.iter().flat_map(|line| &line.points);
    let powers = |x: f64| x.max(1.0).log10();
    let first = points().map(|(x, _)| powers(*x)).fold(f64::INFINITY, f64::min).floor();
    let last = points().map(|(x, _)| powers(*x)).fold(first + 1.0, f64::max).ceil();
    let step = nice_step(points().map(|(_, y)| *y).fold(0.0, f64::max) / 5.0);
    let top = step * (points().map(|(_, y)| *y).fold(step, f64::max) / step).ceil();
    let x_of = |x: f64| LEFT + (powers(x) - first) / (last - first) * (WIDTH - LEFT - RIGHT);
    let y_of = |y: f64| HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM);

    let mut text = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\" fill=\"{GREY}\">\n"
    );
    let mut line = |x1: f64, y1: f64, x2: f64, y2: f64, opacity: f64| {
        let _ = writeln!(
            text,
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{GREY}\" stroke-opacity=\"{opacity}\"/>"
        );
    };
    line(LEFT, y_of(0.0), WIDTH - RIGHT, y_of(0.0), 1.0);
    line(LEFT, TOP, LEFT, y_of(0.0), 1.0);
    let ticks: Vec<f64> = (1..=(top / step).round() as u32).map(|n| f64::from(n) * step).collect();
    ticks.iter().for_each(|y| line(LEFT, y_of(*y), WIDTH - RIGHT, y_of(*y), 0.25));

    let mut word = |x: f64, y: f64, anchor: &str, colour: &str, words: &str| {
        let _ = writeln!(text, "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{words}</text>");
    };
    for y in [0.0].iter().chain(&ticks) {
        word(LEFT - 8.0, y_of(*y) + 4.0, "end", GREY, &format!("{}", (y * 1e6).round() / 1e6));
    }
    for power in first as i32..=last as i32 {
        let x = 10_f64.powi(power);
        word(x_of(x), y_of(0.0) + 18.0, "middle", GREY, &super::report::grouped(x));
    }
    word((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 10.0, "middle", GREY, across);
    word(LEFT - 40.0, 20.0, "start", GREY, up);
    for (at, (Series { name, .. }, colour)) in series.iter().zip(COLOURS.iter().cycle()).enumerate() {
        word(WIDTH - RIGHT, 20.0 + 16.0 * at as f64, "end", colour, name);
    }
    for (Series { points, .. }, colour) in series.iter().zip(COLOURS.iter().cycle()) {
        let path: Vec<String> = points.iter().map(|(x, y)| format!("{:.1},{:.1}", x_of(*x), y_of(*y))).collect();
        let _ = writeln!(text, "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>", path.join(" "));
        for (x, y) in points {
            let _ = writeln!(text, "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"/>", x_of(*x), y_of(*y));
        }
    }
    text + "</svg>\n"
}

/// 1, 2 or 5 of a power of ten, at least this.
fn nice_step(least: f64) -> f64 {
    let power = 10_f64.powf(least.max(1e-9).log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|factor| factor * power).find(|step| *step >= least).unwrap_or(10.0 * power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_lie_between_the_axes() {
        let text = svg("open sockets", "us", &[Series { name: "a", points: vec![(10.0, 0.0), (100_000.0, 4.0)] }]);
        assert!(text.contains("<polyline points=\"60.0,310.0 680.0,50.0\""), "{text}");
        assert!(text.contains(">100,000<") && text.contains(">open sockets<") && !text.contains("NaN"), "{text}");
    }

    #[test]
    fn steps_are_round() {
        assert_eq!([0.8, 1.0, 3.0, 70.0].map(nice_step), [1.0, 1.0, 5.0, 100.0]);
    }
}
