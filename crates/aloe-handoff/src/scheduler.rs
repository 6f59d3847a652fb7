//! What runs jobs: [`Local`] (child processes of this machine) and [`Slurm`]. Both run `aloe job` in the run folder; this seam is all that
//! the driver knows of them.

mod local;
mod slurm;

pub use local::{Local, job_id};
pub use slurm::Slurm;

use crate::plan::StagePlan;
use crate::{Error, Result};
use std::path::Path;

/// A job about to be submitted.
pub struct Submission<'a> {
    /// The run folder, absolute.
    pub run: &'a Path,
    /// Its stage.
    pub stage: &'a StagePlan,
    /// A name of no other job.
    pub name: &'a str,
    /// Ids of jobs that must end well before.
    pub after: &'a [String],
}

/// Shards of one stage about to be submitted together.
pub struct Array<'a> {
    /// The run folder, absolute.
    pub run: &'a Path,
    /// The shards.
    pub shards: &'a [&'a StagePlan],
    /// A name of no other job, the same for all.
    pub name: &'a str,
    /// Ids of jobs that must end well before.
    pub after: &'a [String],
}

/// The id of one job of an array: the array's, `_` and the index, as Slurm writes it.
pub fn array_job_id(array: &str, index: u32) -> String {
    format!("{array}_{index}")
}

/// What a scheduler knows of a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Observed {
    /// It waits.
    Waiting,
    /// It waits for somebody to release it: why, and what to do.
    Held(String),
    /// It waits for something that its turn alone does not bring, a limit for one: what.
    Delayed(String),
    /// It runs, or is being stopped.
    Running,
    /// It ended with exit code 0.
    EndedWell,
    /// It ended otherwise: what the scheduler says of it.
    Failed(String),
    /// It was cancelled: by whom or why, as far as the scheduler says.
    Cancelled(String),
    /// The scheduler knows no such job, or not any more.
    Unknown,
}

/// What runs jobs.
pub trait Scheduler {
    /// Whether it holds a job back until those it follows ended well; otherwise the driver does.
    fn holds_back(&self) -> bool;

    /// What of `stages` it could not run, in words. An empty list is a promise as far as it can be known before.
    fn preflight(&self, run: &Path, stages: &[&StagePlan]) -> Result<Vec<String>>;

    /// Submits a job and returns its id.
    fn submit(&self, submission: &Submission<'_>) -> Result<String>;

    /// Whether [`Scheduler::submit_array`] is understood; otherwise shards are submitted one by one.
    fn has_arrays(&self) -> bool {
        false
    }

    /// Submits shards as one job array and returns its id.
    fn submit_array(&self, array: &Array<'_>) -> Result<String> {
        Err(Error::Scheduler { command: "array".to_owned(), reason: format!("{} cannot be one", array.name) })
    }

    /// The id of the job of this name, or of the array, if the scheduler ever took it.
    fn find(&self, name: &str) -> Result<Option<String>>;

    /// What became of a job, of this name where it was given one of its own: a scheduler that lost its memory gives the same ids again, to other
    /// jobs. An error is no statement about it: the scheduler could not be asked.
    fn observe(&self, job: &str, name: Option<&str>) -> Result<Observed>;

    /// Cancels a job; one that has ended already is no error.
    fn cancel(&self, job: &str) -> Result<()>;
}
