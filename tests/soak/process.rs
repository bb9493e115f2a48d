//! What a process holds, as the kernel counts it, and whether it grows.

use std::fs;

/// Bytes of a page on every machine that this runs on.
const PAGE: u64 = 4096;

/// Resident memory, MiB.
pub(crate) fn memory_mib(process: u32) -> f64 {
    let statm = fs::read_to_string(format!("/proc/{process}/statm")).unwrap_or_default();
    let pages: u64 = statm.split(' ').nth(1).and_then(|field| field.parse().ok()).unwrap_or(0);
    (pages * PAGE) as f64 / f64::from(1 << 20)
}

/// Open file descriptors.
pub(crate) fn descriptors(process: u32) -> usize {
    fs::read_dir(format!("/proc/{process}/fd")).map_or(0, Iterator::count)
}

/// What a straight line through `(x, y)` gains for each `x`; 0 for fewer than two points.
pub(crate) fn slope(points: &[(f64, f64)]) -> f64 {
    let count = points.len() as f64;
    let (mean_x, mean_y) = points.iter().fold((0.0, 0.0), |(x, y), point| (x + point.0 / count, y + point.1 / count));
    let spread: f64 = points.iter().map(|point| (point.0 - mean_x).powi(2)).sum();
    let together: f64 = points.iter().map(|point| (point.0 - mean_x) * (point.1 - mean_y)).sum();
    if spread > 0.0 { together / spread } else { 0.0 }
}

/// The smallest of `sorted` that at least `share` of them do not exceed.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let rank = (share * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.max(1) - 1).copied().unwrap_or(0.0)
}

#[test]
fn a_line_is_fitted() {
    assert!((slope(&[(0.0, 1.0), (1.0, 3.0), (2.0, 5.0)]) - 2.0).abs() < 1e-9);
    assert!((slope(&[(0.0, 1.0), (1.0, 2.0), (2.0, 0.0)]) + 0.5).abs() < 1e-9);
    assert!(slope(&[(3.0, 1.0)]).abs() < 1e-9);
    assert!((quantile(&[1.0, 2.0, 3.0, 4.0], 0.5) - 2.0).abs() < 1e-9);
}

#[test]
fn this_process_holds_something() {
    let this = std::process::id();
    assert!(memory_mib(this) > 1.0 && descriptors(this) > 2);
}
