//! Shards of a stage: jobs that do a part of its work each, before the job that gathers what they made. In the plan each is a stage of its
//! own, so that state, locks and resumption are those of all stages; under Slurm those that go together are one job array.

use crate::plan::StagePlan;
use std::path::{Path, PathBuf};

/// The kinds of stages that are divided, and the kind that a plan gives their shards.
const KINDS: [(&str, &str); 2] = [("eval", EVAL_SHARD), ("data", DATA_SHARD)];

/// The kind of a shard of an evaluation.
pub const EVAL_SHARD: &str = "eval-shard";

/// The kind of a shard of a data stage.
pub const DATA_SHARD: &str = "data-shard";

/// Which part of which stage a job does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard<'a> {
    /// The stage that it is a part of.
    pub of: &'a str,
    /// From 1.
    pub index: u32,
    /// How many there are.
    pub n: u32,
}

impl Shard<'_> {
    /// `2-of-3`: the end of its name, and its folder below `work/STAGE`.
    pub fn suffix(&self) -> String {
        format!("{}-of-{}", self.index, self.n)
    }

    /// Where it leaves what it made, below the run folder.
    pub fn work(&self) -> PathBuf {
        Path::new("work").join(self.of).join(self.suffix())
    }
}

/// The kind of the shards of a stage of `kind`; `None` where such stages are not divided.
pub fn kind_of_shards(kind: &str) -> Option<&'static str> {
    KINDS.iter().find(|(whole, _)| *whole == kind).map(|(_, shard)| *shard)
}

/// The name of shard `index` of `n` of a stage.
pub fn name_of(stage: &str, index: u32, n: u32) -> String {
    format!("{stage}.{}", Shard { of: stage, index, n }.suffix())
}

impl StagePlan {
    /// Which part of which stage this is, where it is a part.
    pub fn shard(&self) -> Option<Shard<'_>> {
        let (of, suffix) = self.name.rsplit_once('.').filter(|_| self.is_called_shard())?;
        let (index, n) = suffix.split_once("-of-")?;
        let shard = Shard { of, index: index.parse().ok()?, n: n.parse().ok()? };
        (1 <= shard.index && shard.index <= shard.n && shard.suffix() == suffix).then_some(shard)
    }

    /// Whether its kind is that of shards, whatever its name is.
    pub fn is_called_shard(&self) -> bool {
        self.kind_in_recipe() != self.kind
    }

    /// The kind of the stage of the recipe that it does, whole or in part.
    pub fn kind_in_recipe(&self) -> &str {
        KINDS.iter().find(|(_, shard)| *shard == self.kind).map_or(&self.kind, |(whole, _)| whole)
    }

    /// The stage of the recipe that it does, whole or in part.
    pub fn in_recipe(&self) -> &str {
        self.shard().map_or(&self.name, |shard| shard.of)
    }

    /// The script of the array that it goes with, relative to the run folder.
    pub fn array_script(&self) -> Option<PathBuf> {
        let suffix = format!(".{}", self.shard()?.suffix());
        let folder = self.folder.to_string_lossy();
        Some(Path::new(folder.strip_suffix(&suffix)?).join("array.sbatch"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Resources, Trainer};

    fn stage(name: &str, kind: &str) -> StagePlan {
        StagePlan {
            name: name.into(),
            kind: kind.into(),
            folder: format!("stages/50-{name}").into(),
            after: vec![],
            trainer: Trainer::Aloe,
            resources: Resources { n_nodes: 1, gpus_per_node: 0, cpus_per_node: 1, time_limit_s: 60 },
        }
    }

    #[test]
    fn a_shard_is_known_by_its_kind_and_name_alone() {
        let shard = stage(&name_of("eval.big", 2, 12), EVAL_SHARD);
        assert_eq!(shard.name, "eval.big.2-of-12");
        assert_eq!(shard.shard(), Some(Shard { of: "eval.big", index: 2, n: 12 }));
        assert_eq!((shard.in_recipe(), shard.kind_in_recipe()), ("eval.big", "eval"));
        let rows = stage(&name_of("rows", 1, 2), kind_of_shards("data").unwrap());
        assert_eq!((rows.shard(), rows.kind_in_recipe()), (Some(Shard { of: "rows", index: 1, n: 2 }), "data"));
        assert_eq!(kind_of_shards("sft"), None);
        assert_eq!(shard.array_script().unwrap(), Path::new("stages/50-eval.big/array.sbatch"));
        assert_eq!(shard.shard().unwrap().work(), Path::new("work/eval.big/2-of-12"));
        // A user's own stage may be called so.
        let other = stage("eval.2-of-3", "eval");
        assert_eq!((other.shard(), other.in_recipe()), (None, "eval.2-of-3"));
        for name in ["eval", "eval.0-of-3", "eval.4-of-3", "eval.02-of-3", "eval.1-of-x"] {
            assert_eq!(stage(name, EVAL_SHARD).shard(), None, "{name}");
        }
    }
}
