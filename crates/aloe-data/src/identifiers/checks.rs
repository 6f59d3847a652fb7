//! Check digits of national numbers. Each is held to python-stdnum 2.2 on a golden file (`oracles/identifier_rows.py`).

/// The digits of a text, without what separates them.
pub(super) fn digits(text: &str) -> Vec<u32> {
    text.chars().filter_map(|c| c.to_digit(10)).collect()
}

/// Luhn's formula (ISO/IEC 7812-1, annex B).
pub(super) fn luhn(digits: &[u32]) -> bool {
    let doubled = |digit: u32| if digit > 4 { 2 * digit - 9 } else { 2 * digit };
    let sum: u32 =
        digits.iter().rev().enumerate().map(|(at, &digit)| if at % 2 == 1 { doubled(digit) } else { digit }).sum();
    !digits.is_empty() && sum.is_multiple_of(10)
}

/// Length and prefix of the great card schemes: Visa, Mastercard, American Express, Discover, JCB, Diners.
pub(super) fn is_card(digits: &[u32]) -> bool {
    let prefix = |n: usize| digits.iter().take(n).fold(0, |number, digit| 10 * number + digit);
    let fits = match digits.len() {
        13 | 19 => prefix(1) == 4,
        14 => matches!(prefix(3), 300..=305) || matches!(prefix(2), 36 | 38 | 39),
        15 => matches!(prefix(2), 34 | 37),
        16 => {
            prefix(1) == 4
                || matches!(prefix(2), 51..=55 | 65)
                || matches!(prefix(4), 2221..=2720 | 6011 | 3528..=3589)
                || matches!(prefix(3), 644..=649)
        }
        _ => false,
    };
    fits && luhn(digits)
}

/// Area, group and serial of a US social security number (Social Security Administration, randomised since 2011).
pub(super) fn us_ssn(digits: &[u32]) -> bool {
    let number = |range: std::ops::Range<usize>| digits[range].iter().fold(0, |number, digit| 10 * number + digit);
    digits.len() == 9 && !matches!(number(0..3), 0 | 666 | 900..=999) && number(3..5) != 0 && number(5..9) != 0
}

/// Modulo 11 with weights 10 to 2 (NHS Data Dictionary, NHS number).
pub(super) fn uk_nhs(digits: &[u32]) -> bool {
    if digits.len() != 10 {
        return false;
    }
    let sum: u32 = digits[..9].iter().zip((2..=10).rev()).map(|(digit, weight)| digit * weight).sum();
    match 11 - sum % 11 {
        10 => false,
        11 => digits[9] == 0,
        check => digits[9] == check,
    }
}

/// Number modulo 23 names the letter; of an NIE X, Y and Z stand for 0, 1 and 2 (Spanish Ministry of the Interior).
pub(super) fn es_dni(text: &str) -> bool {
    const LETTERS: &[u8; 23] = b"TRWAGMYFPDXBNJZSQVHLCKE";
    let compact: String = text.chars().filter(char::is_ascii_alphanumeric).collect::<String>().to_ascii_uppercase();
    if compact.len() != 9 {
        return false;
    }
    let (body, letter) = compact.split_at(8);
    let body = match body.as_bytes()[0] {
        b'X' => format!("0{}", &body[1..]),
        b'Y' => format!("1{}", &body[1..]),
        b'Z' => format!("2{}", &body[1..]),
        _ => body.to_owned(),
    };
    body.parse::<usize>().is_ok_and(|number| letter.as_bytes()[0] == LETTERS[number % 23])
}

/// Lengths by country (SWIFT's IBAN registry).
const IBAN_LENGTHS: &str = "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DK18 DO28 EE20 EG29 ES24 FI18 FO18 \
    FR27 GB22 GE22 GI23 GL18 GR27 GT28 HR21 HU28 IE22 IL23 IQ23 IS26 IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 \
    MK19 MR27 MT31 MU30 NL18 NO15 PK24 PL28 PS29 PT25 QA29 RO24 RS22 SA24 SC31 SE24 SI19 SK24 SM27 ST25 SV28 TN24 TR26 UA29 VA22 VG24 XK20";

/// Characters of an IBAN of this country.
pub(super) fn iban_length(country: &str) -> Option<usize> {
    IBAN_LENGTHS.split_whitespace().find(|entry| entry.starts_with(country)).and_then(|entry| entry[2..].parse().ok())
}

/// ISO 7064 MOD 97-10 over the number with its first four characters last.
pub(super) fn iban(compact: &str) -> bool {
    if compact.len() < 5 || !compact.is_ascii() || iban_length(&compact[..2]) != Some(compact.len()) {
        return false;
    }
    let moved = compact[4..].bytes().chain(compact[..4].bytes());
    let remainder = moved.fold(0u32, |rest, byte| match char::from(byte).to_digit(36) {
        Some(value @ 0..=9) => (rest * 10 + value) % 97,
        Some(value) => (rest * 100 + value) % 97,
        None => 0,
    });
    remainder == 1
}
