//! A list of messages, and what may stand in it beside speakers and texts. What would change training is refused, not passed over.

use super::{is_assistant, is_said, role};
use crate::RowError;
use aloe_task::rows::Row;
use aloe_text::Message;
use serde_json::Value;

/// A list of `{role, content}` or `{from, value}`.
pub(super) fn message_list(row: &Row, column: &str, value: &Value) -> Result<Vec<Message>, RowError> {
    let wrong = |what: &str| RowError::new(&row.at, format!("column `{column}`: expected {what}"));
    let list = value.as_array().ok_or_else(|| wrong("a list of messages"))?;
    let one = |entry: &Value| -> Result<Message, RowError> {
        refuse_parts(row, column, entry)?;
        let part = |names: [&str; 2]| names.iter().find_map(|name| entry.get(*name)).and_then(Value::as_str);
        let speaker = part(["role", "from"]).ok_or_else(|| wrong("messages with `role` or `from`"))?;
        let content = part(["content", "value"]).ok_or_else(|| wrong("messages with `content` or `value` as text"))?;
        Ok(Message::new(role(row, speaker)?, content))
    };
    list.iter().map(one).collect()
}

/// Refuses a message that says by a part beside its text that it must not be trained on, or that its text is not all of it.
fn refuse_parts(row: &Row, column: &str, entry: &Value) -> Result<(), RowError> {
    let part = |name: &str| entry.get(name).filter(|value| is_said(value));
    let refused = |name: &str, what: &str| {
        let reason = format!("column `{column}`: a message with `{name}`, {what}; leave that message or that part out");
        Err(RowError::new(&row.at, reason))
    };
    for name in ["tool_calls", "function_call"] {
        if part(name).is_some() {
            return refused(name, "which is not read and would be lost");
        }
    }
    // Of a user's message nothing is trained on, whatever it says.
    for (name, whole) in [("weight", 1.0), ("train", 1.0), ("trainable", 1.0), ("masked", 0.0)] {
        let said =
            part(name).map(|value| value.as_bool().map_or_else(|| value.as_f64(), |is_so| Some(f64::from(is_so))));
        let is_answer = ["role", "from"].iter().find_map(|key| entry.get(*key)?.as_str()).is_some_and(is_assistant);
        if is_answer && said.is_some_and(|said| said != Some(whole)) {
            return refused(name, "whose answer is not to be trained on as the others are");
        }
    }
    Ok(())
}
