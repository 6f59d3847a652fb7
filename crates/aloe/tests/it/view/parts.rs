//! The parts of a task on a page, in a browser: what is folded, and what stands in it.

use super::made::{self, Made, all, field, is_dirty};
use super::{Browser, view};
use serde_json::{Value, json};

/// A group's cells behind its name: questions, % right and the file's interval, counted here.
fn figures<'a>(samples: impl Iterator<Item = &'a Made>) -> [String; 3] {
    let (n, n_right) = samples.fold((0, 0), |(n, right), one| (n + 1, right + usize::from(one.is_right())));
    let percent = 100.0 * f64::from(u32::try_from(n_right).unwrap()) / f64::from(n);
    let interval = format!("{:.2} to {:.2}", percent / 2.0, percent / 2.0 + 50.0);
    [n.to_string(), format!("{percent:.2}"), interval]
}

#[test]
fn a_long_table_of_subjects_and_specialties_opens_on_a_click_and_holds_each_group() {
    let Some(mut browser) = Browser::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    let samples = all(150, 1, 3);
    let page = view(&made::run(dir.path(), "parts", &samples), &[]);
    browser.open(&page, "");
    let of_task = || samples.iter().filter(|one| one.task == "pubmedqa");
    let mut expected = Vec::new();
    let mut add = |by: &str, group: &str, is_in: &dyn Fn(&Made) -> bool| {
        if of_task().any(is_in) {
            let [n, percent, interval] = figures(of_task().filter(|one| is_in(one)));
            expected.push(json!([by, group, n, percent, interval]));
        }
    };
    for subject in ["", "cardiology", "renal"] {
        add("subject", subject, &|one| one.subject == subject);
    }
    let mut fields: Vec<String> = (0..14).map(|at| format!("field {at}")).collect();
    fields.sort();
    for name in &fields {
        add("specialty", name, &|one| field(one) == *name);
    }
    assert!(expected.len() > 12, "{} rows are not folded", expected.len());
    let details = "[...document.querySelectorAll('details')].find((one) => one.textContent.includes('pubmedqa'))";
    let rows_of = |table: &str| {
        format!(
            "[...{table}.querySelectorAll('tbody tr')].map((row) => [...row.cells].map((cell) => cell.textContent))"
        )
    };
    assert_eq!(browser.eval(&rows_of(details)), Value::from(expected.clone()));
    assert_eq!(
        browser.eval(&format!("{details}.querySelector('summary').textContent")),
        format!("pubmedqa: {} rows", expected.len())
    );
    let height = |browser: &mut Browser| browser.eval(&format!("{details}.offsetHeight")).as_f64().unwrap();
    let folded = height(&mut browser);
    browser.eval(&format!("{details}.querySelector('summary').click()"));
    let unfolded = height(&mut browser);
    assert!(folded < 100.0 && unfolded > 300.0, "{folded} and {unfolded} pixels");

    let rows = browser.eval(&rows_of("document.querySelector('table')"));
    for (name, dirty) in [("clean", false), ("dirty", true)] {
        let [n, percent, interval] = figures(of_task().filter(|one| is_dirty(one) == dirty));
        let row = rows.as_array().unwrap().iter().find(|row| row[0] == format!("pubmedqa ({name})")).unwrap();
        assert_eq!((&row[1], &row[2], &row[4]), (&json!(n), &json!(percent), &json!(interval)), "{row}");
    }
}
