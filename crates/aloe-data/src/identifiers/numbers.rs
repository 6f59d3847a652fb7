//! Identifiers that hold digits: numbers with a check digit, phones, record numbers, dates and addresses; and e-mail addresses.

use super::checks::{digits, es_dni, iban, iban_length, is_card, uk_nhs, us_ssn};
use super::{Found, IdentifierKind as Kind};
use regex::Regex;
use std::sync::LazyLock;

fn pattern(text: &str) -> Regex {
    Regex::new(text).expect("a fixed pattern")
}

const MONTH: &str = "(?:Jan(?:uary)?|Feb(?:ruary)?|Mar(?:ch)?|Apr(?:il)?|May|June?|July?|Aug(?:ust)?|Sept?(?:ember)?|Oct(?:ober)?|Nov(?:ember)?\
    |Dec(?:ember)?|JAN|FEB|MAR|APR|MAY|JUN|JUL|AUG|SEP|OCT|NOV|DEC)";
const ES_MONTH: &str =
    "(?i:enero|febrero|marzo|abril|mayo|junio|julio|agosto|septiembre|setiembre|octubre|noviembre|diciembre)";

static EMAIL: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"(?i)\b[a-z0-9][a-z0-9._%+-]*(?:@|\s?[(\[]at[)\]]\s?)[a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,}\b")
});
static IBAN: LazyLock<Regex> = LazyLock::new(|| pattern(r"\b[A-Z]{2}\d{2}[ ]?[A-Z0-9]"));
static CARD: LazyLock<Regex> = LazyLock::new(|| pattern(r"\b\d(?:[ -]?\d){12,18}\b"));
static SSN: LazyLock<Regex> = LazyLock::new(|| pattern(r"\b\d{3}-\d{2}-\d{4}\b|\b\d{3} \d{2} \d{4}\b|\b\d{9}\b"));
static DNI: LazyLock<Regex> = LazyLock::new(|| {
    pattern(r"\b\d{8}[- ]?[A-Za-z]\b|\b\d{1,2}\.\d{3}\.\d{3}[- ]?[A-Za-z]\b|\b[XYZxyz][- ]?\d{7}[- ]?[A-Za-z]\b")
});
static NHS: LazyLock<Regex> = LazyLock::new(|| pattern(r"\b\d{3}[ -]?\d{3}[ -]?\d{4}\b"));
static PHONES: LazyLock<[Regex; 7]> = LazyLock::new(|| {
    [
        // International.
        pattern(r"\+\d{1,3}(?:[ .-]?(?:\(\d{1,4}\)|\d{1,4})){2,5}\b"),
        // Parted by blanks alone: codes of drugs are written 0093-3099-93.
        pattern(r"\b00[1-9]\d{0,2}(?: (?:\(\d{1,4}\)|\d{1,4})){2,5}\b"),
        // North America: with an area code in brackets, or parted by hyphens or dots.
        pattern(r"(?:\b1[-. ]?)?\([2-9]\d{2}\) ?\d{3}[-. ]\d{4}\b"),
        pattern(r"\b(?:1-)?[2-9]\d{2}-[2-9]\d{2}-\d{4}\b|\b(?:1\.)?[2-9]\d{2}\.[2-9]\d{2}\.\d{4}\b"),
        // United Kingdom.
        pattern(r"\b0[12378]\d{1,3}[ -]\d{3,4}[ -]?\d{3,4}\b"),
        // Spain, in pairs.
        pattern(r"\b[6789]\d{2} \d{2} \d{2} \d{2}\b"),
        pattern(
            r"\b0[12378]\d{9}\b|\b[6789]\d{8}\b|\b[6789]\d{2}[ -]\d{3}[ -]\d{3}\b|\b\d{3}[ -]\d{4}\b|\b[2-9]\d{2} ?\d{3} ?\d{4}\b",
        ),
    ]
});
/// Which of the patterns are too common to mean a phone without a word for it before them.
const FIRST_LABELLED_PHONE: usize = 6;
static PHONE_WORD: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?i)\b(?:tel|tele?phone|phone|ph|mobile|cell ?phone|fax|pager|call(?:ed)?|rang|ring|text(?:ed)?|contact|whatsapp|tel[eé]fono|tfno|m[oó]vil|llamar|ll[aá]me)\b",
    )
});
static RECORD: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?i)\b(?:mrn|nhc|(?:medical|hospital|patient|clinical|chart|health|case|file|unit)(?: record)? (?:number|no|nr|id|#)|medical record|patient id|chart|record (?:number|no)|(?:encounter|account|admission|policy|member(?:ship)?|insurance) (?:number|no|id)|(?:n[uú]mero|n[.º°]*) de historia(?: cl[ií]nica)?|historia cl[ií]nica|expediente)(?:\b|#)(?:[\s:.#º°-]|\b(?:is|was|es|number|no|n[uú]mero|num)\b){0,12}(?P<number>[a-z]{0,4}[-/]?\d[a-z0-9]*(?:[-/][a-z0-9]+)*)\b",
    )
});
static DATES: LazyLock<[Regex; 4]> = LazyLock::new(|| {
    [
        pattern(
            r"\b(?P<year>(?:18|19|20)\d{2})(?:-(?P<a>\d{1,2})-(?P<b>\d{1,2})|/(?P<c>\d{1,2})/(?P<d>\d{1,2})|\.(?P<e>\d{2})\.(?P<f>\d{2}))(?:T\d{2}(?::?\d{2}){0,2}(?:[.,]\d+)?(?:Z|[+-]\d{2}:?\d{2})?)?\b",
        ),
        pattern(
            r"\b(?:(?P<a>\d{1,2})/(?P<b>\d{1,2})/|(?P<c>\d{1,2})-(?P<d>\d{1,2})-|(?P<e>\d{1,2})\.(?P<f>\d{1,2})\.)(?P<year>(?:18|19|20)\d{2}|\d{2})\b",
        ),
        pattern(&format!(
            r"\b\d{{1,2}}(?:st|nd|rd|th)?(?:[ ]?-[ ]?|[ ]of[ ]|[ ])?{MONTH}\.?(?:[ ]?-[ ]?|,?[ ])?(?:(?:18|19|20)\d{{2}}|'\d{{2}})\b|\b{MONTH}\.?[ ]\d{{1,2}}(?:st|nd|rd|th)?,?[ ](?:18|19|20)\d{{2}}\b|\b\d{{1,2}}(?:[ ]de)?[ ]{ES_MONTH}(?:[ ]del?)?[ ](?:18|19|20)\d{{2}}\b"
        )),
        // Without a year only behind a word that a date follows.
        pattern(&format!(
            r"\b(?:[Oo]n|[Ss]ince|[Uu]ntil|[Dd]ated|[Ff]rom|[Bb]orn|[Aa]dmitted|[Dd]ischarged)[ ](?:the[ ])?(?P<day>{MONTH}\.?[ ]\d{{1,2}}(?:st|nd|rd|th)?|\d{{1,2}}(?:st|nd|rd|th)?(?:[ ]of)?[ ]{MONTH})\b"
        )),
    ]
});
static DATE_WORD: LazyLock<Regex> = LazyLock::new(|| {
    pattern(
        r"(?i)\b(?:dob|d\.o\.b|birth|born|dated?|on|since|until|from|by|before|after|admi\w*|discharg\w*|seen|visit\w*|review\w*|follow-up|signed|recorded|received|taken|collected|reported|expir\w*|due|appointment|nacid[oa]|fecha|desde|hasta|el)\b[^\n]{0,12}$",
    )
});
const STREET_TYPE: &str = "(?:Street|St|Road|Rd|Avenue|Ave|Lane|Ln|Drive|Dr|Court|Ct|Boulevard|Blvd|Way|Place|Pl|Terrace|Close|Crescent|Square|Sq\
    |Gardens|Grove|Mews|Parkway|Pkwy|Highway|Hwy)";
/// What a number may be the name of: `88th Avenue`; a `1st Dr` is a doctor and a `2nd Place` a rank.
const NUMBERED_STREET: &str = "(?:Street|St|Avenue|Ave|Road|Rd|Lane|Ln|Drive|Terrace|Boulevard|Blvd|Parkway|Pkwy)";
const STATE: &str = "(?:AL|AK|AZ|AR|CA|CO|CT|DE|DC|FL|GA|HI|ID|IL|IN|IA|KS|KY|LA|ME|MD|MA|MI|MN|MS|MO|MT|NE|NV|NH|NJ|NM|NY|NC|ND|OH|OK|OR|PA|RI|SC|SD\
    |TN|TX|UT|VT|VA|WA|WV|WI|WY)";
const UK_CODE: &str =
    r"(?:[A-PR-UWYZ][A-HK-Y]\d{1,2}|[BEGLMNSW]\d{1,2}|[A-Z]{1,2}\d[A-HJKPSTUW])\x20\d[ABD-HJLNP-UW-Z]{2}";
static ADDRESSES: LazyLock<[Regex; 4]> = LazyLock::new(|| {
    let town = r"\p{Lu}\p{Ll}+(?:[ -]\p{Lu}\p{Ll}+){0,2}";
    [
        pattern(&format!(
            r"\b\d{{1,5}}[A-Za-z]?,?[ ](?:(?:[NS][EW]|[NSEW]\.?)[ ])?(?:(?:\p{{Lu}}[\p{{L}}'’]+\.?[ ]){{1,5}}{STREET_TYPE}|(?:\p{{Lu}}\p{{Ll}}+[ ])?\d{{1,3}}(?:st|nd|rd|th)[ ]{NUMBERED_STREET})\b\.?(?:[ ][NS][EW]\b)?(?:,?[ ](?:Apt|Apartment|Unit|Suite|Flat|Room|#)\.?[ ]?\w+)?(?:,[ ]{town}){{0,2}}(?:,?[ ]{STATE}[ ]\d{{5}}(?:-\d{{4}})?|,?[ ]{UK_CODE})?\b"
        )),
        pattern(&format!(r"\b{town},[ ]{STATE}[ ]\d{{5}}(?:-\d{{4}})?\b|\b{UK_CODE}\b")),
        pattern(r"\b[Pp]\.?[ ]?[Oo]\.?[ ]?[Bb]ox[ ]\d+\b"),
        pattern(
            r"\b(?:Calle|C/|Avda\.?|Avenida|Plaza|Paseo|Carrer|Ronda|Camino|Rambla)[ ]?(?:(?:de|del|de la|de las|de los|la|el)[ ])?\p{Lu}\p{L}+(?:[ ](?:(?:de|del|la|las|los|i|y)[ ])?\p{Lu}\p{L}+){0,3},?[ ](?:n[ºo°.]*[ ]?)?\d{1,4}(?:,?[ ]\d{1,2}[ºª°]\.?[ ]?\w?)?(?:,[ ]\d{5}(?:[ ]\p{Lu}\p{L}+(?:[ ]\p{Lu}\p{L}+)?)?)?\b",
        ),
    ]
});

/// E-mail addresses, also with `(at)`.
pub(super) fn emails(text: &str, found: &mut Vec<Found>) {
    found.extend(EMAIL.find_iter(text).map(|one| Found { kind: Kind::Email, start: one.start(), end: one.end() }));
}

/// All kinds but e-mail addresses and names.
pub(super) fn find(text: &str, found: &mut Vec<Found>) {
    ibans(text, found);
    let mut add = |kind: Kind, start: usize, end: usize| found.push(Found { kind, start, end });
    for one in CARD.find_iter(text).filter(|one| is_alone(text, one.start(), one.end())) {
        if is_card(&digits(one.as_str())) {
            add(Kind::PaymentCard, one.start(), one.end());
        }
    }
    for one in SSN.find_iter(text).filter(|one| is_alone(text, one.start(), one.end())) {
        let labels = ["ssn", "social security", "soc sec"];
        let labelled = || is_before(text, one.start(), &labels) || is_behind(text, one.end(), &labels);
        if us_ssn(&digits(one.as_str())) && (one.as_str().contains('-') || labelled()) {
            add(Kind::UsSsn, one.start(), one.end());
        }
    }
    for one in DNI.find_iter(text) {
        // Small letters are units more often than check letters.
        let small = one.as_str().ends_with(|c: char| c.is_ascii_lowercase());
        if es_dni(one.as_str()) && (!small || is_before(text, one.start(), &["dni", "nie", "nif"])) {
            add(Kind::EsDni, one.start(), one.end());
        }
    }
    for one in NHS.find_iter(text).filter(|one| is_alone(text, one.start(), one.end())) {
        let is_spaced = one.as_str().bytes().filter(|byte| *byte == b' ').count() == 2;
        let labelled = is_before(text, one.start(), &["nhs"]);
        if uk_nhs(&digits(one.as_str())) && (labelled || (is_spaced && !is_phone_labelled(text, one.start()))) {
            add(Kind::UkNhs, one.start(), one.end());
        }
    }
    phones(text, found);
    for one in RECORD.captures_iter(text).filter_map(|parts| parts.name("number")) {
        if one.as_str().bytes().filter(u8::is_ascii_digit).count() >= 4 {
            found.push(Found { kind: Kind::RecordNumber, start: one.start(), end: one.end() });
        }
    }
    dates(text, found);
    for one in ADDRESSES.iter().flat_map(|pattern| pattern.find_iter(text)) {
        found.push(Found { kind: Kind::Address, start: one.start(), end: one.end() });
    }
}

/// Walks from each beginning as far as the country's length says; single spaces may part the groups.
fn ibans(text: &str, found: &mut Vec<Found>) {
    for one in IBAN.find_iter(text) {
        let Some(length) = iban_length(&one.as_str()[..2]) else { continue };
        let (mut compact, mut end) = (String::with_capacity(length), one.start());
        let mut last = ' ';
        for c in text[one.start()..].chars() {
            if compact.len() == length || !(c.is_ascii_alphanumeric() || (c == ' ' && last != ' ')) {
                break;
            }
            if c != ' ' {
                compact.push(c.to_ascii_uppercase());
            }
            last = c;
            end += 1;
        }
        let goes_on = text[end..].starts_with(|c: char| c.is_alphanumeric());
        if !goes_on && iban(&compact) {
            found.push(Found { kind: Kind::Iban, start: one.start(), end });
        }
    }
}

fn phones(text: &str, found: &mut Vec<Found>) {
    for (index, pattern) in PHONES.iter().enumerate() {
        for one in pattern.find_iter(text) {
            let n_digits = digits(one.as_str()).len();
            let fits = (7..=15).contains(&n_digits)
                && is_alone(text, one.start(), one.end())
                && !one.as_str().split(' ').all(is_clock_time);
            if fits && (index < FIRST_LABELLED_PHONE || is_phone_labelled(text, one.start())) {
                found.push(Found { kind: Kind::Phone, start: one.start(), end: one.end() });
            }
        }
    }
}

/// Hours and minutes as wards write them: `0030 0430 0830` is no phone.
fn is_clock_time(group: &str) -> bool {
    let time: Option<u32> = group.parse().ok().filter(|_| group.len() == 4);
    time.is_some_and(|time| time / 100 < 24 && time % 100 < 60)
}

fn dates(text: &str, found: &mut Vec<Found>) {
    for pattern in &DATES[..2] {
        for parts in pattern.captures_iter(text) {
            let whole = parts.get(0).map_or(0..0, |one| one.range());
            let number = |names: [&str; 3]| -> u32 {
                names.iter().find_map(|name| parts.name(name)).and_then(|one| one.as_str().parse().ok()).unwrap_or(0)
            };
            let (first, second) = (number(["a", "c", "e"]), number(["b", "d", "f"]));
            let is_month = |month: u32, day: u32| (1..=12).contains(&month) && (1..=31).contains(&day);
            // Two digits of a year are clear only behind slashes: 10-20-30 and 1.5.20 count other things.
            let is_short = parts.name("year").is_some_and(|year| year.as_str().len() == 2);
            // And scores and doses are written so (Apgar 8/9/10, 5/10/20 tablets): a day past the twelfth or a word for a date tells.
            let is_dated = || first > 12 || second > 12 || DATE_WORD.is_match(before(text, whole.start, 24));
            let is_clear = !is_short || (parts.name("a").is_some() && !is_unit(&text[whole.end..]) && is_dated());
            let fits = is_month(first, second) || is_month(second, first);
            if fits && is_clear && is_alone(text, whole.start, whole.end) {
                found.push(Found { kind: Kind::Date, start: whole.start, end: whole.end });
            }
        }
    }
    for one in DATES[2].find_iter(text) {
        found.push(Found { kind: Kind::Date, start: one.start(), end: one.end() });
    }
    for one in DATES[3].captures_iter(text).filter_map(|parts| parts.name("day")) {
        if !is_unit(&text[one.end()..]) {
            found.push(Found { kind: Kind::Date, start: one.start(), end: one.end() });
        }
    }
}

/// Whether a unit follows, so that what stands before it is a dose or a ratio.
fn is_unit(after: &str) -> bool {
    let word: String =
        after.trim_start_matches([' ', '-']).chars().take_while(|c| c.is_alphabetic() || *c == '%').collect();
    let units = [
        "mg", "mcg", "g", "ug", "µg", "ml", "mL", "mm", "cm", "mmHg", "units", "U", "IU", "%", "min", "h", "hours",
        "days", "weeks", "minutes", "tablets", "points",
    ];
    units.contains(&word.as_str())
}

/// Whether no further digits, parted by a point, a hyphen or a slash, stand on either side: part of a longer code otherwise.
fn is_alone(text: &str, start: usize, end: usize) -> bool {
    let joins = |c: char| matches!(c, '-' | '.' | '/' | ':');
    let mut before = text[..start].chars().rev();
    let led = before.next().is_some_and(joins) && before.next().is_some_and(char::is_alphanumeric);
    let mut after = text[end..].chars();
    let followed = after.next().is_some_and(joins) && after.next().is_some_and(|c| c.is_ascii_digit());
    !led && !followed
}

/// What stands before `start`, up to so many bytes, in lower case.
fn before(text: &str, start: usize, n_bytes: usize) -> &str {
    let mut from = start.saturating_sub(n_bytes);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..start]
}

fn is_before(text: &str, start: usize, words: &[&str]) -> bool {
    let near = before(text, start, 48).to_lowercase();
    words.iter().any(|word| near.contains(word))
}

/// Whether one of the words follows in the same sentence: "123 45 6789 is my social security number".
fn is_behind(text: &str, end: usize, words: &[&str]) -> bool {
    let near: String = text[end..].chars().take(40).take_while(|c| !matches!(c, '.' | '\n' | ';')).collect();
    let near = near.to_lowercase();
    words.iter().any(|word| near.contains(word))
}

fn is_phone_labelled(text: &str, start: usize) -> bool {
    PHONE_WORD.is_match(before(text, start, 32))
}
