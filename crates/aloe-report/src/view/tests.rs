//! The part's bytes: columns where the script looks for them, texts only packed, a policy without network.

use super::*;
use std::io::Read as _;

/// The texts of the questions, of a run that holds all three and of one that holds the second alone, in blocks of two rows and one.
fn texts() -> [Texts; 3] {
    let choices: Vec<String> = ["yes", "no", "maybe"].map(str::to_owned).to_vec();
    let question = QuestionText { stem: "Stem", context: None, choices: &choices };
    let vote = |order: &'static [usize], answer| VoteText {
        order,
        answer,
        text: "<img src=x onerror=alert(1)>",
        finish_reason: "stop",
        logp: None,
        shots: &[],
        reasoning_removed: false,
    };
    let votes = vec![vote(&[2, 0, 1], Some(2)), vote(&[0, 1, 2], Some(2)), vote(&[0, 1, 2], None)];
    let voted = AnswerText { votes, ..AnswerText::default() };
    let refused = AnswerText { refused: Some("too long"), ..AnswerText::default() };
    let [mut asked, mut first, mut second] = [Texts::default(), Texts::default(), Texts::default()];
    asked.push_block(2, pack_rows(&[question, question]));
    asked.push_block(1, pack_rows(&[question]));
    first.push_block(2, pack_rows(&[&voted, &voted]));
    first.push_block(1, pack_rows(&[&voted]));
    second.push_block(1, pack_rows(&[&refused]));
    [asked, first, second]
}

fn two_runs(texts: &[Texts; 3]) -> SampleBrowser<'_> {
    let [asked, first, second] = texts;
    let runs = [("A: one", first), ("B: </script><script>alert(1)", second)];
    let mut browser = SampleBrowser::new(&runs, Some(asked));
    for (at, id) in ["id0", "id1", "id2"].into_iter().enumerate() {
        let asked = Asked { task: "t", id, subject: ["s", "", "s"][at], n_choices: 3, key: at, row: Some(at) };
        let first = Answered {
            predicted: Some(2),
            is_right: at == 2,
            n_votes: 3,
            n_agree: 2,
            shown: 0b101,
            is_shuffled: true,
            row: 2 - at,
            ..Answered::default()
        };
        let second = Answered { is_refused: true, ..Answered::default() };
        browser.push(&asked, &[Some(first), (at == 1).then_some(second)]);
    }
    browser
}

fn inflated(html: &str, id: &str) -> Vec<u8> {
    let text = html.split(&format!("id=\"{id}\">")).nth(1).unwrap().split('<').next().unwrap();
    let sextet = |c: u8| match c {
        b'A'..=b'Z' => c - b'A',
        b'a'..=b'z' => c - b'a' + 26,
        b'0'..=b'9' => c - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let mut packed = Vec::new();
    for group in text.trim_end_matches('=').as_bytes().chunks(4) {
        let bits = group.iter().enumerate().fold(0u32, |bits, (at, &c)| bits | u32::from(sextet(c)) << (18 - 6 * at));
        packed.extend_from_slice(&bits.to_be_bytes()[1..group.len()]);
    }
    let mut bytes = Vec::new();
    flate2::read::DeflateDecoder::new(&packed[..]).read_to_end(&mut bytes).unwrap();
    bytes
}

fn html() -> String {
    let texts = texts();
    let browser = two_runs(&texts);
    let mut bytes = Vec::new();
    browser.write(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// The first run's answers stand in its file the other way round; the second holds the second question alone.
#[test]
fn columns_stand_where_the_page_says() {
    let html = html();
    let meta = html.split("id=\"meta\">").nth(1).unwrap().split("</script>").next().unwrap();
    let meta: serde_json::Value = serde_json::from_str(meta).unwrap();
    let bytes = inflated(&html, "columns");
    let column = |name: &str| {
        let one = meta["columns"].as_array().unwrap().iter().find(|one| one["name"] == name).unwrap();
        let width = match one["kind"].as_str().unwrap() {
            "u8" => 1,
            "u16" => 2,
            _ => 4,
        };
        let offset = one["offset"].as_u64().unwrap() as usize;
        assert_eq!(offset % width, 0, "{name} is aligned");
        let value = |bytes: &[u8]| bytes.iter().rev().fold(0u32, |value, &byte| value << 8 | u32::from(byte));
        bytes[offset..offset + 3 * width].chunks(width).map(value).collect::<Vec<_>>()
    };
    assert_eq!(column("key"), [0, 1, 2]);
    assert_eq!(column("subject"), [0, 1, 0]);
    assert_eq!((column("r0_predicted"), column("r1_predicted")), (vec![2; 3], vec![255; 3]));
    assert_eq!((column("r0_flags"), column("r1_flags")), (vec![0, 0, 1], vec![8, 4, 8]));
    assert_eq!((column("r0_n_votes"), column("r0_n_agree"), column("r0_shown")), (vec![3; 3], vec![2; 3], vec![5; 3]));
    let none = u32::MAX;
    assert_eq!(
        (column("q_row"), column("r0_row"), column("r1_row")),
        (vec![0, 1, 2], vec![2, 1, 0], vec![none, 0, none])
    );
    assert_eq!(meta["blocks"]["r0"], json!({ "starts": [0, 2], "n_rows": 3 }));
    let ids = &bytes[meta["ids_offset"].as_u64().unwrap() as usize..];
    assert_eq!(serde_json::from_slice::<Vec<String>>(ids).unwrap(), ["id0", "id1", "id2"]);
    assert_eq!((&meta["is_shuffled"], &meta["most_choices"]), (&true.into(), &3.into()));
    let rows: serde_json::Value = serde_json::from_slice(&inflated(&html, "r1-0")).unwrap();
    assert_eq!(rows[0]["refused"], "too long");
}

#[test]
fn no_text_stands_in_the_page_as_markup() {
    let html = html();
    assert!(!html.contains("<img") && !html.contains("alert(1)</"), "answers and names");
    assert_eq!(html.matches("<script").count(), html.matches("</script>").count());
    // The names' own `<` are escaped: meta, columns, the script, and the blocks q-0, q-1, r0-0, r0-1, r1-0.
    assert_eq!(html.matches("<script").count(), 8);
    assert!(!SCRIPT.contains("innerHTML") && !SCRIPT.contains("</script") && !SCRIPT.contains("<!--"));
}

#[test]
fn the_policy_allows_this_script_and_no_other_and_no_network() {
    let head = SampleBrowser::head("p{}");
    assert!(head.contains("default-src 'none'") && !head.contains("unsafe"), "{head}");
    assert!(head.contains(&format!("script-src {};", pack::csp_hash(SCRIPT))), "{head}");
    for word in ["fetch(", "XMLHttpRequest", "import(", "src=", "http"] {
        assert!(!SCRIPT.contains(word) && !SKELETON.contains(word) && !STYLE.contains(word), "{word}");
    }
}

#[test]
fn equal_samples_give_equal_bytes() {
    assert_eq!(html(), html());
}
