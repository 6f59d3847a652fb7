//! A calendar day given by the caller, for templates that print today's date. Never read from the clock here: the same messages must
//! give the same ids tomorrow.

use crate::{Error, Result};

/// A day of the Gregorian calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Date {
    year: u32,
    month: u32,
    day: u32,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

impl Date {
    /// Reads `YYYY-MM-DD`.
    pub fn parse(text: &str) -> Result<Date> {
        let wrong = || Error::Date(text.to_owned());
        let parts: Vec<&str> = text.split('-').collect();
        let [y, m, d] = parts[..] else { return Err(wrong()) };
        if y.len() != 4 || m.len() != 2 || d.len() != 2 {
            return Err(wrong());
        }
        let number = |part: &str| part.parse::<u32>().map_err(|_| wrong());
        let date = Date { year: number(y)?, month: number(m)?, day: number(d)? };
        let valid = (1..=12).contains(&date.month) && date.day >= 1 && date.day <= date.days_in_month();
        if valid { Ok(date) } else { Err(wrong()) }
    }

    fn days_in_month(self) -> u32 {
        let leap = self.year.is_multiple_of(4) && (!self.year.is_multiple_of(100) || self.year.is_multiple_of(400));
        match self.month {
            2 => 28 + u32::from(leap),
            4 | 6 | 9 | 11 => 30,
            _ => 31,
        }
    }

    /// Sakamoto's method; 0 is Sunday.
    fn weekday(self) -> usize {
        const SHIFT: [u32; 12] = [0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4];
        let year = if self.month < 3 { self.year.saturating_sub(1) } else { self.year };
        ((year + year / 4 - year / 100 + year / 400 + SHIFT[self.month as usize - 1] + self.day) % 7) as usize
    }

    /// C's `strftime` at midnight, for the codes that templates use; an unknown code stays as written.
    pub fn strftime(self, format: &str) -> String {
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            match chars.next() {
                Some('Y') => out.push_str(&format!("{:04}", self.year)),
                Some('y') => out.push_str(&format!("{:02}", self.year % 100)),
                Some('m') => out.push_str(&format!("{:02}", self.month)),
                Some('d') => out.push_str(&format!("{:02}", self.day)),
                Some('e') => out.push_str(&format!("{:2}", self.day)),
                Some('B') => out.push_str(MONTHS[self.month as usize - 1]),
                Some('b' | 'h') => out.push_str(&MONTHS[self.month as usize - 1][..3]),
                Some('A') => out.push_str(WEEKDAYS[self.weekday()]),
                Some('a') => out.push_str(&WEEKDAYS[self.weekday()][..3]),
                Some('F') => out.push_str(&format!("{:04}-{:02}-{:02}", self.year, self.month, self.day)),
                Some('H' | 'M' | 'S') => out.push_str("00"),
                Some('%') | None => out.push('%'),
                Some(other) => out.extend(['%', other]),
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strftime_writes_what_the_c_library_writes() {
        // `date -d 2026-11-22 "+%d %b %Y|%A|%B|%F|%a %e %y"` and `date -d 2024-02-29 +%A` of GNU coreutils.
        let day = Date::parse("2026-11-22").unwrap();
        assert_eq!(day.strftime("%d %b %Y|%A|%B|%F|%a %e %y"), "22 Nov 2026|Sunday|November|2026-11-22|Sun 22 26");
        assert_eq!(Date::parse("2024-02-29").unwrap().strftime("%A"), "Thursday");
    }

    #[test]
    fn days_outside_the_calendar_are_refused() {
        for wrong in ["2023-02-29", "2024-13-01", "2024-00-01", "2024-04-31", "24-1-1", "today", "2024-1-01"] {
            assert!(Date::parse(wrong).is_err(), "{wrong}");
        }
    }
}
