//! The spine: plan, then tensor by tensor and tile by tile from the inputs to the output folder, then the files beside the weights.
//!
//! Memory: a few tiles per thread, whatever the size of the models and of their tensors ([`MergePlan::memory_bytes`]). The result depends
//! on the configuration, the inputs and the seed, not on threads or memory. `out` is filled as it goes: the caller makes it appear whole
//! (a stage's partial folder, or [`merge_folder`]).

use crate::config::{MergeConfig, MergeDtype};
use crate::figures;
use crate::flush::Flusher;
use crate::group::Group;
use crate::half::f32_to_f16;
use crate::hashing::{Hashing, Place, buffer, deliver, keep_buffer, locked};
use crate::method::{self, merge_group};
use crate::plan::{MergeOptions, MergePlan, PlannedTensor, plan};
use crate::scratch::Scratch;
use crate::stats::{TensorStats, TileSums};
use crate::tile::{run, tiles};
use crate::{Error, Result, card};
use aloe_model::float::first_non_finite;
use aloe_model::writer::{TensorPlace, TensorSlot};
use aloe_model::{CheckpointWriter, FileDtype};
use aloe_record::atomic::{self, OutputDir};
use aloe_record::digest::Hasher;
use aloe_record::{Cancel, Progress};
use aloe_tensor::Isa;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, TryLockError};

/// What a merge did: figures for the record and the card. Holds no time and no path beside the names of the configuration.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct MergeReport {
    /// The name of the document, in a file of several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// mergekit's name of the method.
    pub method: String,
    /// What was computed in.
    pub dtype: String,
    /// What `model/` holds.
    pub out_dtype: String,
    /// Seed of the masks.
    pub seed: u64,
    /// `density`, `l1` or `none`: how kept changes were scaled up; where tensors differ, `mixed` and all that occur.
    pub rescale: String,
    /// The base model.
    pub base: Option<String>,
    /// The other models, in order.
    pub models: Vec<String>,
    /// Elements of the result.
    pub n_parameters: u64,
    /// Per model: norm of its task vector over the norm of the base, over all tensors. Empty where the base is all zeros.
    pub relative_norms: Vec<f64>,
    /// Per model: share of its task vector that was kept.
    pub kept_shares: Vec<f64>,
    /// Of the elements that at least two models changed: share where all agree in direction. None if there are no such elements.
    pub sign_agreement: Option<f64>,
    /// The figures per tensor; empty where there is no base model to take differences to, or the method looks at none.
    pub tensors: Vec<TensorStats>,
    /// What the user should know.
    pub notes: Vec<String>,
    /// The merges of earlier documents that this one uses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub earlier: Vec<MergeReport>,
}

/// Merges into the folder `out`: `model/`, with `master/` where asked for, `merge.json` (the report) and `report.html`. All documents are
/// planned and checked before the first is merged.
pub fn merge(
    config: &MergeConfig,
    out: &Path,
    options: &MergeOptions,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<MergeReport> {
    let checked = plan(config, options)?;
    checked.check_disk(out, options)?;
    let earlier = checked.earlier.iter().map(MergePlan::n_parameters).sum::<u64>();
    progress.set_total(checked.n_parameters() + earlier);
    if checked.earlier.is_empty() {
        return document(config, &checked, Vec::new(), out, options, progress, cancel);
    }
    let mut options = options.clone();
    let mut reports = Vec::new();
    for (index, earlier) in config.earlier.iter().enumerate() {
        let folder = out.join(EARLIER).join(index.to_string());
        let own = MergeOptions { write_master: false, hashed: false, ..options.clone() };
        reports.push(document(earlier, &plan(earlier, &own)?, Vec::new(), &folder, &own, progress, cancel)?);
        options.folders.insert(earlier.name.clone().unwrap_or_default(), folder.join("model"));
    }
    let planned = plan(config, &options)?;
    let report = document(config, &planned, reports, out, &options, progress, cancel)?;
    let folder = out.join(EARLIER);
    std::fs::remove_dir_all(&folder).map_err(Error::io("remove", &folder))?;
    Ok(report)
}

/// Where the results of earlier documents stand until the last one is merged.
const EARLIER: &str = "earlier";

/// Merges one document, whose inputs are all there.
fn document(
    config: &MergeConfig,
    plan: &MergePlan,
    earlier: Vec<MergeReport>,
    out: &Path,
    options: &MergeOptions,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<MergeReport> {
    let mut report = figures::report(config, plan, options);
    for earlier in &earlier {
        let name = earlier.name.as_deref().unwrap_or("an earlier document");
        report.notes.extend(earlier.notes.iter().map(|note| format!("{name}: {note}")));
    }
    report.earlier = earlier;
    let mut outputs = Outputs::create(out, plan, options)?;
    let hashing = Hashing::of(plan, options, &outputs.places(options))?;
    let mut found = vec![None; plan.tensors.len()];
    for at in hashing.order(plan.tensors.len()) {
        cancel.check()?;
        found[at] = outputs.write(config, plan, at, &hashing, cancel)?;
        progress.advance(plan.tensors[at].spec.n_elements() as u64);
    }
    report.tensors = found.into_iter().flatten().collect();
    hashing.catch_up()?;
    figures::summarise(&mut report);
    let mut beside = plan.files.clone();
    beside.push(("mergekit_config.yml".into(), config.text.clone().into_bytes()));
    beside.push(("README.md".into(), card::readme(config, &report).into_bytes()));
    outputs.flusher.finish()?;
    outputs.model.finish(&beside)?;
    if let Some(master) = outputs.master {
        master.finish(&plan.files)?;
    }
    hashing.finish()?;
    atomic::write_json(&out.join("merge.json"), &report)?;
    crate::report::write(config, &report, &out.join("report.html"))?;
    Ok(report)
}

/// [`merge`] into a folder that appears when it is complete. A merge that is refused or fails leaves nothing; a killed one leaves a
/// partial folder under another name that the next one replaces.
pub fn merge_folder(
    config: &MergeConfig,
    out: &Path,
    options: &MergeOptions,
    progress: &Progress,
    cancel: &Cancel,
) -> Result<MergeReport> {
    let folder = OutputDir::fresh(out)?;
    match merge(config, folder.path(), options, progress, cancel) {
        Ok(report) => {
            folder.commit()?;
            Ok(report)
        }
        Err(error) => {
            atomic::remove_folder(folder.path())?;
            Err(error)
        }
    }
}

/// One tensor of the result as f32 values of the merge dtype, and its figures: what `merge` writes, without writing.
pub fn merge_tensor(
    config: &MergeConfig,
    plan: &MergePlan,
    tensor: &PlannedTensor,
) -> Result<(Vec<f32>, Option<TensorStats>)> {
    let group = plan.group(tensor)?;
    let (values, stats) = merge_group(config.method, &group)?;
    if !is_finite(&values) || stats.as_ref().is_some_and(|stats| !stats.is_finite()) {
        return Err(non_finite(&group, plan, tensor)?);
    }
    Ok((values, stats.map(|stats| figures::by_model(config, plan, tensor, stats))))
}

/// The digest of one tensor of the result as its file will hold it (SHA-256 of its bytes in `out_dtype`), and its figures: tile by tile
/// within the plan's memory, without writing.
pub fn tensor_digest(
    config: &MergeConfig,
    plan: &MergePlan,
    tensor: &PlannedTensor,
) -> Result<(String, Option<TensorStats>)> {
    let group = plan.group(tensor)?;
    let kernel = method::prepare(config.method, &group)?;
    let mut hasher = Hasher::default();
    let mut sums = Vec::new();
    for batch in tiles(group.n_elements()).chunks(group.threads.max(1)) {
        let parts = run(group.threads, batch.to_vec(), |range| {
            let mut values = Scratch::of(range.len());
            let sums = kernel.tile(&group, range.start, &mut values)?;
            if !is_finite(&values) {
                return Err(non_finite(&group, plan, tensor)?);
            }
            let dtype = plan.out_dtype.stored();
            let mut bytes = vec![0; range.len() * dtype.size_bytes()];
            encode(dtype, &tensor.spec.hf_name, range.start, &values, &mut bytes)?;
            Ok((bytes, sums))
        })?;
        for (bytes, of_tile) in parts {
            hasher.update(&bytes);
            sums.push(of_tile);
        }
    }
    let stats = method::collect(sums, &group);
    if stats.as_ref().is_some_and(|stats| !stats.is_finite()) {
        return Err(non_finite(&group, plan, tensor)?);
    }
    Ok((hasher.hex(), stats.map(|stats| figures::by_model(config, plan, tensor, stats))))
}

/// Tiles written at once: those of a few inputs and of the result lie in the second-level cache while they are merged and hashed.
pub(crate) const WRITTEN_TOGETHER: usize = 4;
/// Pieces that wait to be written while another thread writes, before one waits for its turn.
pub(crate) const QUEUED: usize = 4;

/// The folders being written.
struct Outputs {
    model: CheckpointWriter,
    master: Option<CheckpointWriter>,
    flusher: Flusher,
}

impl Outputs {
    fn create(out: &Path, plan: &MergePlan, options: &MergeOptions) -> Result<Self> {
        let create = |name: &str, dtype: FileDtype| -> Result<CheckpointWriter> {
            let folder = out.join(name);
            Ok(CheckpointWriter::create_sharded(&folder, &plan.config, dtype, options.max_shard_bytes)?)
        };
        let master = options.write_master.then(|| create("master", FileDtype::F32)).transpose()?;
        Ok(Self { model: create("model", plan.out_dtype.stored())?, master, flusher: Flusher::default() })
    }

    /// Where the tensors stand in files that are to be hashed, those of `model/` first.
    fn places(&self, options: &MergeOptions) -> Vec<TensorPlace> {
        let writers = [Some(&self.model), self.master.as_ref()].into_iter().flatten();
        writers.filter(|_| options.hashed).flat_map(CheckpointWriter::places).collect()
    }

    /// Merges one tensor: what the method must know of the whole, then tile after tile from the inputs to the files.
    fn write(
        &mut self,
        config: &MergeConfig,
        plan: &MergePlan,
        at: usize,
        hashing: &Hashing,
        cancel: &Cancel,
    ) -> Result<Option<TensorStats>> {
        let tensor = &plan.tensors[at];
        let name = &tensor.spec.hf_name;
        let mut slots = vec![self.model.slot(name)?];
        if let Some(master) = &mut self.master {
            slots.push(master.slot(name)?);
        }
        let group = plan.group(tensor)?;
        let kernel = method::prepare(config.method, &group)?;
        // From here on every byte is read once, in order; what passes over the whole came before.
        let places = hashing.begin(at, name);
        let tiles = tiles(group.n_elements());
        let n_together = (tiles.len() / (8 * group.threads.max(1))).clamp(1, WRITTEN_TOGETHER);
        let merged = |tiles: &[Range<usize>]| {
            cancel.check()?;
            let n_elements: usize = tiles.iter().map(ExactSizeIterator::len).sum();
            let mut pieces: Vec<Vec<u8>> =
                slots.iter().map(|slot| buffer(n_elements * slot.dtype().size_bytes())).collect();
            let mut sums = Vec::with_capacity(tiles.len());
            for range in tiles {
                let mut values = Scratch::of(range.len());
                sums.push(kernel.tile(&group, range.start, &mut values)?);
                if !is_finite(&values) {
                    return Err(non_finite(&group, plan, tensor)?);
                }
                for (slot, bytes) in slots.iter().zip(&mut pieces) {
                    let at = |element: usize| (element - tiles[0].start) * slot.dtype().size_bytes();
                    encode(slot.dtype(), name, range.start, &values, &mut bytes[at(range.start)..at(range.end)])?;
                }
                if group.threads <= 1 {
                    deliver(1, Vec::new());
                }
            }
            let pieces: Vec<Arc<Vec<u8>>> = pieces.into_iter().map(Arc::new).collect();
            hash(&slots, &places, tiles[0].start, &pieces, group.threads);
            Ok((tiles[0].start, pieces, sums))
        };
        let parts = write_all(&slots, group.threads, tiles.chunks(n_together).collect(), merged)?;
        hashing.end(at, name)?;
        self.flusher.written(slots);
        let stats = method::collect(parts, &group);
        // A mask may have dropped the element that is not finite.
        if stats.as_ref().is_some_and(|stats| !stats.is_finite()) {
            return Err(non_finite(&group, plan, tensor)?);
        }
        Ok(stats.map(|stats| figures::by_model(config, plan, tensor, stats)))
    }
}

/// Hands what was read for some tiles, and their own bytes from the element `start` on, to the digests of their files.
fn hash(slots: &[TensorSlot], places: &[Place], start: usize, pieces: &[Arc<Vec<u8>>], threads: usize) {
    let outputs = slots.iter().zip(places).zip(pieces).map(|((slot, (file, tensor)), bytes)| {
        let at = tensor.start + (start * slot.dtype().size_bytes()) as u64;
        (file.clone(), at, bytes.clone())
    });
    deliver(threads, outputs.filter(|(file, at, bytes)| file.wants(&(*at..at + bytes.len() as u64))).collect());
}

/// Bytes of some tiles of a tensor, one piece per slot, from the element where they begin; and the figures of these tiles.
type Merged = (usize, Vec<Arc<Vec<u8>>>, Vec<Option<TileSums>>);

/// Bytes of some tiles, one piece per slot, from the element where they begin.
type Written = (usize, Vec<Arc<Vec<u8>>>);

/// What is merged and not written yet. A file takes one writer at a time, and the kernel lets a second one spin: whoever brings something writes
/// what waits, unless another thread is at it. No thread of its own does: it would take the place of one that merges.
#[derive(Default)]
struct Queue {
    waiting: Mutex<Vec<Written>>,
    turn: Mutex<()>,
}

impl Queue {
    fn bring(&self, slots: &[TensorSlot], start: usize, pieces: Vec<Arc<Vec<u8>>>) -> Result<()> {
        let n_waiting = {
            let mut waiting = locked(&self.waiting);
            waiting.push((start, pieces));
            waiting.len()
        };
        let turn = match self.turn.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::Poisoned(turn)) => turn.into_inner(),
            Err(TryLockError::WouldBlock) if n_waiting < QUEUED => return Ok(()),
            Err(TryLockError::WouldBlock) => locked(&self.turn),
        };
        let written = self.write(slots);
        drop(turn);
        written
    }

    /// Writes what waits now, in the turn of the caller or at the end.
    fn write(&self, slots: &[TensorSlot]) -> Result<()> {
        for (start, pieces) in std::mem::take(&mut *locked(&self.waiting)) {
            slots.iter().zip(&pieces).try_for_each(|(slot, bytes)| slot.write_at(start, bytes))?;
            pieces.into_iter().filter_map(Arc::into_inner).for_each(keep_buffer);
        }
        Ok(())
    }
}

/// Merges the jobs on `threads` threads and writes what they give.
fn write_all<'a>(
    slots: &[TensorSlot],
    threads: usize,
    jobs: Vec<&'a [Range<usize>]>,
    merged: impl Fn(&'a [Range<usize>]) -> Result<Merged> + Sync,
) -> Result<Vec<Option<TileSums>>> {
    let queue = Queue::default();
    let parts = run(threads, jobs, |tiles| {
        let (start, pieces, sums) = merged(tiles)?;
        queue.bring(slots, start, pieces)?;
        Ok(sums)
    })?;
    queue.write(slots)?;
    Ok(parts.into_iter().flatten().collect())
}

/// A tile's bytes in a file's type; refuses what overflows there.
fn encode(dtype: FileDtype, name: &str, start: usize, values: &[f32], bytes: &mut [u8]) -> Result<()> {
    let overflowed = match dtype {
        FileDtype::F16 => encode_halves(values, bytes, f32_to_f16, 0x7c00),
        FileDtype::BF16 => encode_halves(values, bytes, finite_to_bf16, 0x7f80),
        _ => {
            let places = bytes.as_chunks_mut::<4>().0.iter_mut();
            places.zip(values).for_each(|(place, value)| *place = value.to_le_bytes());
            None
        }
    };
    if let Some(index) = overflowed {
        let reason = format!("element {} is {:e}, beyond the range of {}", start + index, values[index], dtype.name());
        return Err(Error::tensor(name, "merged", reason));
    }
    Ok(())
}

/// The halves that `half` makes of finite values; the first that became infinite.
#[inline(always)]
fn encode_halves(values: &[f32], bytes: &mut [u8], half: impl Fn(f32) -> u16 + Copy, infinity: u16) -> Option<usize> {
    let overflows = Isa::wide(
        #[inline(always)]
        || {
            let mut overflows = false;
            for (place, value) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(values) {
                let bits = half(*value);
                overflows |= bits & infinity == infinity;
                *place = bits.to_le_bytes();
            }
            overflows
        },
    );
    overflows.then(|| values.iter().position(|value| half(*value) & infinity == infinity)).flatten()
}

/// [`aloe_model::float::f32_to_bf16`] of what is not NaN, which a merge refuses before.
#[inline(always)]
fn finite_to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

/// Whether no value is NaN or infinite.
fn is_finite(values: &[f32]) -> bool {
    Isa::wide(
        #[inline(always)]
        || first_non_finite(values).is_none(),
    )
}

/// Names the model whose weights are NaN or infinite, where the result is.
fn non_finite(group: &Group, plan: &MergePlan, tensor: &PlannedTensor) -> Result<Error> {
    let name = &tensor.spec.hf_name;
    for (model, source) in plan.sources_of(tensor).zip(&group.sources) {
        for range in tiles(group.n_elements()) {
            let mut values = vec![0.0f32; range.len()];
            source.read(range.start, MergeDtype::Float32, &mut values)?;
            if let Some((at, value)) = first_non_finite(&values) {
                return Ok(Error::tensor(name, &model.name, format!("element {} is {value}", range.start + at)));
            }
        }
    }
    Ok(Error::tensor(name, "merged", "the weights are so large that the result overflows"))
}

#[cfg(test)]
mod tests;
