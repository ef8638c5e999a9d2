//! "Did you mean": the nearest of the names that would have been right.

/// The candidate nearest to `word`, if any is near enough to be what was meant.
pub(super) fn nearest<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    let plain = plain(word);
    candidates
        .into_iter()
        .map(|candidate| (distance(&plain, &self::plain(candidate)), candidate))
        // A third of the letters wrong is still a slip, more is another word.
        .filter(|(distance, candidate)| *distance <= 1.max(candidate.chars().count() / 3))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// `did you mean "x"?`, or what all the right names are.
pub(super) fn did_you_mean(word: &str, candidates: &[&str]) -> String {
    match nearest(word, candidates.iter().copied()) {
        Some(name) => format!("did you mean {name:?}?"),
        None => one_of(candidates),
    }
}

/// `right would be one of "a", "b"`.
pub(super) fn one_of(candidates: &[&str]) -> String {
    let quoted: Vec<String> = candidates.iter().map(|name| format!("{name:?}")).collect();
    format!("right would be one of {}", quoted.join(", "))
}

fn plain(word: &str) -> Vec<char> {
    word.to_lowercase().chars().map(|letter| if letter == '-' { '_' } else { letter }).collect()
}

/// Edits (insert, delete, replace, swap of neighbours) that turn one word into the other.
fn distance(left: &[char], right: &[char]) -> usize {
    let mut before_last: Vec<usize> = Vec::new();
    let mut last: Vec<usize> = (0..=right.len()).collect();
    for (i, letter) in left.iter().enumerate() {
        let mut row = vec![i + 1];
        for (j, other) in right.iter().enumerate() {
            let replaced = last[j] + usize::from(letter != other);
            let mut best = replaced.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && *letter == right[j - 1] && left[i - 1] == *other {
                best = best.min(before_last[j - 1] + 1);
            }
            row.push(best);
        }
        before_last = std::mem::replace(&mut last, row);
    }
    last[right.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_is_recognised_and_another_word_is_not() {
        let names = ["commit_interval", "group_id", "workers"];
        assert_eq!(nearest("comit_interval", names), Some("commit_interval"));
        assert_eq!(nearest("group-id", names), Some("group_id"));
        assert_eq!(nearest("wrokers", names), Some("workers"));
        assert_eq!(nearest("retention", names), None);
    }
}
