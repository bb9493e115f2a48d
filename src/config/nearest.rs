//! The word that was probably meant: the closest of the allowed ones by edit distance.
//!
//! It stays silent rather than guess wildly, because a wrong suggestion costs the reader more than none.

/// Words longer than this are not compared: the distance is quadratic, and no name of ours is near it.
const LONGEST: usize = 256;

/// The allowed word nearest to `word`, if one is near enough to be a slip of the keyboard.
pub fn nearest<'a>(word: &str, allowed: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > LONGEST {
        return None;
    }
    let typed = plain(word);
    // A third of the letters may be wrong, as rustc allows; a difference in case or in `_` and `-` costs nothing.
    let limit = (typed.len() / 3).max(1);
    allowed
        .into_iter()
        .filter(|candidate| candidate.len() <= LONGEST)
        .map(|candidate| (distance(&typed, &plain(candidate)), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `did you mean X?` and the whole list, or the list alone.
pub(super) fn suggestion(word: &str, allowed: &[&str], what: &str) -> String {
    let list = listed(allowed);
    match nearest(word, allowed.iter().copied()) {
        Some(near) if allowed.len() == 1 => format!("did you mean `{near}`?"),
        Some(near) => format!("did you mean `{near}`? {what}: {list}"),
        None => format!("{what}: {list}"),
    }
}

/// How many names a list shows before it is cut: more would hide the rest of the report.
const SHOWN: usize = 20;

/// Names in a row, cut after [`SHOWN`].
pub(super) fn listed(names: &[&str]) -> String {
    let mut list = names.iter().take(SHOWN).copied().collect::<Vec<_>>().join(", ");
    if let Some(more @ 1..) = names.len().checked_sub(SHOWN) {
        list.push_str(&format!(" and {more} more"));
    }
    list
}

fn plain(word: &str) -> Vec<char> {
    word.chars()
        .filter(|letter| !matches!(letter, '_' | '-'))
        .flat_map(char::to_lowercase)
        .collect()
}

/// Levenshtein distance, one row at a time.
fn distance(left: &[char], right: &[char]) -> usize {
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (above, letter) in left.iter().enumerate() {
        let mut diagonal = above;
        let mut before = above + 1;
        for (cell, other) in row.iter_mut().skip(1).zip(right) {
            let replaced = diagonal + usize::from(letter != other);
            diagonal = *cell;
            *cell = replaced.min(diagonal + 1).min(before + 1);
            before = *cell;
        }
        if let Some(first) = row.first_mut() {
            *first = above + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_insertions_deletions_and_replacements() {
        let chars = |word: &str| word.chars().collect::<Vec<_>>();
        for (left, right, expected) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("kitten", "sitting", 3),
            ("ab", "ba", 2),
        ] {
            assert_eq!(distance(&chars(left), &chars(right)), expected, "{left} {right}");
        }
    }

    #[test]
    fn a_slip_is_recognised_and_another_word_is_not() {
        let words = ["round-robin", "random", "least-cost"];
        assert_eq!(nearest("round_robbin", words), Some("round-robin"));
        assert_eq!(nearest("LeastCost", words), Some("least-cost"));
        assert_eq!(nearest("fastest", words), None);
    }

    #[test]
    fn a_long_list_is_cut() {
        let names: Vec<String> = (0..25).map(|number| format!("n{number}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert!(listed(&names).ends_with("n19 and 5 more"));
    }
}
