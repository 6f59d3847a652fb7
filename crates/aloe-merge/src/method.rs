//! One file per method: its formula, its source and what it reads of the parameters.
//!
//! A method first looks at the whole tensor where it must (norms, angles, thresholds: passes over the inputs in tiles, reduced in tile
//! order), then merges any tile alone. So the result depends on no thread and no piece, and nothing is held but tiles.

mod breadcrumbs;
mod combination;
mod dare;
mod della;
mod karcher;
mod linear;
mod model_stock;
mod multislerp;
mod nearswap;
mod nuslerp;
mod passthrough;
mod sce;
mod slerp;
mod task_arithmetic;
#[cfg(test)]
mod tests;
mod ties;

use crate::Result;
use crate::config::Method;
use crate::group::Group;
use crate::stats::{TensorStats, TileSums};
use crate::tile::{Rounding, run, with_rounding};

/// A method that has seen the whole tensor.
pub(crate) trait Kernel: Sync {
    /// Merges the tile that begins at `start` into `out`, as values of the merge dtype; the figures of methods with task vectors.
    fn tile(&self, group: &Group, start: usize, out: &mut [f32]) -> Result<Option<TileSums>>;
}

/// Does what the method must know of the whole tensor.
pub(crate) fn prepare(method: Method, group: &Group) -> Result<Box<dyn Kernel>> {
    // A slice of the base alone under a method that merges differences to it: there are none.
    if group.base.is_some() && group.sources.len() == 1 {
        return Ok(Box::new(passthrough::Base));
    }
    Ok(match method {
        Method::Linear => Box::new(linear::Linear::prepare(group)),
        Method::Slerp => Box::new(slerp::Slerp::prepare(group)?),
        Method::Nuslerp => with_rounding!(group.dtype, boxed_nuslerp(group))?,
        Method::Multislerp => Box::new(multislerp::prepare(group)?),
        Method::Karcher => Box::new(karcher::prepare(group)?),
        Method::Passthrough => Box::new(passthrough::Passthrough),
        Method::Nearswap => Box::new(nearswap::Nearswap),
        Method::ModelStock => with_rounding!(group.dtype, boxed_model_stock(group))?,
        Method::Sce => with_rounding!(group.dtype, boxed_sce(group))?,
        Method::TaskArithmetic => Box::new(task_arithmetic::prepare(group)?),
        Method::Ties => Box::new(ties::prepare(group)?),
        Method::DareTies | Method::DareLinear => Box::new(dare::prepare(group, method.elects())?),
        Method::BreadcrumbsTies | Method::Breadcrumbs => Box::new(breadcrumbs::prepare(group, method.elects())?),
        Method::Della | Method::DellaLinear => Box::new(della::prepare(group, method.elects())?),
    })
}

fn boxed_nuslerp<R: Rounding + 'static>(group: &Group) -> Result<Box<dyn Kernel>> {
    Ok(Box::new(nuslerp::prepare::<R>(group)?))
}

fn boxed_model_stock<R: Rounding + 'static>(group: &Group) -> Result<Box<dyn Kernel>> {
    Ok(Box::new(model_stock::prepare::<R>(group)?))
}

fn boxed_sce<R: Rounding + 'static>(group: &Group) -> Result<Box<dyn Kernel>> {
    Ok(Box::new(sce::prepare::<R>(group)?))
}

/// Merges a whole tensor into memory: the same values that a merge writes tile by tile.
pub fn merge_group(method: Method, group: &Group) -> Result<(Vec<f32>, Option<TensorStats>)> {
    let mut out = vec![0.0f32; group.n_elements()];
    let stats = {
        let jobs: Vec<(usize, &mut [f32])> =
            out.chunks_mut(crate::tile::TILE).enumerate().map(|(i, tile)| (i * crate::tile::TILE, tile)).collect();
        let kernel = prepare(method, group)?;
        let parts = run(group.threads, jobs, |(start, tile)| kernel.tile(group, start, tile))?;
        collect(parts, group)
    };
    Ok((out, stats))
}

/// Sums the figures of the tiles, in their order.
pub(crate) fn collect(parts: Vec<Option<TileSums>>, group: &Group) -> Option<TensorStats> {
    let mut parts = parts.into_iter().flatten();
    let mut sums = parts.next()?;
    parts.for_each(|part| sums.add(&part));
    Some(sums.finish(&group.name, group.n_elements()))
}
