//! The ratios as bars: as long as pglockstep is faster, with the walsender's ceiling as a tick.

use std::fmt::Write as _;

use super::Results;
use crate::contender::Contender;

const WIDTH: f64 = 900.0;
const LABELS: f64 = 400.0;
const RIGHT: f64 = 60.0;
const TOP: f64 = 60.0;
const ROW: f64 = 30.0;
const BAR: f64 = 16.0;
/// What is more than this many times as fast gets a bar of this length, and its figure.
const RATIO_MAX: f64 = 6.0;

struct Bar {
    label: String,
    ratio: f64,
    ceiling: Option<f64>,
    at_least: Option<f64>,
}

/// A plot that needs nothing but itself.
pub fn plot(results: &Results) -> String {
    let bars = bars(results);
    let longest = bars
        .iter()
        .flat_map(|bar| [Some(bar.ratio), bar.ceiling, bar.at_least])
        .flatten()
        .fold(2.0, f64::max)
        .min(RATIO_MAX);
    let x = |ratio: f64| LABELS + ratio.min(longest) / longest * (WIDTH - LABELS - RIGHT);
    #[allow(clippy::cast_precision_loss)]
    let bottom = TOP + bars.len() as f64 * ROW;
    let height = bottom + 60.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text x=\"12\" y=\"22\" font-size=\"16\" fill=\"#222222\">Times as fast as CREATE SUBSCRIPTION</text>\n\
         <text x=\"12\" y=\"42\" fill=\"#666666\">{}</text>\n",
        escaped(&results.machine)
    );
    let mut whole = 0.0;
    while whole <= longest {
        let at = x(whole);
        let colour = if whole == 1.0 { "#222222" } else { "#dddddd" };
        let _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{bottom:.1}\" stroke=\"{colour}\"/>\n\
             <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#666666\">{whole:.0}</text>",
            bottom + 16.0
        );
        whole += 1.0;
    }
    let mut top = TOP;
    for bar in &bars {
        draw(&mut svg, bar, top, &x);
        top += ROW;
    }
    let _ = writeln!(
        svg,
        "<text x=\"12\" y=\"{:.1}\" fill=\"#666666\">bar: pglockstep; red tick: the walsender's ceiling; \
         dashed: what it must reach; 1 is CREATE SUBSCRIPTION. Medians.</text>\n</svg>",
        bottom + 44.0
    );
    svg
}

fn draw(svg: &mut String, bar: &Bar, top: f64, x: &impl Fn(f64) -> f64) {
    let middle = top + ROW / 2.0;
    let (from, to) = (x(0.0), x(bar.ratio));
    let colour = if bar.ratio >= 1.0 {
        "#2a7ab9"
    } else {
        "#c08a2e"
    };
    let _ = writeln!(
        svg,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#222222\">{}</text>\n\
         <rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{BAR}\" fill=\"{colour}\"/>\n\
         <text x=\"{:.1}\" y=\"{:.1}\" fill=\"#222222\">{:.2}</text>",
        from - 8.0,
        middle + 4.0,
        escaped(&bar.label),
        middle - BAR / 2.0,
        to - from,
        to + 6.0,
        middle + 4.0,
        bar.ratio,
    );
    let ticks = [
        (bar.ceiling, "stroke=\"#c0392b\" stroke-width=\"3\""),
        (bar.at_least, "stroke=\"#222222\" stroke-dasharray=\"3 2\""),
    ];
    for (ratio, stroke) in ticks {
        // One that is off the scale would say something else.
        let Some(at) = ratio.filter(|ratio| *ratio <= RATIO_MAX).map(x) else {
            continue;
        };
        let _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" y1=\"{:.1}\" x2=\"{at:.1}\" y2=\"{:.1}\" {stroke}/>",
            middle - BAR / 2.0 - 3.0,
            middle + BAR / 2.0 + 3.0,
        );
    }
}

fn bars(results: &Results) -> Vec<Bar> {
    let mut bars = Vec::new();
    for work in &results.works {
        for contender in [Contender::Ours, Contender::Mapped] {
            let Some(ratio) = results.ratio(&work.name, contender) else {
                continue;
            };
            let label = match contender {
                Contender::Mapped => "the same, by the mapping".to_owned(),
                Contender::Native | Contender::Ours => shortened(&work.title, 60),
            };
            bars.push(Bar {
                label,
                ratio,
                ceiling: results.ceiling_ratio(work),
                at_least: work.at_least,
            });
        }
    }
    bars
}

fn shortened(text: &str, letters_max: usize) -> String {
    if text.chars().count() <= letters_max {
        return text.to_owned();
    }
    let head: String = text.chars().take(letters_max - 1).collect();
    format!("{}…", head.trim_end())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}
