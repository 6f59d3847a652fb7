//! What an answer must hold to be believed: the choices that were asked for, in order, each ended for a reason that fits its
//! length, and counts of tokens that fit what was sent. Where a server tells ids (vLLM's `return_token_ids`), they too.
//!
//! Nothing is mended here: an answer that contradicts itself or the request is refused with the reason.

use crate::{Completion, FinishReason};
use serde_json::Value;

/// The text of a choice.
pub(super) struct Said<'a> {
    pub(super) text: &'a str,
    /// The reasoning that the server's parser took out of it; empty where it took none.
    pub(super) reasoning: &'a str,
}

/// Where the text stands in a choice; `None` where it holds none.
pub(super) type TextOf = for<'a> fn(&'a Value) -> Option<Said<'a>>;

/// The text of a completion.
pub(super) fn completed(choice: &Value) -> Option<Said<'_>> {
    Some(Said { text: choice["text"].as_str()?, reasoning: "" })
}

/// The text of a chat's answer. vLLM and SGLang with a reasoning parser tell the reasoning apart, as `reasoning_content` or `reasoning`, and
/// where it took up all of the tokens the content is null: an ended answer without a word. A call of a tool is no answer.
pub(super) fn chatted(choice: &Value) -> Option<Said<'_>> {
    let message = choice["message"].as_object()?;
    let text = |name: &str| message.get(name).and_then(Value::as_str).unwrap_or_default();
    let reasoning = [text("reasoning_content"), text("reasoning")].into_iter().find(|one| !one.is_empty());
    let content = match message.get("content") {
        Some(Value::String(content)) => content.as_str(),
        None | Some(Value::Null) if ended_without_a_call(choice) => "",
        _ => return None,
    };
    Some(Said { text: content, reasoning: reasoning.unwrap_or_default() })
}

fn ended_without_a_call(choice: &Value) -> bool {
    let has_calls = choice["message"]["tool_calls"].as_array().is_some_and(|calls| !calls.is_empty())
        || choice["message"]["function_call"].is_object();
    let reason = choice["finish_reason"].as_str();
    !has_calls && reason.is_some_and(|reason| !matches!(reason, "tool_calls" | "function_call"))
}

/// What is wrong with a choice of which that function tells nothing.
pub(super) const NO_TEXT: &str = "the answer holds no text";

/// What was asked, as far as an answer can be held against it.
pub(super) struct Asked<'a> {
    /// How many answers.
    pub(super) n: usize,
    /// The most tokens of each.
    pub(super) max_new_tokens: usize,
    /// The prompt, where our ids were sent.
    pub(super) prompt_ids: Option<&'a [u32]>,
    /// The model's context, where known.
    pub(super) context_len: Option<u64>,
    /// Where the text stands.
    pub(super) text_of: TextOf,
}

/// The choices of `answer`: `n`, each at the place of its index.
pub(super) fn choices(answer: &Value, n: usize) -> Result<&[Value], String> {
    let choices = answer["choices"].as_array().map(Vec::as_slice).unwrap_or_default();
    if choices.len() != n {
        let answers = if n == 1 { "answer" } else { "answers" };
        return Err(format!("asked for {n} {answers}, got {}", choices.len()));
    }
    for (at, choice) in choices.iter().enumerate() {
        match choice["index"].as_u64() {
            Some(index) if index == at as u64 => {}
            None if n == 1 && choice["index"].is_null() => {}
            _ => return Err(format!("choice {at} has the index {}", choice["index"])),
        }
    }
    Ok(choices)
}

/// Holds `usage` against the prompt's length, and its sum against its parts.
pub(super) fn check_usage(answer: &Value, prompt_len: Option<usize>) -> Result<(), String> {
    let count = |name: &str| answer["usage"][name].as_u64();
    if let (Some(counted), Some(sent)) = (count("prompt_tokens"), prompt_len)
        && counted != sent as u64
    {
        return Err(format!("the server counts {counted} prompt tokens where {sent} were sent"));
    }
    if let (Some(prompt), Some(new), Some(total)) =
        (count("prompt_tokens"), count("completion_tokens"), count("total_tokens"))
        && prompt.checked_add(new) != Some(total)
    {
        return Err(format!("the server counts {prompt} prompt tokens and {new} new ones, {total} in all"));
    }
    Ok(())
}

/// The answers in sample order, or what is wrong with them.
pub(super) fn completions(answer: &Value, asked: &Asked) -> Result<Vec<Completion>, String> {
    let choices = choices(answer, asked.n)?;
    check_usage(answer, asked.prompt_ids.map(<[u32]>::len))?;
    let mut completions =
        choices.iter().map(|choice| completion(answer, choice, asked)).collect::<Result<Vec<_>, _>>()?;
    check_lengths(answer, &mut completions, asked)?;
    Ok(completions)
}

fn completion(answer: &Value, choice: &Value, asked: &Asked) -> Result<Completion, String> {
    let said = (asked.text_of)(choice).ok_or(NO_TEXT)?;
    let (text, reasoning_apart) = (said.text.to_owned(), !said.reasoning.is_empty());
    let finish_reason = match choice["finish_reason"].as_str() {
        Some("stop") => FinishReason::Stop,
        Some("length") => FinishReason::Length,
        Some(_) => FinishReason::Other,
        None => return Err(format!("the answer's finish_reason is {}", choice["finish_reason"])),
    };
    if let (Some(sent), Some(echoed)) = (asked.prompt_ids, ids(&choice["prompt_token_ids"])?)
        && echoed != sent
    {
        return Err("the answer is to another prompt: its prompt_token_ids are not those sent".to_owned());
    }
    let ids = ids(&choice["token_ids"])?;
    if let Some(ids) = &ids
        && ids.len() > asked.max_new_tokens
    {
        return Err(format!("{} new tokens where at most {} were asked for", ids.len(), asked.max_new_tokens));
    }
    let told = answer["usage"]["prompt_tokens"].as_u64().unwrap_or(0) as usize;
    let prompt_len_tokens = asked.prompt_ids.map_or(told, <[u32]>::len);
    // Of several answers servers count the tokens together, or of the first alone.
    let counted = answer["usage"]["completion_tokens"].as_u64().map(|n_new| n_new as usize);
    let n_counted = counted.filter(|_| asked.n == 1 && ids.is_none());
    Ok(Completion { ids, logps: None, text, finish_reason, prompt_len_tokens, n_counted, reasoning_apart })
}

/// A list of token ids; `None` where it is absent or null.
fn ids(list: &Value) -> Result<Option<Vec<u32>>, String> {
    if list.is_null() {
        return Ok(None);
    }
    let one = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
    let ids = list.as_array().and_then(|list| list.iter().map(one).collect::<Option<Vec<_>>>());
    ids.map(Some).ok_or_else(|| format!("{list} is no list of token ids"))
}

/// Holds the number of new tokens against the reasons for which the answers ended. `length` before the most that was asked for
/// is the model's context, if that can be full. Of several answers llama-server counts the tokens of the first alone.
fn check_lengths(answer: &Value, completions: &mut [Completion], asked: &Asked) -> Result<(), String> {
    let n_new = answer["usage"]["completion_tokens"].as_u64().map(|n_new| n_new as usize);
    if let Some(n_new) = n_new {
        let most = asked.max_new_tokens * completions.len();
        if n_new > most {
            return Err(format!("the server counts {n_new} new tokens where at most {most} were asked for"));
        }
        if n_new == 0 && completions.iter().all(|completion| !completion.text.is_empty()) {
            return Err("the server counts no new tokens for a text".to_owned());
        }
        let told: Vec<usize> = completions.iter().filter_map(|one| one.ids.as_ref().map(Vec::len)).collect();
        let n_told: usize = told.iter().sum();
        if told.len() == completions.len() && n_told != n_new && told[0] != n_new {
            return Err(format!("the server counts {n_new} new tokens and gives {n_told} ids"));
        }
    }
    let is_alone = completions.len() == 1;
    for completion in completions.iter_mut().filter(|one| one.finish_reason == FinishReason::Length) {
        let Some(len) = completion.ids.as_ref().map(Vec::len).or(n_new.filter(|_| is_alone)) else { continue };
        if len >= asked.max_new_tokens {
            continue;
        }
        let needed = completion.prompt_len_tokens + asked.max_new_tokens;
        if asked.context_len.is_some_and(|context| needed as u64 <= context) {
            return Err(format!(
                "finish_reason is `length` after {len} new tokens, of {} asked for, and the context is not full",
                asked.max_new_tokens
            ));
        }
        completion.finish_reason = FinishReason::Context;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(answer: &Value, n: usize, context_len: Option<u64>) -> Result<Vec<Completion>, String> {
        completions(answer, &Asked { n, max_new_tokens: 4, prompt_ids: Some(&[7, 8]), context_len, text_of: completed })
    }

    /// As vLLM 0.11 (`reasoning_content`) and later ones (`reasoning`) answer, and SGLang.
    #[test]
    fn a_chats_answer_that_ended_in_its_reasoning_is_an_empty_text_and_one_that_calls_a_tool_is_none() {
        let check = |message: Value, ended: Value| {
            let answer = json!({"choices": [{"message": message, "finish_reason": ended}]});
            let asked = Asked { n: 1, max_new_tokens: 4, prompt_ids: None, context_len: None, text_of: chatted };
            let found = completions(&answer, &asked).map(|mut all| all.remove(0));
            found.map(|one| (one.text, one.reasoning_apart, one.finish_reason))
        };
        let (length, stop) = (json!("length"), json!("stop"));
        let empty = |apart| Ok((String::new(), apart, FinishReason::Length));
        assert_eq!(check(json!({"content": null, "reasoning_content": "hmm"}), length.clone()), empty(true));
        assert_eq!(check(json!({"content": null, "reasoning": "hmm"}), length.clone()), empty(true));
        assert_eq!(check(json!({"reasoning": "hmm"}), length.clone()), empty(true));
        assert_eq!(check(json!({"content": null, "reasoning_content": null}), length.clone()), empty(false));
        let said = Ok(("[A]".to_owned(), true, FinishReason::Stop));
        assert_eq!(check(json!({"content": "[A]", "reasoning_content": "hmm", "tool_calls": []}), stop.clone()), said);
        let none = Err(NO_TEXT.to_owned());
        let calls = json!([{"function": {"name": "f"}}]);
        assert_eq!(check(json!({"content": null, "tool_calls": calls}), stop), none);
        assert_eq!(check(json!({"content": null, "reasoning": "hmm"}), json!("tool_calls")), none);
        assert_eq!(check(json!({"content": null, "reasoning": "hmm"}), Value::Null), none);
        assert_eq!(check(json!({"content": 7}), length.clone()), none);
        assert_eq!(check(json!("text"), length), none);
    }

    #[test]
    fn length_before_the_length_asked_for_is_a_full_context_or_a_lie() {
        let answer = json!({"choices": [{"text": "a", "finish_reason": "length"}], "usage": {"completion_tokens": 2}});
        assert_eq!(read(&answer, 1, Some(5)).unwrap()[0].finish_reason, FinishReason::Context);
        assert_eq!(read(&answer, 1, None).unwrap()[0].finish_reason, FinishReason::Context);
        assert!(read(&answer, 1, Some(6)).unwrap_err().contains("the context is not full"));
        let whole = json!({"choices": [{"text": "a", "finish_reason": "length"}], "usage": {"completion_tokens": 4}});
        assert_eq!(read(&whole, 1, Some(6)).unwrap()[0].finish_reason, FinishReason::Length);
    }

    /// As llama-server's answer to `n` 3 and `max_tokens` 8, which counts 8 new tokens.
    #[test]
    fn a_count_of_the_first_answer_alone_tells_nothing_of_a_full_context() {
        let choice = |at: u64| json!({"index": at, "text": "a", "finish_reason": "length"});
        let answer = json!({"choices": [choice(0), choice(1), choice(2)], "usage": {"completion_tokens": 4}});
        let found = read(&answer, 3, None).unwrap();
        assert!(found.iter().all(|one| one.finish_reason == FinishReason::Length));
    }

    #[test]
    fn ids_that_a_server_tells_are_taken_when_they_are_those_of_the_prompt_and_of_the_count() {
        let answer = |prompt: [u32; 2], n_new: u32| {
            json!({"choices": [{"index": 0, "text": "a", "finish_reason": "stop", "token_ids": [5, 6], "prompt_token_ids": prompt}],
                   "usage": {"prompt_tokens": 2, "completion_tokens": n_new, "total_tokens": 2 + n_new}})
        };
        assert_eq!(read(&answer([7, 8], 2), 1, None).unwrap()[0].ids, Some(vec![5, 6]));
        assert!(read(&answer([7, 9], 2), 1, None).unwrap_err().contains("to another prompt"));
        assert!(read(&answer([7, 8], 3), 1, None).unwrap_err().contains("3 new tokens and gives 2 ids"));
    }
}
