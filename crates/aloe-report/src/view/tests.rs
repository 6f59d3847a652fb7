//! The part's bytes: columns where the script looks for them, texts only packed, a policy without network.

use super::*;
use std::io::Read as _;

fn two_runs() -> SampleBrowser {
    let mut browser = SampleBrowser::new(&["A: one", "B: </script><script>alert(1)"]);
    let choices: Vec<String> = ["yes", "no", "maybe"].map(str::to_owned).to_vec();
    for at in 0..3usize {
        let id = format!("id{at}");
        let text = QuestionText { stem: "Stem", context: None, choices: &choices };
        let asked = Asked { task: "t", id: &id, subject: ["s", "", "s"][at], n_choices: 3, key: at, text: Some(text) };
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
        let first = Answered { predicted: Some(2), is_right: at == 2, votes, ..Answered::default() };
        let second = Answered { refused: Some("too long"), ..Answered::default() };
        browser.push(&asked, &[Some(&first), (at == 1).then_some(&second)]);
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

fn html(browser: &mut SampleBrowser) -> String {
    let mut bytes = Vec::new();
    browser.write(&mut bytes).unwrap();
    String::from_utf8(bytes).unwrap()
}

/// By hand: the first vote showed option 2 first, the second showed it third: bits 0 and 2 make 5; two of three votes agree.
#[test]
fn columns_stand_where_the_page_says() {
    let html = html(&mut two_runs());
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
    assert_eq!((column("a_predicted"), column("b_predicted")), (vec![2; 3], vec![255; 3]));
    assert_eq!((column("a_flags"), column("b_flags")), (vec![0, 0, 1], vec![8, 4, 8]));
    assert_eq!((column("a_n_votes"), column("a_n_agree"), column("a_shown")), (vec![3; 3], vec![2; 3], vec![5; 3]));
    let ids = &bytes[meta["ids_offset"].as_u64().unwrap() as usize..];
    assert_eq!(serde_json::from_slice::<Vec<String>>(ids).unwrap(), ["id0", "id1", "id2"]);
    assert_eq!((&meta["is_shuffled"], &meta["most_choices"]), (&true.into(), &3.into()));
    let rows: serde_json::Value = serde_json::from_slice(&inflated(&html, "b0")).unwrap();
    assert_eq!((&rows[0], &rows[1]["refused"]), (&serde_json::Value::Null, &"too long".into()));
}

#[test]
fn no_text_stands_in_the_page_as_markup() {
    let html = html(&mut two_runs());
    assert!(!html.contains("<img") && !html.contains("alert(1)</"), "answers and names");
    assert_eq!(html.matches("<script").count(), html.matches("</script>").count());
    // The names' own `<` are escaped: meta, columns, the script, and the blocks q0, a0, b0.
    assert_eq!(html.matches("<script").count(), 6);
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
    assert_eq!(html(&mut two_runs()), html(&mut two_runs()));
}
