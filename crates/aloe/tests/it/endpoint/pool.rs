//! Medprompt's example pool as a user meets it: what of it is the question itself, and what it cannot give.

use super::read;
use super::server::Server;
use super::strategies::{eval_plain, several};
use crate::{root, run};

/// The pool is the test set, of which a server that always says A solves some: whether the pool holds a question does not depend on that.
#[test]
fn accuracy_with_and_without_the_question_in_the_pool_is_told_by_the_pool_and_not_by_what_was_solved_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let mcqa = dir.path().join("data/mcqa");
    std::fs::create_dir_all(&mcqa).unwrap();
    let test = std::fs::read_to_string(root().join("starter/mcqa/starter_mcqa_test.jsonl")).unwrap();
    let rows: Vec<&str> = test.lines().take(12).collect();
    std::fs::write(mcqa.join("starter_mcqa_test.jsonl"), rows.join("\n")).unwrap();
    // All but the last are in the pool.
    std::fs::write(mcqa.join("starter_mcqa_train.jsonl"), rows[..11].join("\n")).unwrap();
    let server = Server::start(|_, asked| several(asked, |_| "Answer: [A]".into()));
    let (out, data) = (dir.path().join("out"), dir.path().join("data"));
    let args = ["eval", &server.model(), "--server-template", "--tasks", "starter_mcqa", "--strategy", "medprompt"];
    let more = ["--shots", "2", "--set", "pool_attempts=2", "--set", "shuffle=false"];
    let folders = ["--data", data.to_str().unwrap(), "--out", out.to_str().unwrap()];
    let (_, stderr, code) = run(&[&args[..], &more, &folders].concat());
    assert_eq!(code, 0, "{stderr}");
    let task = &read(&out.join("results.json"))["tasks"][0];
    let n_solved = task["notes"]["pool_solved"].as_u64().unwrap();
    assert!(n_solved > 0 && n_solved < 11, "{n_solved}");
    assert_eq!(task["notes"]["excluded_as_the_question_itself"], n_solved, "only what is solved can be an example");
    let parts: Vec<u64> = task["by_pool"].as_array().unwrap().iter().map(|part| part["n"].as_u64().unwrap()).collect();
    assert_eq!(parts, [11, 1], "{task}");
}

/// There are five fixed examples of four options: eight are not to be had with two pool questions, nor with six of which none is solved.
#[test]
fn more_shots_than_a_pool_can_give_are_refused_before_any_task_is_asked_where_that_can_be_known() {
    let dir = tempfile::tempdir().unwrap();
    let toml = dir.path().join("exam.toml");
    let columns =
        "[columns]\nquestion = \"q\"\noptions = [\"a\", \"b\", \"c\", \"d\"]\nanswer = \"k\"\nanswer_is = \"letter\"\n";
    let head = "name = \"exam\"\nversion = \"1\"\ntest = \"exam.csv\"\ntrain = \"train.csv\"\n";
    std::fs::write(&toml, format!("{head}{columns}")).unwrap();
    std::fs::write(dir.path().join("exam.csv"), "q,a,b,c,d,k\nWhich?,x,y,z,w,B\n").unwrap();
    std::fs::write(dir.path().join("train.csv"), "q,a,b,c,d,k\nWho?,x,y,z,w,B\nWhy?,x,y,z,w,A\n").unwrap();
    let server = Server::start(|_, asked| several(asked, |_| "I do not know.".into()));
    let refused = |tasks: &str, settings: &[&str]| {
        let out = dir.path().join("out");
        let args = ["--tasks", tasks, "--server-template", "--strategy", "medprompt", "--shots", "8", "--limit", "2"];
        let (_, stderr, code) = eval_plain(&server.model(), &out, &[&args[..], settings].concat());
        assert!(code == 2 && !out.exists(), "{code} {stderr}");
        stderr
    };
    let both = format!("starter_mcqa,{}", toml.display());
    let early = refused(&both, &[]);
    for words in [
        "exam: 8 shots are asked for",
        "exam/train, has 2 questions;",
        "has 5 fixed worked examples; 6 were",
        "Take fewer shots\n",
    ] {
        assert!(early.contains(words), "{words}: {early}");
    }
    assert!(refused("starter_mcqa", &["--set", "pool_limit=2"]).contains("Take fewer shots or a larger pool_limit"));
    assert!(refused("starter_mcqa", &["--set", "pool_limit=0"]).contains("pool_limit must be at least 1"));
    assert_eq!(server.n_asked(), 0);
    let late = refused("starter_mcqa", &["--set", "pool_limit=6", "--set", "pool_attempts=1"]);
    for words in
        ["has 6 questions, 0 of them with a worked answer", "fewer shots or a larger pool_limit or more pool_attempts"]
    {
        assert!(late.contains(words), "{words}: {late}");
    }
    assert!(server.n_asked() >= 6);
}
