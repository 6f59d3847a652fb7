//! Every way asking a model can fail.

/// A failure of opening or asking a model.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The weights could not be read or do not fit.
    #[error(transparent)]
    Model(#[from] aloe_model::Error),
    /// The tokenizer or the chat template.
    #[error(transparent)]
    Text(#[from] aloe_text::Error),
    /// Storage, or an interrupt.
    #[error(transparent)]
    Record(#[from] aloe_record::Error),
    /// The request itself cannot be answered.
    #[error("{}{reason}", of_request(id))]
    Request {
        /// The request's id, named by whoever asked; empty where there is only one and a name would say nothing.
        id: String,
        /// What is wrong and what to change.
        reason: String,
    },
    /// The model string names nothing that can be opened.
    #[error("cannot open model {model}: {reason}")]
    Open {
        /// The string as given.
        model: String,
        /// What is wrong and what to try.
        reason: String,
    },
    /// The model computes NaN or infinite logits: nothing it would answer means anything.
    #[error(
        "the model's logits are not finite: its weights hold NaN or infinite values, or overflow in this dtype; look at the \
         run that wrote it, or try --dtype f32"
    )]
    NonFinite,
    /// An endpoint refused, answered nonsense, or lacks a feature.
    #[error("endpoint {url}: {reason}")]
    Endpoint {
        /// The address.
        url: String,
        /// What it did.
        reason: String,
    },
    /// What an endpoint answered to one request cannot be used, and asking again did not help.
    #[error("endpoint {url}: request {id}: {reason}")]
    Answer {
        /// The address.
        url: String,
        /// The request's id, named by whoever asked.
        id: String,
        /// What is wrong with the answer.
        reason: String,
    },
}

fn of_request(id: &str) -> String {
    if id.is_empty() { String::new() } else { format!("request {id}: ") }
}
