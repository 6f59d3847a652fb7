//! The type of a plain scalar by YAML 1.1 as PyYAML 6 implements it (`yaml/resolver.py`, `yaml/constructor.py`): `yes` is
//! true, `010` is eight, `1:30` is ninety, and `1e3` is text, because its float needs a dot and a signed exponent.

/// A resolved scalar.
#[derive(Clone, Debug, PartialEq)]
pub enum Scalar {
    /// `~`, `null` or nothing.
    Null,
    /// `yes`, `no`, `true`, `false`, `on`, `off` in three capitalisations.
    Bool(bool),
    /// Binary, octal, decimal, hexadecimal or base 60.
    Int(i64),
    /// A decimal with a dot, base 60 with a dot, `.inf`, `.nan`.
    Float(f64),
    /// Any other text, and everything quoted.
    Text(String),
    /// A plain date such as `2024-04-18`, which PyYAML turns into a date object: no parameter takes one.
    Date(String),
    /// A plain `<<`.
    MergeKey,
    /// A plain `=`.
    ValueKey,
}

impl Scalar {
    /// The value with its type, for messages.
    pub fn describe(&self) -> String {
        match self {
            Self::Null => "nothing (null)".into(),
            Self::Bool(value) => format!("the boolean {value}"),
            Self::Int(value) => format!("the integer {value}"),
            Self::Float(value) => format!("the number {value}"),
            Self::Text(text) => format!("the text '{}'", text.chars().take(60).collect::<String>()),
            Self::Date(text) => format!("the date {text}"),
            Self::MergeKey => "the key `<<`".into(),
            Self::ValueKey => "the key `=`".into(),
        }
    }
}

/// The value of an unquoted scalar.
pub(crate) fn plain(text: &str) -> Result<Scalar, String> {
    if let Some(value) = boolean(text) {
        return Ok(Scalar::Bool(value));
    }
    if is_float(text) {
        return float(text).map(Scalar::Float);
    }
    if is_int(text) {
        return int(text).map(Scalar::Int);
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => Ok(Scalar::Null),
        "<<" => Ok(Scalar::MergeKey),
        "=" => Ok(Scalar::ValueKey),
        _ if is_date(text) => Ok(Scalar::Date(text.to_owned())),
        _ => Ok(Scalar::Text(text.to_owned())),
    }
}

/// The value of a scalar under `!!kind`.
pub(crate) fn tagged(kind: &str, text: &str) -> Result<Scalar, String> {
    let wrong = || format!("`{text}` is no !!{kind}");
    match kind {
        "str" => Ok(Scalar::Text(text.to_owned())),
        "null" => Ok(Scalar::Null),
        "bool" => boolean(&text.to_lowercase()).map(Scalar::Bool).ok_or_else(wrong),
        "int" => int(text).map(Scalar::Int),
        "float" => float(text).map(Scalar::Float),
        _ => Err(format!("the tag !!{kind} has no place in a merge configuration")),
    }
}

fn boolean(text: &str) -> Option<bool> {
    match text {
        "yes" | "Yes" | "YES" | "true" | "True" | "TRUE" | "on" | "On" | "ON" => Some(true),
        "no" | "No" | "NO" | "false" | "False" | "FALSE" | "off" | "Off" | "OFF" => Some(false),
        _ => None,
    }
}

fn unsigned(text: &str) -> &str {
    text.strip_prefix(['+', '-']).unwrap_or(text)
}

fn all(text: &str, allowed: impl Fn(u8) -> bool) -> bool {
    text.bytes().all(allowed)
}

fn digit_or_underscore(byte: u8) -> bool {
    byte.is_ascii_digit() || byte == b'_'
}

/// `[0-9][0-9_]*`
fn is_digits(text: &str) -> bool {
    text.as_bytes().first().is_some_and(u8::is_ascii_digit) && all(text, digit_or_underscore)
}

/// `[0-5]?[0-9]`: a base-60 digit.
fn is_sexagesimal_digit(text: &str) -> bool {
    match text.as_bytes() {
        [ones] => ones.is_ascii_digit(),
        [tens, ones] => (b'0'..=b'5').contains(tens) && ones.is_ascii_digit(),
        _ => false,
    }
}

/// `\.?` part after the mantissa: nothing, or `[eE][-+][0-9]+`.
fn is_exponent(text: &str) -> bool {
    let Some(rest) = text.strip_prefix(['e', 'E']) else { return text.is_empty() };
    let Some(digits) = rest.strip_prefix(['+', '-']) else { return false };
    !digits.is_empty() && all(digits, |byte| byte.is_ascii_digit())
}

fn split_exponent(text: &str) -> (&str, &str) {
    text.split_at(text.find(['e', 'E']).unwrap_or(text.len()))
}

fn is_float(text: &str) -> bool {
    let body = unsigned(text);
    if matches!(body, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return true;
    }
    let Some((whole, rest)) = body.split_once('.') else { return false };
    let (fraction, exponent) = split_exponent(rest);
    if !all(fraction, digit_or_underscore) {
        return false;
    }
    if whole.is_empty() {
        return body.len() == text.len() && is_digits(fraction) && is_exponent(exponent);
    }
    let mut parts = whole.split(':');
    let first = parts.next().unwrap_or_default();
    let minutes: Vec<&str> = parts.collect();
    if minutes.is_empty() {
        return is_digits(first) && is_exponent(exponent);
    }
    is_digits(first) && minutes.iter().all(|part| is_sexagesimal_digit(part)) && exponent.is_empty()
}

fn is_int(text: &str) -> bool {
    let body = unsigned(text);
    if let Some(digits) = body.strip_prefix("0b") {
        return !digits.is_empty() && all(digits, |byte| matches!(byte, b'0' | b'1' | b'_'));
    }
    if let Some(digits) = body.strip_prefix("0x") {
        return !digits.is_empty() && all(digits, |byte| byte.is_ascii_hexdigit() || byte == b'_');
    }
    if let Some(digits) = body.strip_prefix('0') {
        return all(digits, |byte| (b'0'..=b'7').contains(&byte) || byte == b'_');
    }
    let mut parts = body.split(':');
    is_digits(parts.next().unwrap_or_default()) && parts.all(is_sexagesimal_digit)
}

/// The two date forms of PyYAML's resolver; the second needs a time of day.
fn is_date(text: &str) -> bool {
    let digits = |text: &str, range: std::ops::RangeInclusive<usize>| {
        range.contains(&text.len()) && all(text, |byte| byte.is_ascii_digit())
    };
    let (date, time) = text.split_at(text.find(['T', 't', ' ', '\t']).unwrap_or(text.len()));
    let mut parts = date.split('-');
    let (year, month, day) = (parts.next(), parts.next(), parts.next());
    let (Some(year), Some(month), Some(day), None) = (year, month, day, parts.next()) else { return false };
    if time.is_empty() {
        return digits(year, 4..=4) && digits(month, 2..=2) && digits(day, 2..=2);
    }
    if !(digits(year, 4..=4) && digits(month, 1..=2) && digits(day, 1..=2)) {
        return false;
    }
    let clock = time.strip_prefix(['T', 't']).unwrap_or_else(|| time.trim_start_matches([' ', '\t']));
    is_clock(clock, &digits)
}

/// `h?h:mm:ss(.f*)?` and an optional zone.
fn is_clock(clock: &str, digits: &dyn Fn(&str, std::ops::RangeInclusive<usize>) -> bool) -> bool {
    let mut parts = clock.splitn(3, ':');
    let (Some(hour), Some(minute), Some(rest)) = (parts.next(), parts.next(), parts.next()) else { return false };
    if !(digits(hour, 1..=2) && digits(minute, 2..=2) && rest.is_char_boundary(2) && rest.len() >= 2) {
        return false;
    }
    let (second, rest) = rest.split_at(2);
    let rest =
        rest.strip_prefix('.').map_or(rest, |fraction| fraction.trim_start_matches(|c: char| c.is_ascii_digit()));
    let zone = rest.trim_start_matches([' ', '\t']);
    let is_zone = match zone.strip_prefix(['+', '-']) {
        Some(offset) => match offset.split_once(':') {
            Some((hours, minutes)) => digits(hours, 1..=2) && digits(minutes, 2..=2),
            None => digits(offset, 1..=2),
        },
        None => zone == "Z" || rest.is_empty(),
    };
    digits(second, 2..=2) && is_zone
}

fn int(text: &str) -> Result<i64, String> {
    let cleaned = text.replace('_', "");
    let negative = cleaned.starts_with('-');
    let body = unsigned(&cleaned);
    let wrong = || format!("`{text}` is no integer that fits 64 bits");
    let magnitude = if let Some(digits) = body.strip_prefix("0b") {
        i64::from_str_radix(digits, 2).map_err(|_| wrong())?
    } else if let Some(digits) = body.strip_prefix("0x") {
        i64::from_str_radix(digits, 16).map_err(|_| wrong())?
    } else if body.len() > 1 && body.starts_with('0') {
        i64::from_str_radix(body, 8).map_err(|_| wrong())?
    } else {
        body.split(':').try_fold(0i64, |sum, part| {
            let digit = part.parse::<i64>().ok().filter(|_| all(part, |byte| byte.is_ascii_digit()));
            sum.checked_mul(60).zip(digit).and_then(|(sum, digit)| sum.checked_add(digit)).ok_or_else(wrong)
        })?
    };
    Ok(if negative { -magnitude } else { magnitude })
}

fn float(text: &str) -> Result<f64, String> {
    let cleaned = text.replace('_', "").to_lowercase();
    let sign = if cleaned.starts_with('-') { -1.0 } else { 1.0 };
    let body = unsigned(&cleaned);
    let wrong = || format!("`{text}` is no number");
    match body {
        ".inf" => Ok(sign * f64::INFINITY),
        ".nan" => Ok(f64::NAN),
        _ => {
            // Least significant part first, as PyYAML sums base 60: the order decides the last bit.
            let (mut base, mut value) = (1.0, 0.0);
            for part in body.rsplit(':') {
                let looks_numeric = part.bytes().any(|byte| byte.is_ascii_digit());
                value += part.parse::<f64>().ok().filter(|_| looks_numeric).ok_or_else(wrong)? * base;
                base *= 60.0;
            }
            Ok(sign * value)
        }
    }
}
