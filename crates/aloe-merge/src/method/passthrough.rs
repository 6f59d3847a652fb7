//! One model as it is, or times `scale`: what layers of a frankenmerge pass through.
//!
//! Source: mergekit 0.1.5, `merge_methods/passthrough.py`. Parameters: `scale` (1) of the one model.

use super::Kernel;
use crate::Result;
use crate::config::Parameter;
use crate::group::Group;
use crate::stats::TileSums;
use crate::tile::round_to;

pub(super) struct Passthrough;

impl Kernel for Passthrough {
    fn tile(&self, group: &Group, start: usize, out: &mut [f32]) -> Result<Option<TileSums>> {
        let scale = group.parameters.input(0, Parameter::Scale) as f32;
        group.sources[0].read(start, group.dtype, out)?;
        if scale != 1.0 {
            out.iter_mut().for_each(|value| *value = round_to(group.dtype, *value * scale));
        }
        Ok(None)
    }
}

/// The base as it is, where a slice has nothing besides: mergekit's methods of task vectors return it then.
pub(super) struct Base;

impl Kernel for Base {
    fn tile(&self, group: &Group, start: usize, out: &mut [f32]) -> Result<Option<TileSums>> {
        group.sources[0].read(start, group.dtype, out)?;
        Ok(None)
    }
}
