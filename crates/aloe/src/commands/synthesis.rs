//! `aloe synthesis`: opens the writer, calls the spine, fills the record.

use crate::commands::stages::{Opened, check_served, note_cache, note_memory, open_engine, tell};
use crate::commands::timeout_of;
use crate::failure::Failure;
use crate::recipe::synthesis_stage::SynthesisStage;
use crate::stage::{Context, Inputs, single};
use aloe_record::{Progress, Record};
use std::path::Path;

/// Runs the stage into `folder`.
pub(super) fn run(
    stage: &SynthesisStage,
    inputs: &Inputs,
    folder: &Path,
    record: &mut Record,
    context: &Context,
) -> anyhow::Result<()> {
    let config = stage.checked().map_err(|mistakes| Failure::usage(mistakes.join("\n")))?;
    let model = single(inputs, "model", "synthesis")?;
    check_served(stage.request_timeout, stage.connections, [model].into_iter())?;
    let opened = Opened {
        tokenizer: &stage.tokenizer,
        server_template: stage.server_template,
        quantize: stage.quantize,
        answer_cache: &stage.answer_cache,
        kv_budget: stage.kv_budget,
        request_timeout: timeout_of(stage.request_timeout),
        connections: stage.connections,
    };
    let engine = open_engine(model, opened, context)?;
    let progress = Progress::new("synthesis", 0, "questions");
    let report = aloe_data::synthesis::run(&engine, &config, folder, &progress, &context.cancel)?;
    tell(&report.notices);
    record.result("synthesis", &report)?;
    record.result("seconds_of_asking", report.seconds)?;
    note_cache(&engine, &stage.answer_cache, record)?;
    note_memory(&engine, record)?;
    record.result("summary", report.summary())?;
    Ok(())
}
