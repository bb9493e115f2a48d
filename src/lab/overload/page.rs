//! What was measured, as tables.

use super::groups::Group;
use super::{Days, Sheet};

/// Everything in Markdown.
pub fn page(sheets: &[Sheet]) -> String {
    let mut text = String::new();
    for sheet in sheets {
        let n = |days: &Days, of: fn(&Group) -> f64| format!("{:.3}", days.mean(of));
        text += &format!(
            "{:?} x{:.2} {:8} all: att {} good {} ref {} left {} wait {} ttft {} tok {} | some: att {} ref {} wait {} p99 {} ttft {} p99 {} tok {} | alone att {} ttft {} p99 {}\n",
            sheet.crowd,
            sheet.load,
            sheet.door,
            n(&sheet.all, |g| g.attainment),
            n(&sheet.all, |g| g.goodput),
            n(&sheet.all, |g| g.refused),
            n(&sheet.all, |g| g.left),
            n(&sheet.all, |g| g.wait_mean),
            n(&sheet.all, |g| g.ttft_mean),
            n(&sheet.all, |g| g.tokens),
            n(&sheet.some, |g| g.attainment),
            n(&sheet.some, |g| g.refused),
            n(&sheet.some, |g| g.wait_mean),
            n(&sheet.some, |g| g.wait_p99),
            n(&sheet.some, |g| g.ttft_mean),
            n(&sheet.some, |g| g.ttft_p99),
            n(&sheet.some, |g| g.tokens),
            n(&sheet.alone, |g| g.attainment),
            n(&sheet.alone, |g| g.ttft_mean),
            n(&sheet.alone, |g| g.ttft_p99),
        );
    }
    text
}
