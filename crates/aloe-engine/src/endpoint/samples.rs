//! The samples of one request: asked for together where the server takes that, with seeds of their own.

use super::Endpoint;
use super::answer::{self, Asked, TextOf};
use super::replicas::{Asking, Reply};
use crate::{Completion, Error, GenerateRequest, Result, Sampling};
use aloe_record::digest;
use serde_json::{Value, json};
use std::sync::PoisonError;
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
            let unknown = self.unknown_fields();
            let mut body = sampling_body(&request.sampling, &request.id, done.len(), n, &unknown);
            body["model"] = json!(self.model);
            for (key, value) in prompt.as_object().into_iter().flatten() {
                body[key] = value.clone();
            }
            let kept = self.replicas.journal().request(path, &body);
            if let Some(completions) = kept.found::<Vec<Completion>>() {
                done.extend(completions);
                continue;
            }
            let (answer, at) = match self.replicas.ask(path, &body, asking)? {
                Reply::Json(answer, at) => (answer, at),
                Reply::Refused(reason) if self.leaves_out(&request.sampling, &reason, &unknown) => continue,
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
            let completions =
                answer::completions(&answer, &asked).map_err(|reason| self.replicas.unusable(at, asking, reason))?;
            if most != usize::MAX && n == most {
                self.at_once(most, at, "it refuses more");
            }
            if n > 1 {
                self.knows_n.store(true, Ordering::SeqCst);
            }
            kept.keep(&completions, self.replicas.base(at));
            done.extend(completions);
        }
        Ok(done)
    }

    fn unknown_fields(&self) -> Vec<&'static str> {
        self.unknown_fields.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether a refusal names a field that is off: a server that does not know it has no such thing to turn off, so from now on it is
    /// left out. One that is on is never left out.
    fn leaves_out(&self, sampling: &Sampling, reason: &str, sent_without: &[&str]) -> bool {
        let is_word = |name: &str| reason.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == name);
        let named = extensions(sampling)
            .into_iter()
            .find(|(name, value, off)| value == off && is_word(name) && !sent_without.contains(name));
        let Some((name, ..)) = named else { return false };
        let mut unknown = self.unknown_fields.lock().unwrap_or_else(PoisonError::into_inner);
        if !unknown.contains(&name) {
            unknown.push(name);
            let bases = self.replicas.bases();
            aloe_record::tell(&format!(
                "{bases}: the sampling field {name} is refused; it is off and left out from now on"
            ));
        }
        true
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

/// Fields beyond OpenAI's own, with the value that turns each off. vLLM and SGLang say `repetition_penalty`, llama-server
/// `repeat_penalty`; -1 is "no limit" of `top_k` for all of them.
fn extensions(sampling: &Sampling) -> [(&'static str, Value, Value); 4] {
    let (off, penalty) = (json!(-1), json!(sampling.repetition_penalty));
    [
        ("top_k", if sampling.top_k > 0 { json!(sampling.top_k) } else { off.clone() }, off),
        ("min_p", json!(sampling.min_p), json!(0.0f32)),
        ("repetition_penalty", penalty.clone(), json!(1.0f32)),
        ("repeat_penalty", penalty, json!(1.0f32)),
    ]
}

/// The sampling fields of a request for `n` samples from the `first` on. Every field is sent, those that are off too: what is left
/// out has the server's own default (llama-server's `top_k` is 40, vLLM takes a model's `generation_config.json`), and the record
/// would name another sampling than the answers had.
fn sampling_body(sampling: &Sampling, id: &str, first: usize, n: usize, unknown: &[&str]) -> Value {
    let mut body = json!({
        "n": n, "max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p,
        "seed": sample_seed(sampling.seed, id, first), "presence_penalty": 0.0, "frequency_penalty": 0.0,
    });
    for (name, value, _) in extensions(sampling).into_iter().filter(|(name, ..)| !unknown.contains(name)) {
        body[name] = value;
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Greedy: everything off, and said so. Sampled: the fields of the record, under each server's name.
    #[test]
    fn every_field_of_the_sampling_is_sent_whether_it_is_on_or_off() {
        let mut body = sampling_body(&Sampling::greedy(4), "a", 0, 1, &[]);
        body.as_object_mut().unwrap().remove("seed");
        let off = json!({"n": 1, "max_tokens": 4, "temperature": 0.0, "top_p": 1.0, "presence_penalty": 0.0,
            "frequency_penalty": 0.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "repeat_penalty": 1.0});
        assert_eq!(body, off);
        let on = Sampling { temperature: 0.5, top_k: 7, min_p: 0.25, repetition_penalty: 1.5, ..Sampling::greedy(4) };
        let body = sampling_body(&on, "a", 0, 1, &["min_p"]);
        assert_eq!((&body["top_k"], &body["repetition_penalty"]), (&json!(7), &json!(1.5)));
        assert_eq!((&body["repeat_penalty"], body.get("min_p")), (&json!(1.5), None));
    }
}
