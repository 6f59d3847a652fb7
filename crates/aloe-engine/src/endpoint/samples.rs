//! The samples of one request: asked for together where the server takes that, with seeds of their own.

use super::Endpoint;
use super::answer::{self, Asked, TextOf};
use super::replicas::{Asking, Reply};
use crate::{Completion, Error, GenerateRequest, Result, Sampling};
use aloe_record::digest;
use serde_json::{Value, json};
use std::sync::atomic::Ordering;

impl Endpoint {
    /// `request.n` answers: all in one request, or in as few as the server takes (llama-server gives no more than it has slots).
    pub(super) fn samples(
        &self,
        request: &GenerateRequest,
        path: &str,
        prompt: &Value,
        text_of: TextOf,
        prompt_ids: Option<&[u32]>,
        asking: &Asking,
    ) -> Result<Vec<Completion>> {
        let (mut done, mut most) = (Vec::with_capacity(request.n), usize::MAX);
        while done.len() < request.n {
            let n = (request.n - done.len()).min(most).min(self.n_at_once.load(Ordering::SeqCst));
            let mut body = sampling_body(&request.sampling, &request.id, done.len(), n);
            body["model"] = json!(self.model);
            for (key, value) in prompt.as_object().into_iter().flatten() {
                body[key] = value.clone();
            }
            let (answer, at) = match self.replicas.ask(path, &body, asking)? {
                Reply::Json(answer, at) => (answer, at),
                Reply::Refused(_) if n > 1 => {
                    most = largest_power_of_two_below(n);
                    continue;
                }
                Reply::Refused(reason) => return Err(Error::Request { id: request.id.clone(), reason }),
            };
            self.check_model(&answer, at)?;
            if n > 1 && self.ignores_n(&answer) {
                most = 1;
                self.at_once(1, at, "it answers once whatever `n` is");
                continue;
            }
            let max_new_tokens = request.sampling.max_new_tokens;
            let asked = Asked { n, max_new_tokens, prompt_ids, context_len: self.context_len, text_of };
            let completions = answer::completions(&answer, &asked)
                .map_err(|reason| self.replicas.error(at, format!("request {}: {reason}", request.id)))?;
            if most != usize::MAX && n == most {
                self.at_once(most, at, "it refuses more");
            }
            if n > 1 {
                self.knows_n.store(true, Ordering::SeqCst);
            }
            done.extend(completions);
        }
        Ok(done)
    }

    /// Whether the server passes `n` over: one answer where several were asked for, and never yet more than one.
    fn ignores_n(&self, answer: &Value) -> bool {
        let n_choices = answer["choices"].as_array().map_or(0, Vec::len);
        n_choices == 1 && !self.knows_n.load(Ordering::SeqCst)
    }

    /// From now on no more than `n` samples are asked for at once.
    fn at_once(&self, n: usize, at: usize, reason: &str) {
        if self.n_at_once.fetch_min(n, Ordering::SeqCst) > n {
            let (base, samples) = (self.replicas.base(at), if n == 1 { "sample" } else { "samples" });
            aloe_record::tell(&format!("{base}: {reason}; each request asks for {n} {samples} at most"));
        }
    }
}

fn largest_power_of_two_below(n: usize) -> usize {
    1 << (n - 1).ilog2()
}

/// The sampling fields of a request for `n` samples from the `first` on.
fn sampling_body(sampling: &Sampling, id: &str, first: usize, n: usize) -> Value {
    let mut body = json!({
        "n": n, "max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p,
        "seed": sample_seed(sampling.seed, id, first),
    });
    if sampling.top_k > 0 {
        body["top_k"] = json!(sampling.top_k);
    }
    if sampling.min_p > 0.0 {
        body["min_p"] = json!(sampling.min_p);
    }
    if sampling.repetition_penalty != 1.0 {
        body["repetition_penalty"] = json!(sampling.repetition_penalty);
    }
    if !sampling.stop.is_empty() {
        body["stop"] = json!(sampling.stop);
    }
    body
}

/// The seed that a server is given for a sample: that of (seed, request id), of 31 bits, which every server takes, plus the
/// sample's number. A server that counts on from the seed of the first, as vLLM and llama-server do, draws the same however `n` is split.
fn sample_seed(seed: u64, id: &str, sample: usize) -> u32 {
    let digest = digest::bytes(format!("{seed}/{id}").as_bytes());
    let first = u32::from_str_radix(&digest[..8], 16).unwrap_or_default() >> 1;
    (first as usize + sample) as u32 & (u32::MAX >> 1)
}
