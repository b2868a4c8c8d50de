//! Ratios of paired runs, what issue and rafka ask of them, and the markdown that says so.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::Command;

use crate::idle;
use crate::work::Sample;

/// Median and range of a few numbers.
#[derive(Clone, Copy)]
pub struct Spread {
    pub median: f64,
    pub min: f64,
    pub max: f64,
}

impl Spread {
    /// `None` of no numbers.
    pub fn of(numbers: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = numbers.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            (sorted[middle - 1] + sorted[middle]) / 2.0
        };
        Some(Self { median, min, max })
    }
}

/// One ratio the issue sets a bound for.
pub struct Target {
    pub work: &'static str,
    pub rafka: &'static str,
    pub must: f64,
    pub goal: f64,
    /// Throughput is better when larger, time when smaller.
    pub larger_is_better: bool,
}

impl Target {
    fn verdict(&self, ratio: f64) -> &'static str {
        let meets = |bound| if self.larger_is_better { ratio >= bound } else { ratio <= bound };
        match (meets(self.goal), meets(self.must)) {
            (true, _) => "goal",
            (false, true) => "must",
            (false, false) => "**missed**",
        }
    }

    fn bound(&self, value: f64) -> String {
        format!("{} {value}", if self.larger_is_better { '≥' } else { '≤' })
    }
}

/// The same work by the three arms of one round.
#[derive(Clone, Copy)]
pub struct Round<T> {
    pub subject: T,
    pub reference: T,
    /// A second Redis: its ratio to the first is noise.
    pub noise: T,
}

/// A target with the ratios of its rounds.
pub struct Row {
    pub target: &'static Target,
    pub ratio: Spread,
    pub noise: Spread,
}

impl Row {
    /// Ratios of what `of` reads from each arm; `None` without rounds.
    pub fn new<T>(
        target: &'static Target,
        rounds: &[Round<T>],
        of: impl Fn(&T) -> f64,
    ) -> Option<Self> {
        let ratio =
            Spread::of(rounds.iter().map(|round| of(&round.subject) / of(&round.reference)))?;
        let noise = Spread::of(rounds.iter().map(|round| of(&round.noise) / of(&round.reference)))?;
        Some(Self { target, ratio, noise })
    }
}

/// The table of the targets.
pub fn ratios(rows: &[Row]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let mut text = String::from(
        "| work | median | min–max | Redis ÷ Redis | rafka | must | goal | verdict |\n\
         |---|---|---|---|---|---|---|---|\n",
    );
    for Row { target, ratio, noise } in rows {
        line(
            &mut text,
            &[
                target.work.to_owned(),
                format!("{:.2}", ratio.median),
                format!("{:.2}–{:.2}", ratio.min, ratio.max),
                format!("{:.2} ({:.2}–{:.2})", noise.median, noise.min, noise.max),
                target.rafka.to_owned(),
                target.bound(target.must),
                target.bound(target.goal),
                target.verdict(ratio.median).to_owned(),
            ],
        );
    }
    text
}

/// Heading of the table of absolute figures.
pub const ABSOLUTE_HEADING: &str = "| work, medians | karrow | Redis | generator, share of a core beside karrow, beside Redis |\n|---|---|---|---|\n";

/// A line of the table of absolute figures: they are this machine's, only ratios travel.
pub fn absolute(work: &str, rounds: &[Round<Sample>]) -> String {
    let median = |of: &dyn Fn(&Round<Sample>) -> f64| {
        Spread::of(rounds.iter().map(of)).map_or(0.0, |spread| spread.median)
    };
    let arm = |of: fn(&Round<Sample>) -> Sample| {
        let (ops, cpu) =
            (median(&|round| of(round).ops_per_second), median(&|round| of(round).cpu_micros));
        format!("{} /s, {cpu:.2} µs", thousands(ops))
    };
    let share = |of: fn(&Round<Sample>) -> Sample| {
        format!("{:.0} %", 100.0 * median(&|round| of(round).generator_share))
    };
    let mut text = String::new();
    line(
        &mut text,
        &[
            work.to_owned(),
            arm(|round| round.subject),
            arm(|round| round.reference),
            format!("{}, {}", share(|round| round.subject), share(|round| round.reference)),
        ],
    );
    text
}

/// The table of idle consumers, and what each of the last hundred and fifty adds.
pub fn idle(servers: &[(&str, Vec<idle::Sample>)]) -> String {
    let mut text = String::from(
        "| server | idle consumers | RSS, MiB | threads | descriptors | CPU, % of a core |\n|---|---|---|---|---|---|\n",
    );
    for (name, samples) in servers {
        for sample in samples {
            let held = sample.footprint;
            line(
                &mut text,
                &[
                    (*name).to_owned(),
                    sample.consumers.to_string(),
                    format!("{:.1}", held.rss_kib as f64 / 1024.0),
                    held.threads.to_string(),
                    held.descriptors.to_string(),
                    format!("{:.2}", 100.0 * sample.cpu_share),
                ],
            );
        }
        if let [.., few, many] = samples.as_slice() {
            let each = |of: fn(&idle::Sample) -> f64| {
                (of(many) - of(few)) / (many.consumers - few.consumers) as f64
            };
            line(
                &mut text,
                &[
                    format!("{name}, each more"),
                    format!("{} → {}", few.consumers, many.consumers),
                    format!("{:.3}", each(|sample| sample.footprint.rss_kib as f64 / 1024.0)),
                    format!("{:.2}", each(|sample| sample.footprint.threads as f64)),
                    format!("{:.2}", each(|sample| sample.footprint.descriptors as f64)),
                    format!("{:.3}", each(|sample| 100.0 * sample.cpu_share)),
                ],
            );
        }
    }
    line(&mut text, &["rafka, each more", "50 → 200", "0.28", "5", "9", "0.11"].map(str::to_owned));
    text
}

fn line(text: &mut String, cells: &[String]) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "| {} |", cells.join(" | "));
}

/// 1234567 → "1,234,567".
pub fn thousands(number: f64) -> String {
    let digits = format!("{number:.0}");
    let groups: Vec<&str> = digits
        .as_bytes()
        .rchunks(3)
        .rev()
        .filter_map(|group| std::str::from_utf8(group).ok())
        .collect();
    groups.join(",")
}

/// What was measured on what: processor, cores, kernel and versions.
pub fn machine(programs: &[(&str, PathBuf)]) -> String {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split(": ").nth(1))
        .unwrap_or("unknown CPU");
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut text = format!("{model}, {cores} cores, Linux {}", kernel.trim());
    for (name, program) in programs {
        let output = Command::new(program)
            .arg("--version")
            .output()
            .map(|output| output.stdout)
            .unwrap_or_default();
        let said = String::from_utf8_lossy(&output);
        let version = said
            .split_whitespace()
            .map(|word| word.trim_start_matches("v="))
            .find(|word| word.starts_with(|first: char| first.is_ascii_digit()));
        let _ = write!(text, "; {name} {}", version.unwrap_or("of unknown version"));
    }
    text
}
