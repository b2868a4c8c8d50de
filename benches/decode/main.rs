//! Decoding beside the libraries one would take instead, interleaved in one run: `cargo bench --bench decode`.
//!
//! Both sides turn the same 8,192 records into the same columns, with the schema known beforehand. A figure is the
//! other side's time divided by karrow's (more is better), the median of paired rounds.

// A bench that meets the unexpected shall stop there.
#![allow(clippy::expect_used, clippy::panic)]

mod avro;
mod json;
mod protobuf;

use std::time::{Duration, Instant};

/// Records a batch.
const ROWS: usize = 8_192;

/// One pair of things to time.
pub struct Pair {
    /// What is decoded, and what it is compared with.
    pub name: String,
    /// Bytes of all records together.
    pub bytes: usize,
    /// karrow.
    pub ours: Box<dyn FnMut()>,
    /// The other side.
    pub theirs: Box<dyn FnMut()>,
}

fn main() {
    let rounds: usize = argument("--rounds").and_then(|text| text.parse().ok()).unwrap_or(31);
    let only = argument("--only").unwrap_or_default();
    println!("{:<52} {:>10} {:>10} {:>8} {:>15}", "", "ours", "theirs", "ratio", "quartiles");
    let pairs = [json::pairs(), avro::pairs(), protobuf::pairs()];
    for mut pair in pairs.into_iter().flatten() {
        if !pair.name.contains(&only) {
            continue;
        }
        (pair.ours)();
        (pair.theirs)();
        let mut rows: Vec<(Duration, Duration)> = Vec::new();
        for round in 0..rounds {
            // Who comes first changes, so that neither profits from the other's caches.
            let (ours, theirs) = if round % 2 == 0 {
                let ours = time(&mut pair.ours);
                (ours, time(&mut pair.theirs))
            } else {
                let theirs = time(&mut pair.theirs);
                (time(&mut pair.ours), theirs)
            };
            rows.push((ours, theirs));
        }
        let mut ratios: Vec<f64> =
            rows.iter().map(|(ours, theirs)| theirs.as_secs_f64() / ours.as_secs_f64()).collect();
        ratios.sort_by(f64::total_cmp);
        let rate = |pick: fn(&(Duration, Duration)) -> Duration| {
            let mut times: Vec<Duration> = rows.iter().map(pick).collect();
            times.sort();
            pair.bytes as f64 / times[times.len() / 2].as_secs_f64() / 1e6
        };
        println!(
            "{:<52} {:>5.0} MB/s {:>5.0} MB/s {:>8.2} {:>7.2}–{:.2}",
            pair.name,
            rate(|row| row.0),
            rate(|row| row.1),
            ratios[ratios.len() / 2],
            ratios[ratios.len() / 4],
            ratios[ratios.len() * 3 / 4],
        );
    }
}

fn time(work: &mut dyn FnMut()) -> Duration {
    let began = Instant::now();
    work();
    began.elapsed()
}

fn argument(name: &str) -> Option<String> {
    let mut args = std::env::args().skip_while(|arg| arg != name);
    args.nth(1)
}
