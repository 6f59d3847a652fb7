//! Bytes into a page: raw deflate and base64, as the browser's `DecompressionStream("deflate-raw")` and `atob` undo them; JSON that
//! cannot end the `<script>` element it stands in.

use aloe_record::digest;
use flate2::Compression;
use flate2::write::DeflateEncoder;
use serde::Serialize;
use std::io::Write as _;

/// Of 0 to 9: made-up texts of few words take level 6 two and a half times as long, for a fourteenth less; real questions take the same.
const LEVEL: u32 = 5;

/// `bytes` in raw deflate (RFC 1951).
pub(super) fn deflate(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::new(LEVEL));
    // A vector takes every write.
    let _ = encoder.write_all(bytes);
    encoder.finish().unwrap_or_default()
}

/// Base64 with padding (RFC 4648, section 4).
pub(super) fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let sextet = |bits: u32, at: usize| ALPHABET[(bits >> (18 - 6 * at)) as usize & 63];
    let mut text = Vec::with_capacity(bytes.len().div_ceil(3) * 4);
    let mut groups = bytes.chunks_exact(3);
    for group in &mut groups {
        let bits = u32::from(group[0]) << 16 | u32::from(group[1]) << 8 | u32::from(group[2]);
        text.extend_from_slice(&[sextet(bits, 0), sextet(bits, 1), sextet(bits, 2), sextet(bits, 3)]);
    }
    let rest = groups.remainder();
    if !rest.is_empty() {
        let bits = rest.iter().enumerate().fold(0u32, |bits, (at, &byte)| bits | u32::from(byte) << (16 - 8 * at));
        text.extend((0..4).map(|at| if at <= rest.len() { sextet(bits, at) } else { b'=' }));
    }
    // The alphabet is ASCII.
    String::from_utf8(text).unwrap_or_default()
}

/// JSON for a `<script>` element: without `<` there is neither `</script` nor `<!--`.
pub(super) fn json(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_default().replace('<', "\\u003c")
}

/// A Content-Security-Policy source that allows exactly this inline script or style.
pub(super) fn csp_hash(text: &str) -> String {
    let hex = digest::bytes(text.as_bytes());
    let bytes: Vec<u8> =
        (0..hex.len()).step_by(2).filter_map(|at| u8::from_str_radix(&hex[at..at + 2], 16).ok()).collect();
    format!("'sha256-{}'", base64(&bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 4648, section 10.
    #[test]
    fn base64_meets_the_vectors_of_its_rfc() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("fooba", "Zm9vYmE="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64(bytes.as_bytes()), text);
        }
        assert_eq!(base64(&[0xfb, 0xff, 0xbf]), "+/+/");
    }

    /// The example of the CSP specification (Content Security Policy Level 3, 8.3): `doSubmit()`.
    #[test]
    fn a_script_is_allowed_by_the_hash_that_the_specification_gives_it() {
        assert_eq!(csp_hash("doSubmit()"), "'sha256-jzgBGA4UWFFmpOBq0JpdsySukE1FrEN5bUpoK8Z29fY='");
    }

    #[test]
    fn json_in_a_page_cannot_end_its_element() {
        assert_eq!(json(&"</script><!-- &"), r#""\u003c/script>\u003c!-- &""#);
    }

    #[test]
    fn what_was_deflated_inflates() {
        let bytes: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        let mut found = Vec::new();
        std::io::Read::read_to_end(&mut flate2::read::DeflateDecoder::new(&deflate(&bytes)[..]), &mut found).unwrap();
        assert_eq!(found, bytes);
    }
}
