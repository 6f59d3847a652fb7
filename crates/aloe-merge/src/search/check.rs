//! Values that no merge may take: density and epsilon of della that leave the unit interval together, weights that sum to zero. They show only
//! when the parameters of every tensor are resolved, which is done here for point after point against one plan; nothing is merged.

use super::Space;
use crate::config::MergeConfig;
use crate::layers::layer_ranges;
use crate::plan::{self, MergeOptions, MergePlan};
use crate::{Error, Result};
use aloe_record::Cancel;
use std::path::Path;

/// Mistakes named at most.
const N_NAMED: usize = 5;

/// Checks points; keeps the first plan that can be made.
pub struct PointCheck {
    options: MergeOptions,
    plan: Option<MergePlan>,
}

impl PointCheck {
    /// With the options of the merges.
    pub fn new(options: MergeOptions) -> Self {
        Self { options, plan: None }
    }

    /// Why a point's YAML cannot be merged, if it cannot; an error where that has nothing to do with its values.
    pub fn refusal(&mut self, yaml: &str) -> Result<Option<String>> {
        let config = MergeConfig::parse(yaml, Path::new("yaml"))?;
        let checked = match &self.plan {
            Some(plan) => check_values(plan, &config),
            None => plan::plan(&config, &self.options).map(|plan| self.plan = Some(plan)),
        };
        match checked {
            Ok(()) => Ok(None),
            Err(Error::Config { mistakes, .. }) => {
                Ok(Some(mistakes.into_iter().map(|mistake| mistake.text).collect::<Vec<_>>().join("; ")))
            }
            Err(error) => Err(error),
        }
    }

    /// Refuses a list of points of which one cannot be merged.
    pub fn all(&mut self, points: &[Vec<f64>], space: &Space, cancel: &Cancel) -> Result<()> {
        let mut refused = Vec::new();
        for point in points {
            cancel.check()?;
            if let Some(reason) = self.refusal(&space.yaml(point))? {
                refused.push(format!("\n  {}: {reason}", space.describe(point)));
            }
        }
        match refused.len() {
            0 => Ok(()),
            n_refused => Err(Error::Points {
                n_refused,
                n_points: points.len(),
                reasons: refused.into_iter().take(N_NAMED).collect(),
            }),
        }
    }
}

/// The parameters of every tensor, of earlier documents too.
fn check_values(plan: &MergePlan, config: &MergeConfig) -> Result<()> {
    for earlier in &plan.earlier {
        if let Some(document) = config.earlier.iter().find(|document| document.name == earlier.document) {
            check_values(earlier, document)?;
        }
    }
    let ranges = layer_ranges(config, &plan.models)?;
    plan::tensors(config, &plan.models, &plan.config, &ranges).map(|_| ())
}
