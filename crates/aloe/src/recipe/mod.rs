//! Recipes: one TOML file with a list of stages that form a graph.
//!
//! `raw` reads what was written, `checked` turns it into typed stages (`stage_config`, `eval_stage`, `redteam_stage`, `search_stage`, `synthesis_stage`) and finds
//! every mistake, `compared` gives data stages the questions that the recipe scores on, `quarantines` keeps their broken rows, `plan` (with `sizes`, `training_size`, `memory` and `measured_steps`) estimates and refuses what a run over rows at hand would, and `plan_table` prints it, `at_site` says what it costs on a site's GPUs, `keys` (with `search_keys`) is the help on settings.

pub(crate) mod at_site;
pub(crate) mod checked;
pub(crate) mod compared;
pub(crate) mod eval_stage;
pub(crate) mod keys;
mod measured_steps;
mod memory;
mod named_stages;
pub(crate) mod open_stage;
pub(crate) mod plan;
pub(crate) mod plan_table;
pub(crate) mod quarantines;
pub(crate) mod raw;
pub(crate) mod redteam_stage;
pub(crate) mod search_keys;
pub(crate) mod search_stage;
pub(crate) mod sizes;
pub(crate) mod stage_config;
pub(crate) mod synthesis_stage;
mod training_size;
