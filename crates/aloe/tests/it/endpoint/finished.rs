//! Finished runs that were cut, or that hold other questions under the same names.

use super::server::Server;
use super::strategies::{ask, several};
use crate::run;

/// Lines are gone at the end of the samples, with the record that vouches for them and without; then within a line.
#[test]
fn a_run_whose_samples_were_cut_is_not_scored_again() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::start(|_, asked| several(asked, |_| "Answer: [A]".into()));
    let run_folder = dir.path().join("run");
    ask(&server, &run_folder, &["--strategy", "cot", "--limit", "12"]);
    let samples = run_folder.join("samples.jsonl");
    let whole = std::fs::read_to_string(&samples).unwrap();
    let refused = |text: &str| {
        std::fs::write(&samples, text).unwrap();
        let out = dir.path().join("again");
        let (_, stderr, code) = run(&["rescore", run_folder.to_str().unwrap(), "--out", out.to_str().unwrap()]);
        assert!(code == 2 && !out.exists(), "{code} {stderr}");
        stderr
    };
    let first_seven: String = whole.lines().take(7).map(|line| format!("{line}\n")).collect();
    let by_record = refused(&first_seven);
    assert!(by_record.contains("run/samples.jsonl is not what the evaluation wrote"), "{by_record}");
    std::fs::remove_file(run_folder.join("record.json")).unwrap();
    let by_number = refused(&first_seven);
    let words = "starter_mcqa: 12 questions are counted in results.json, 7 answers are in samples.jsonl and 12 questions in questions.jsonl";
    assert!(by_number.contains(words), "{by_number}");
    let by_line = refused(&whole[..whole.len() - 20]);
    assert!(by_line.contains("run/samples.jsonl:12: EOF") && !by_line.contains("cannot compare"), "{by_line}");
}

/// The same ids, keys and numbers of options; another text of every question.
#[test]
fn runs_over_two_sets_that_call_their_questions_alike_are_not_compared_by_any_command() {
    let dir = tempfile::tempdir().unwrap();
    let toml = dir.path().join("exam.toml");
    let columns = "[columns]\nquestion = \"q\"\noptions = [\"a\", \"b\"]\nanswer = \"k\"\nanswer_is = \"letter\"\n";
    std::fs::write(&toml, format!("name = \"exam\"\nversion = \"1\"\ntest = \"exam.csv\"\n{columns}")).unwrap();
    let server = Server::start(|_, asked| several(asked, |_| "Answer: [A]".into()));
    let (model, toml) = (server.model(), toml.display().to_string());
    let mut asked = Vec::new();
    let common = ["eval", &model, "--server-template", "--tasks", &toml, "--strategy", "cot", "--shots", "0"];
    let asking = |what: &str, more: &[&str]| {
        let rows: String = (0..6).map(|at| format!("Which {what} is {at}?,x,y,{}\n", ["A", "B"][at % 2])).collect();
        std::fs::write(dir.path().join("exam.csv"), format!("q,a,b,k\n{rows}")).unwrap();
        run(&[&common[..], more].concat())
    };
    for what in ["bone", "planet"] {
        let out = dir.path().join(what).display().to_string();
        let (_, stderr, code) = asking(what, &["--out", &out]);
        assert_eq!(code, 0, "{stderr}");
        asked.push(out);
    }
    let n_asked = server.n_asked();
    let words = "exam/exam_test_1 is not the same question in both runs: its text differs";
    let (_, stderr, code) = run(&["compare", &asked[0], &asked[1]]);
    let named = asked.iter().all(|run| stderr.contains(run));
    assert!(code == 2 && stderr.contains(words) && named, "{code} {stderr}");
    let out = dir.path().join("third").display().to_string();
    let (_, stderr, code) = asking("planet", &["--out", &out, "--compare", &asked[0]]);
    let here = format!("exam/exam_test_1 is not the same question in {} and here: its text differs", asked[0]);
    assert!(code == 2 && stderr.contains(&here), "{code} {stderr}");
    assert_eq!(server.n_asked(), n_asked);
    let page = dir.path().join("page.html");
    let (_, stderr, code) = run(&["view", &asked[1], "--against", &asked[0], "--out", page.to_str().unwrap()]);
    assert_eq!(code, 0, "{stderr}");
    assert!(std::fs::read_to_string(page).unwrap().contains(words));
}
