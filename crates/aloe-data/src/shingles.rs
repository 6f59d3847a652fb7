//! Runs of words of simplified text, and the xxHash64 of each, as Datatrove's `xxhash_64`.

use aloe_tensor::Isa;
use xxhash_rust::xxh64::xxh64;

/// Hashes of all windows of `n` words, in order.
pub(crate) fn shingles(simplified: &str, n: usize) -> Vec<u64> {
    windows(simplified, n).map(|window| xxh64(window.as_bytes(), 0)).collect()
}

/// All windows of `n` words as slices of text whose words are parted by single spaces.
pub(crate) fn windows(simplified: &str, n: usize) -> impl Iterator<Item = &str> {
    let starts = word_starts(simplified);
    let n_windows = if simplified.is_empty() { 0 } else { starts.len().saturating_sub(n) };
    (0..n_windows).map(move |first| &simplified[starts[first]..starts[first + n] - 1])
}

/// Where each word begins, and where one behind the text's end would.
fn word_starts(simplified: &str) -> Vec<usize> {
    let (chunks, rest) = simplified.as_bytes().as_chunks::<64>();
    let mut starts = Vec::with_capacity(simplified.len() / 4 + 2);
    starts.push(0);
    Isa::wide(|| {
        for (number, chunk) in chunks.iter().enumerate() {
            let mut spaces = spaces(chunk);
            while spaces != 0 {
                starts.push(64 * number + spaces.trailing_zeros() as usize + 1);
                spaces &= spaces - 1;
            }
        }
    });
    let behind = 64 * chunks.len() + 1;
    starts.extend(rest.iter().enumerate().filter(|(_, byte)| **byte == b' ').map(|(at, _)| behind + at));
    starts.push(simplified.len() + 1);
    starts
}

/// A bit for each byte that is a space.
#[inline(always)]
fn spaces(chunk: &[u8; 64]) -> u64 {
    chunk.iter().rev().fold(0, |bits, byte| (bits << 1) | u64::from(*byte == b' '))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_all_runs_of_n_words() {
        assert_eq!(windows("a bb c", 2).collect::<Vec<_>>(), ["a bb", "bb c"]);
        assert_eq!(windows("a bb c", 3).collect::<Vec<_>>(), ["a bb c"]);
        assert_eq!(windows("a bb c", 4).count(), 0);
        assert_eq!(windows("", 1).count(), 0);
    }

    #[test]
    fn windows_of_texts_of_any_length_are_those_of_its_words() {
        let mut draw = aloe_record::CounterRng::new(1, "words", 0);
        let words: Vec<&str> = (0..120).map(|_| &"abcdefghijklmnopqrst"[..draw.below(20)]).collect();
        for n_words in 0..words.len() {
            let text = words[..n_words].join(" ");
            let expected: Vec<String> = words[..n_words].windows(5).map(|run| run.join(" ")).collect();
            assert_eq!(windows(&text, 5).collect::<Vec<_>>(), expected);
        }
    }
}
