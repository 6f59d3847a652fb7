//! `report.html` of a synthesis: yield, attempts and cost as tables and plots, and some solutions beside what the second reader made of them.

use super::report::{SynthesisReport, SynthesisYield, share};
use super::{Case, SynthesisConfig, TextsReport};
use aloe_report::{Align, Bar, BarPlot, Page, Table};
use aloe_task::letter;
use aloe_task::wording::synthesis::{Told, explanation, shown};

/// How many solutions the page shows; `train.jsonl` and `attempts.jsonl` hold all.
const N_SHOWN: usize = 12;

pub(super) fn draw(config: &SynthesisConfig, report: &SynthesisReport, cases: &[Case]) -> Page {
    let mut page = Page::new("Synthetic solutions");
    let told = match config.mode {
        Told::Gold => "gold: the writer was told the right answer, and the reference explanation where the set has one",
        Told::Nothing => {
            "self: the writer saw the question alone, and its solution was kept because it reached the right answer"
        }
    };
    page.paragraph(&format!("Written by {} ({}). Mode {told}.", report.model.name, report.model.dtype));
    page.paragraph(
        "A solution is kept when the parser of the evaluations reads the key from it, unless it restates the question, says next to nothing, or \
         holds a second answer. Texts are not clinically reviewed.",
    );
    for notice in &report.notices {
        page.paragraph(&format!("Note: {notice}."));
    }
    page.heading("Yield");
    page.table(&yields(report));
    for one in &report.tasks {
        page.bar_plot(&by_attempt(one));
    }
    page.heading("What became of attempts");
    page.table(&verdicts(report));
    page.heading("What a blind reader made of the kept solutions");
    page.paragraph(
        "The same model was shown question and reasoning without the answer's line and asked which answer the reasoning leads to. A reasoning \
         that leads elsewhere, or nowhere, supports its answer in name only.",
    );
    page.table(&blind(report));
    page.heading("Phrases that betray an answer known beforehand");
    page.table(&betraying(report));
    page.heading("Cost");
    page.paragraph(
        "Prompt tokens that a local model shares between requests are counted each time. Seconds stand in record.json.",
    );
    page.table(&costs(report));
    page.heading("Kept solutions");
    for case in cases.iter().filter(|case| case.accepted().is_some()).take(N_SHOWN) {
        show(&mut page, case);
    }
    page
}

fn table(head: &[&str], rows: Vec<Vec<String>>) -> Table {
    let aligned: Vec<(&str, Align)> =
        head.iter().enumerate().map(|(at, name)| (*name, if at == 0 { Align::Left } else { Align::Right })).collect();
    let mut table = Table::new(&aligned);
    rows.into_iter().for_each(|row| table.row(row));
    table
}

fn yields(report: &SynthesisReport) -> Table {
    let head = ["task", "questions", "kept", "attempts", "with explanation", "every option discussed", "refused"];
    let row = |one: &SynthesisYield| {
        vec![
            one.task.clone(),
            one.n_questions.to_string(),
            share(one.n_accepted, one.n_questions),
            one.n_attempts().to_string(),
            one.n_with_explanation.to_string(),
            share(one.n_discussing_every_option, one.n_accepted),
            one.n_refused.to_string(),
        ]
    };
    table(&head, report.tasks.iter().map(row).collect())
}

fn by_attempt(one: &SynthesisYield) -> BarPlot {
    let bar = |(at, n): (usize, &usize)| Bar { name: format!("attempt {}", at + 1), value: *n as f64, interval: None };
    BarPlot {
        title: format!("{}: solutions kept, by the attempt that was right", one.task),
        x_label: "questions".into(),
        bars: one.accepted_at_attempt.iter().enumerate().map(bar).collect(),
        reference: None,
    }
}

fn verdicts(report: &SynthesisReport) -> Table {
    let name = |verdict| serde_json::to_value(verdict).ok().and_then(|name| name.as_str().map(String::from));
    let rows = report.tasks.iter().flat_map(|one| {
        let n_attempts = one.n_attempts();
        one.attempts.iter().map(move |(verdict, n)| {
            vec![format!("{}, {}", one.task, name(verdict).unwrap_or_default()), share(*n, n_attempts)]
        })
    });
    table(&["task and verdict", "attempts"], rows.collect())
}

fn blind(report: &SynthesisReport) -> Table {
    let rows = report.tasks.iter().filter_map(|one| {
        let blind = one.blind?;
        let counts = [blind.n_key, blind.n_other, blind.n_unread, blind.n_refused];
        let mut row = vec![one.task.clone()];
        row.extend(counts.iter().map(|n| share(*n, blind.n)));
        Some(row)
    });
    table(&["task", "the key", "another option", "nothing readable", "refused"], rows.collect())
}

fn betraying(report: &SynthesisReport) -> Table {
    let rows = report.tasks.iter().flat_map(|one| {
        let all = vec![format!("{}, any", one.task), share(one.n_betraying, one.n_accepted)];
        let kinds = one.betraying.iter().map(|(kind, n)| vec![format!("{}, {kind}", one.task), n.to_string()]);
        std::iter::once(all).chain(kinds).collect::<Vec<_>>()
    });
    table(&["task and phrase", "solutions"], rows.collect())
}

fn costs(report: &SynthesisReport) -> Table {
    let rows = report.tasks.iter().flat_map(|one| {
        [("attempts", &one.cost), ("blind reader", &one.blind_cost)].map(|(what, cost)| {
            let counts = [cost.n_requests, cost.n_prompt_tokens, cost.n_tokens, cost.n_untold];
            let mut row = vec![format!("{}, {what}", one.task)];
            row.extend(counts.iter().map(ToString::to_string));
            row
        })
    });
    table(&["task and call", "answers", "prompt tokens", "new tokens", "tokens not told"], rows.collect())
}

fn show(page: &mut Page, case: &Case) {
    let picked = match case.picked() {
        None => "was not asked".to_owned(),
        Some(None) => "named no option".to_owned(),
        Some(Some(at)) => format!("picked {}", letter(at)),
    };
    let key = letter(case.question.key);
    page.subheading(&format!("{}/{}: key {key}, the blind reader {picked}", case.task.name(), case.question.id));
    page.side_by_side(|page| {
        let explained =
            explanation(&case.question).map_or_else(String::new, |text| format!("\n\nReference explanation: {text}"));
        page.verbatim(&format!("{}{explained}", shown(&case.question)));
        page.verbatim(case.accepted().map_or("", |judged| judged.reasoning.as_str()));
    });
}

/// The page of texts that are no solutions; `shown` are id, what it was made of, and the text.
pub(super) fn draw_texts<'a>(report: &TextsReport, shown: impl Iterator<Item = (&'a str, &'a str, &'a str)>) -> Page {
    let mut page = Page::new(match report.make {
        "genstruct" => "Questions and answers from passages",
        "rejections" => "Own answers as rejected sides",
        _ => "Role-play variants of red-team questions",
    });
    page.paragraph(&format!(
        "Written by {} ({}). {}.",
        report.model.name,
        report.model.dtype,
        share(report.n_accepted, report.n_items)
    ));
    for notice in &report.notices {
        page.paragraph(&format!("Note: {notice}."));
    }
    page.heading("What became of attempts");
    let n_attempts: usize = report.attempts.values().sum();
    let name = |verdict| serde_json::to_value(verdict).ok().and_then(|name| name.as_str().map(String::from));
    let rows =
        report.attempts.iter().map(|(verdict, n)| vec![name(verdict).unwrap_or_default(), share(*n, n_attempts)]);
    page.table(&table(&["verdict", "attempts"], rows.collect()));
    page.heading("Cost");
    page.paragraph("Seconds stand in record.json.");
    let cost = &report.cost;
    let counts = [cost.n_requests, cost.n_prompt_tokens, cost.n_tokens, cost.n_untold];
    let row = std::iter::once(report.make.to_owned()).chain(counts.iter().map(ToString::to_string)).collect();
    page.table(&table(&["texts", "answers", "prompt tokens", "new tokens", "tokens not told"], vec![row]));
    page.heading("Kept texts");
    for (id, made_of, text) in shown.take(N_SHOWN) {
        page.subheading(id);
        page.side_by_side(|page| {
            page.verbatim(made_of);
            page.verbatim(text);
        });
    }
    page
}
