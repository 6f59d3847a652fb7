//! The fixed parts of the card: details, uses, risks, code examples, closing sections.

use super::{CardConfig, Evidence, licences, risk};
use crate::commands::chat::CARD_SYSTEM_PROMPT;

/// Direct and out-of-scope use. Part of every card, whatever the model.
pub(super) const USES: &str = "## Uses\n\n### Direct Use\n\nResearch on language models for healthcare, and a starting point for better \
ones.\n\n### Out-of-Scope Use\n\nNot for clinical practice, medical diagnosis, or any direct or indirect healthcare advice. The model \
makes errors and can produce toxic content. Using it to harm people, for spam, fraud or impersonation is prohibited.\n\n";

/// Model details and sources.
pub(super) fn details(config: &CardConfig) -> String {
    let mut licences = vec![config.licence.clone()];
    licences.extend(config.also_licensed.iter().cloned());
    format!(
        "## Model Details\n\n### Model Description\n\n- **Developed by:** {}\n- **Model type:** causal decoder-only transformer\n\
         - **Language(s):** {}\n- **License:** {}\n- **Finetuned from model:** {}\n\n",
        config.developed_by,
        config.languages.join(", "),
        licences.join("; "),
        config.base_model
    )
}

/// Risks, the assessment and recommendations.
pub(super) fn risks() -> String {
    format!(
        "## Bias, Risks, and Limitations\n\nThe assessment below states three risks of healthcare language models by the six points of \
         Kapoor et al. (2024), as the reference system does. It is a reasoned statement, not a measurement.\n\n{}\n\
         ### Recommendations\n\nNo safety is guaranteed: the red-team results below show what still gets through. Do not leave minors \
         alone with the model. Tell the people who read its output that a model wrote it. No personal data belongs in prompts or \
         training sets.\n\n",
        risk::table()
    )
}

/// The two code examples of the reference card.
pub(super) fn get_started(config: &CardConfig) -> String {
    let messages = format!(
        "messages = [\n    {{\"role\": \"system\", \"content\": {}}},\n    {{\"role\": \"user\", \"content\": \"Hello.\"}},\n]",
        super::quoted(CARD_SYSTEM_PROMPT)
    );
    let sampling = "    max_new_tokens=256,\n    eos_token_id=terminators,\n    do_sample=True,\n    temperature=0.6,\n    top_p=0.9,\n)";
    format!(
        "## How to Get Started with the Model\n\nWith `aloe`: `aloe chat FOLDER --prompt \"Hello.\"`. With transformers, by a \
         pipeline:\n\n```python\nimport transformers\nimport torch\n\nmodel_id = {name}\n\npipeline = transformers.pipeline(\n    \
         \"text-generation\",\n    model=model_id,\n    model_kwargs={{\"torch_dtype\": torch.bfloat16}},\n    device_map=\"auto\",\n)\n\n{messages}\n\n\
         prompt = pipeline.tokenizer.apply_chat_template(\n    messages, tokenize=False, add_generation_prompt=True\n)\n\nterminators = [\n    \
         pipeline.tokenizer.eos_token_id,\n    pipeline.tokenizer.convert_tokens_to_ids(\"<|eot_id|>\"),\n]\n\noutputs = pipeline(\n    prompt,\n\
         {sampling}\nprint(outputs[0][\"generated_text\"][len(prompt):])\n```\n\nor by the Auto classes:\n\n```python\nfrom transformers import \
         AutoTokenizer, AutoModelForCausalLM\nimport torch\n\nmodel_id = {name}\n\ntokenizer = AutoTokenizer.from_pretrained(model_id)\nmodel = \
         AutoModelForCausalLM.from_pretrained(\n    model_id, torch_dtype=torch.bfloat16, device_map=\"auto\"\n)\n\n{messages}\n\n\
         input_ids = tokenizer.apply_chat_template(\n    messages, add_generation_prompt=True, return_tensors=\"pt\"\n).to(model.device)\n\n\
         terminators = [\n    tokenizer.eos_token_id,\n    tokenizer.convert_tokens_to_ids(\"<|eot_id|>\"),\n]\n\noutputs = model.generate(\n    \
         input_ids,\n{sampling}\nresponse = outputs[0][input_ids.shape[-1]:]\nprint(tokenizer.decode(response, skip_special_tokens=True))\n```\n\n\
         `<|eot_id|>` is Llama 3's end of turn; a model with another chat template ends at its own `eos_token_id`.\n\n",
        name = super::quoted(&config.model_name)
    )
}

/// Hardware, software and architecture, from the records.
pub(super) fn technical(evidence: &[Evidence]) -> String {
    let mut devices: Vec<&str> = evidence.iter().map(|one| one.record.device.as_str()).collect();
    devices.sort_unstable();
    devices.dedup();
    let peak_bytes = evidence.iter().map(|one| one.record.peak_rss_bytes).max().unwrap_or(0);
    let licences: Vec<String> = licences(evidence).into_iter().collect();
    format!(
        "## Technical Specifications\n\n- **Compute:** {}\n- **Peak memory of a stage:** {} MiB\n- **Software:** aloe {}\n- **Licences of base model \
         and data:** {}\n\n",
        devices.join("; "),
        peak_bytes >> 20,
        env!("CARGO_PKG_VERSION"),
        if licences.is_empty() { "none recorded".to_owned() } else { licences.join("; ") }
    )
}

/// Provenance, authors, contact.
pub(super) fn closing(config: &CardConfig) -> String {
    format!(
        "## Glossary\n\n- **Non-refusal rate:** share of red-team prompts whose answer matches no refusal rule. It is not an attack success rate: \
         an answer that does not refuse may still be harmless.\n- **Attack success rate:** share of the answers with a verdict that a judge model calls unsafe; not stated where more \
         than 10 % have no verdict.\n\
         - **SC-CoT:** several sampled chains of thought, majority vote. **Medprompt:** the same with similar solved examples and shuffled options.\n\n\
         ## Model Card Authors\n\n{}; every number is taken from the `record.json` of the stage that is named beside it.\n\n## Model Card \
         Contact\n\n{}\n",
        config.developed_by, config.contact
    )
}
