//! `aloe synthesis`: opens the writer, calls the spine, fills the record.

use crate::commands::stages::{Opened, check_served, note_cache, note_memory, open_engine, split, tell};
use crate::commands::timeout_of;
use crate::failure::Failure;
use crate::recipe::synthesis_stage::{Checked, SynthesisStage};
use crate::stage::{Context, Inputs, single};
use aloe_data::synthesis::{self, TextsReport};
use aloe_record::{Progress, Record};
use aloe_task::red_team::questions;
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
    check_served(stage.request_timeout, stage.connections, [model].into_iter(), context)?;
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
    let (progress, cancel) = (Progress::new("synthesis", 0, "items"), &context.cancel);
    let (notices, seconds, summary) = match &config {
        Checked::Cot(config) => {
            let report = synthesis::run(&engine, config, folder, &progress, cancel)?;
            record.result("synthesis", &report)?;
            let summary = report.summary();
            (report.notices, report.seconds, summary)
        }
        Checked::Genstruct(passages, config) => {
            texts(synthesis::genstruct(&engine, passages, config, folder, &progress, cancel)?, record)?
        }
        Checked::Rejections(rows, config) => {
            texts(synthesis::rejections(&engine, rows, config, folder, &progress, cancel)?, record)?
        }
        Checked::Roleplay(file, config) => {
            let (dir, name) = split(file);
            let questions = questions::read(dir, name)?;
            texts(synthesis::roleplay(&engine, &questions, config, folder, &progress, cancel)?, record)?
        }
    };
    tell(&notices);
    record.result("seconds_of_asking", seconds)?;
    note_cache(&engine, &stage.answer_cache, record)?;
    note_memory(&engine, record)?;
    record.result("summary", summary)?;
    Ok(())
}

fn texts(report: TextsReport, record: &mut Record) -> anyhow::Result<(Vec<String>, f64, String)> {
    record.result("synthesis", &report)?;
    let summary = report.summary();
    Ok((report.notices, report.seconds, summary))
}
