//! A sweep as an SVG picture: the least that two panels need, written by hand.

use std::fmt::Write as _;

use super::score::Score;
use super::sweep::Step;

const WIDTH: f64 = 760.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 30.0;
const TOP: f64 = 60.0;
const PANEL: f64 = 190.0;
const GAP: f64 = 70.0;

/// One line of a panel: its name, its colour, and a value for each step that has one.
struct Series {
    name: &'static str,
    colour: &'static str,
    values: Vec<Option<f64>>,
}

/// The picture; `current` is the threshold that is in force.
pub(super) fn svg(title: &str, steps: &[Step], current: Option<f64>, logarithmic: bool) -> String {
    let thresholds: Vec<f64> = steps.iter().map(|step| step.at_least).collect();
    let scale = Scale::new(&thresholds, logarithmic);
    let counted = |name, colour, value: &dyn Fn(&Step) -> usize| {
        let values = steps.iter().map(|step| Some(value(step) as f64)).collect();
        Series { name, colour, values }
    };
    let counts = [
        counted("keys alerted on", "#1f5fa8", &|step| step.keys),
        counted("alerts fired", "#8a8f98", &|step| step.alerts),
    ];
    let scored = |name, colour, value: &dyn Fn(&Score) -> Option<f64>| {
        let values = steps.iter().map(|step| step.score.as_ref().and_then(value)).collect();
        Series { name, colour, values }
    };
    let shares = [
        scored("precision", "#1f5fa8", &|score| score.precision),
        scored("recall", "#b3541e", &|score| score.recall),
        scored("share of FLOP spent at the first alert (median)", "#3f7d3a", &|score| {
            score.spent_median
        }),
    ];
    let has_labels = steps.iter().any(|step| step.score.is_some());
    let panels = if has_labels { 2.0 } else { 1.0 };
    let height = TOP + panels * PANEL + (panels - 1.0) * GAP + 60.0;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
         viewBox=\"0 0 {WIDTH} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    text(
        &mut out,
        (LEFT, 22.0),
        "start",
        &format!("{title} from {} to {}", thresholds[0], thresholds[thresholds.len() - 1]),
    );
    let most = counts.iter().flat_map(|series| series.values.iter().flatten());
    let most = most.fold(1.0_f64, |most, value| most.max(*value));
    panel(&mut out, TOP, &scale, &counts, round_up(most), current);
    if has_labels {
        panel(&mut out, TOP + PANEL + GAP, &scale, &shares, 1.0, current);
    }
    text(
        &mut out,
        (LEFT + (WIDTH - LEFT - RIGHT) / 2.0, height - 12.0),
        "middle",
        "threshold (at_least)",
    );
    out.push_str("</svg>\n");
    out
}

/// Thresholds to the picture's x.
struct Scale {
    thresholds: Vec<f64>,
    logarithmic: bool,
}

impl Scale {
    fn new(thresholds: &[f64], logarithmic: bool) -> Self {
        Self { thresholds: thresholds.to_vec(), logarithmic }
    }

    fn x(&self, threshold: f64) -> f64 {
        let (from, to) = (self.thresholds[0], self.thresholds[self.thresholds.len() - 1]);
        let share = if self.logarithmic {
            (threshold / from).ln() / (to / from).ln()
        } else {
            (threshold - from) / (to - from)
        };
        LEFT + share * (WIDTH - LEFT - RIGHT)
    }

    /// At most eight thresholds are named.
    fn ticks(&self) -> impl Iterator<Item = f64> {
        let stride = self.thresholds.len().div_ceil(8);
        self.thresholds.iter().copied().step_by(stride)
    }

    fn holds(&self, threshold: f64) -> bool {
        let (from, to) = (self.thresholds[0], self.thresholds[self.thresholds.len() - 1]);
        (from..=to).contains(&threshold)
    }
}

fn panel(
    out: &mut String,
    top: f64,
    scale: &Scale,
    series: &[Series],
    most: f64,
    current: Option<f64>,
) {
    let bottom = top + PANEL;
    let right = WIDTH - RIGHT;
    let y = |value: f64| bottom - value / most * PANEL;
    for share in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let at = y(share * most);
        line(out, (LEFT, at), (right, at), "#e3e5e8", "");
        text(out, (LEFT - 8.0, at + 4.0), "end", &number(share * most));
    }
    for tick in scale.ticks() {
        let x = scale.x(tick);
        line(out, (x, bottom), (x, bottom + 5.0), "#555", "");
        text(out, (x, bottom + 19.0), "middle", &number(tick));
    }
    line(out, (LEFT, top), (LEFT, bottom), "#555", "");
    line(out, (LEFT, bottom), (right, bottom), "#555", "");
    if let Some(current) = current.filter(|current| scale.holds(*current)) {
        let x = scale.x(current);
        line(out, (x, top), (x, bottom), "#555", " stroke-dasharray=\"4 4\"");
        text(out, (x, top - 4.0), "middle", "in force");
    }
    let mut legend = LEFT;
    for series in series {
        draw(out, scale, series, &y);
        line(
            out,
            (legend, top - 20.0),
            (legend + 18.0, top - 20.0),
            series.colour,
            " stroke-width=\"2\"",
        );
        text(out, (legend + 23.0, top - 16.0), "start", series.name);
        legend += 45.0 + 6.2 * series.name.len() as f64;
    }
}

/// A line through the steps that have a value, broken where one has none, and a dot at each.
fn draw(out: &mut String, scale: &Scale, series: &Series, y: &dyn Fn(f64) -> f64) {
    let mut path = String::new();
    let mut is_down = false;
    for (threshold, value) in scale.thresholds.iter().zip(&series.values) {
        let Some(value) = value else {
            is_down = false;
            continue;
        };
        let (x, y) = (scale.x(*threshold), y(*value));
        let command = if is_down { 'L' } else { 'M' };
        push(&mut path, format_args!("{command}{x:.1} {y:.1} "));
        is_down = true;
        push(
            out,
            format_args!(
                "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{}\"/>\n",
                series.colour
            ),
        );
    }
    push(
        out,
        format_args!(
            "<path d=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>\n",
            path.trim_end(),
            series.colour
        ),
    );
}

fn line(out: &mut String, from: (f64, f64), to: (f64, f64), colour: &str, more: &str) {
    push(
        out,
        format_args!(
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\"{more}/>\n",
            from.0, from.1, to.0, to.1
        ),
    );
}

fn text(out: &mut String, at: (f64, f64), anchor: &str, words: &str) {
    let words = words.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    push(
        out,
        format_args!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" fill=\"#222\">{words}</text>\n",
            at.0, at.1
        ),
    );
}

fn number(value: f64) -> String {
    if value >= 1e5 {
        format!("{value:.2e}")
    } else {
        format!("{}", (value * 100.0).round() / 100.0)
    }
}

/// A round number of keys for the top of the axis: a multiple of four, so that its quarters are
/// whole.
fn round_up(most: f64) -> f64 {
    let mut unit = 4.0;
    while most > unit * 10.0 {
        unit *= 10.0;
    }
    (most / unit).ceil() * unit
}

fn push(out: &mut String, arguments: std::fmt::Arguments<'_>) {
    out.write_fmt(arguments).expect("writing to a string cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_has_a_dot_for_every_value_and_names_are_escaped() {
        let step = |at_least: f64, keys: usize| Step { at_least, keys, alerts: keys, score: None };
        let picture =
            svg("a<b&c", &[step(1e22, 9), step(1e23, 4), step(1e24, 0)], Some(1e23), true);
        assert_eq!(picture.matches("<circle").count(), 6);
        assert!(picture.contains("a&lt;b&amp;c") && picture.contains("in force"));
        assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
        // the middle of a logarithmic scale
        assert!(picture.contains("cx=\"400.0\""), "{picture}");
    }

    #[test]
    fn axes_end_at_round_numbers() {
        assert_eq!(
            [1.0, 4.0, 5.0, 40.0, 41.0, 999.0].map(round_up),
            [4.0, 4.0, 8.0, 40.0, 80.0, 1200.0]
        );
    }
}
