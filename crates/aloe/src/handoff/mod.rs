//! A recipe as a run folder: what `aloe plan --where` writes, and what its stages mean to the commands that run them.
//!
//! Reading order: `write` (the spine), `rewrite` (the recipe without a path that leaves the folder), `scripts` (a stage's folder), `start` (what a training
//! will start from), `rendered` (rows that a job made for a foreign trainer), `returned` (what came back from a foreign trainer), `job_share` (what a job cost its site), `validate` (the engines' own opinion).

pub(crate) mod job_share;
mod rendered;
pub(crate) mod returned;
pub(crate) mod rewrite;
pub(crate) mod scripts;
pub(crate) mod start;
pub(crate) mod validate;
pub(crate) mod write;
