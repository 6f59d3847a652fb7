//! What a panic says: its place, and of its words those that cannot hold text of a user's rows. Rust's own panics repeat the text that was
//! cut at a wrong place, or the error that was not expected; a log that holds either holds patients' data.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::PanicHookInfo;

/// From here on panics say no more than that.
pub(crate) fn keep_text_out() {
    std::panic::set_hook(Box::new(|info| {
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        let backtrace = Backtrace::capture();
        let called =
            if backtrace.status() == BacktraceStatus::Captured { format!("\n{backtrace}") } else { String::new() };
        let shown = shown(&said(info));
        aloe_record::tell(&format!("error: this is a mistake in aloe, please report it: {place}: {shown}{called}"));
    }));
}

fn said(info: &PanicHookInfo<'_>) -> String {
    let payload = info.payload();
    let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| payload.downcast_ref::<String>().cloned()).unwrap_or_default()
}

/// A panic's words up to the first that are quoted. Numbers that an assertion compares stay: outside tests none compares a text's bytes or ids.
fn shown(said: &str) -> String {
    const COMPARED: &str = "assertion `left == right` failed";
    let (start, rest) = said.strip_prefix(COMPARED).map_or(("", said), |rest| ("assertion failed", rest));
    let end = rest.find(['`', '"', '\'']).unwrap_or(rest.len());
    [start, rest[..end].trim_end(), if end < rest.len() { " .." } else { "" }].concat()
}

#[cfg(test)]
mod tests {
    use super::shown;

    /// The words of real panics, each about the same secret text.
    #[test]
    fn a_panic_says_what_went_wrong_and_nothing_of_the_text_that_it_went_wrong_on() {
        let secret = std::hint::black_box("é Okafor".to_owned());
        type Panicking<'a> = &'a (dyn Fn() + std::panic::RefUnwindSafe);
        let told = |panicking: Panicking<'_>| {
            let payload = std::panic::catch_unwind(panicking).unwrap_err();
            let text = payload.downcast_ref::<String>().cloned();
            text.or_else(|| payload.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap()
        };
        let failed: Result<String, String> = std::hint::black_box(Err(secret.clone()));
        let list: Vec<u8> = std::hint::black_box(vec![1]);
        let cases: [(Panicking<'_>, &str); 6] = [
            (&|| drop(secret[1..].to_owned()), "byte index 1 is not a char boundary; it is inside"),
            (&|| drop(secret[..99].to_owned()), "byte index 99 is out of bounds of"),
            (&|| drop(failed.clone().unwrap()), "called .."),
            (&|| assert_eq!(secret, "x", "a name"), "assertion failed: a name\n  left: .."),
            (&|| assert_eq!([2, 3], [3, 2]), "assertion failed\n  left: [2, 3]\n right: [3, 2]"),
            (&|| drop(vec![list[7]]), "index out of bounds: the len is 1 but the index is 7"),
        ];
        for (panicking, expected) in cases {
            let whole = told(panicking);
            let found = shown(&whole);
            assert!(found.contains(expected) && !found.contains("Okafor"), "{found}");
            assert!(whole.contains("Okafor") || !whole.contains('"'), "{whole}");
        }
    }
}
