//! The random masks of DARE: each element is kept with probability `density`, whatever its neighbours, threads or shards.

use crate::config::split_adapter;
use aloe_record::CounterRng;
use aloe_tensor::Isa;
use std::ops::Range;

/// What every stage calls the folder of its model, of its f32 weights and of its adapter.
const OF_STAGES: [&str; 3] = ["model", "master", "adapter"];

/// Blocks of the generator side by side.
const LANES: usize = 128;

/// The random mask of one tensor of one model.
#[derive(Debug)]
pub(crate) struct Mask {
    rng: CounterRng,
    /// Kept where the 32 random bits lie below it.
    bound: u64,
}

/// What 32 random bits must lie below to happen with this probability.
pub(crate) fn bound(probability: f64) -> u64 {
    (probability * 4_294_967_296.0).round() as u64
}

impl Mask {
    /// The mask of `tensor` for the model of this [`mask_key`].
    pub(crate) fn new(seed: u64, tensor: &str, model: &str, density: f64) -> Self {
        Self { rng: CounterRng::new(seed, &format!("dare-mask/{tensor}/{model}"), 0), bound: bound(density) }
    }

    /// Whether each element from `start` on is kept; element i looks at value i of the stream.
    pub(crate) fn fill(&self, start: usize, kept: &mut [bool]) {
        Isa::wide(
            #[inline(always)]
            || self.fill_in_groups(start, kept),
        );
    }

    #[inline(always)]
    fn fill_in_groups(&self, start: usize, kept: &mut [bool]) {
        let (head, rest) = kept.split_at_mut(kept.len().min(start.next_multiple_of(4) - start));
        self.fill_singly(start, head);
        let mut block = (start + head.len()) as u64 / 4;
        let (groups, rest) = rest.as_chunks_mut::<{ 4 * LANES }>();
        // A bound of 2^32 keeps everything and one of 0 nothing; neither fits the comparison of 32 bits below.
        let (last, none) = (self.bound.saturating_sub(1) as u32, self.bound == 0);
        for group in groups {
            let values = self.rng.blocks::<LANES>(block);
            // The four bytes of a block in one word, so that the lanes need not be taken apart.
            let mut words = [0u32; LANES];
            for (lane, word) in words.iter_mut().enumerate() {
                let byte = |at: usize| u32::from((values[at][lane] <= last) & !none) << (8 * at);
                *word = byte(0) | byte(1) | byte(2) | byte(3);
            }
            for (kept, word) in group.as_chunks_mut::<4>().0.iter_mut().zip(words) {
                *kept = word.to_le_bytes().map(|byte| byte != 0);
            }
            block += LANES as u64;
        }
        self.fill_singly(block as usize * 4, rest);
    }

    fn fill_singly(&self, start: usize, kept: &mut [bool]) {
        for (offset, kept) in kept.iter_mut().enumerate() {
            *kept = u64::from(self.rng.at((start + offset) as u64)) < self.bound;
        }
    }
}

/// Who a model is to its masks: its name among the models of its merge ([`mask_names`]), and the name of the document in a file of several. Not
/// its place: models may change places, and two merges share a mask only for a model of one name. Not its folder: the masks are the same
/// wherever the model lies. The length stands before the document, so that no two keys are equal.
pub fn mask_key(document: Option<&str>, model: &str) -> String {
    let document = document.unwrap_or("");
    format!("{}:{document}/{model}", document.len())
}

/// The names of a merge's models as their masks know them, no two alike: of a path its last component, so that `m/a`, `./m/a`, `/data/m/a/` and
/// `org/a` have one mask, with as many components as tell it from the other models; of `model+adapter` both parts so. A stage's `runs/a/model`,
/// `runs/a/master` and `runs/a/adapter` are `a`: every stage calls them so, and two stages' models shall not share a mask; where that tells no two apart,
/// `a/model` and `a/master`. Models that differ in the writing of one path alone keep it, behind a `./` that no other name begins with.
pub fn mask_names(names: &[&str]) -> Vec<String> {
    let whole: Vec<Vec<Vec<String>>> =
        names.iter().map(|name| split_adapter(name).into_iter().map(components).collect()).collect();
    let of_stages: Vec<Vec<Vec<String>>> =
        whole.iter().map(|parts| parts.iter().map(|part| without_stage_folder(part)).collect()).collect();
    let told = told_apart(&of_stages, 1).into_iter().zip(told_apart(&whole, 2));
    let found: Vec<Option<String>> = told.map(|(short, long)| short.or(long)).collect();
    let is_shared = |at: usize| (0..found.len()).any(|other| other != at && found[other] == found[at]);
    let name = |at: usize| match &found[at] {
        Some(name) if !is_shared(at) => name.clone(),
        _ => format!("./{}", names[at]),
    };
    (0..names.len()).map(name).collect()
}

/// Of each model the last components, at least `least`, that no other model ends with; `None` of one that has no such.
fn told_apart(models: &[Vec<Vec<String>>], least: usize) -> Vec<Option<String>> {
    let last = |model: usize, n: usize| -> String {
        let of_part = |part: &Vec<String>| part[part.len().saturating_sub(n)..].join("/");
        models[model].iter().map(of_part).collect::<Vec<_>>().join("+")
    };
    let longest = models.iter().flatten().map(Vec::len).max().unwrap_or(0);
    let is_alone =
        |model: usize, n: usize| (0..models.len()).all(|other| other == model || last(other, n) != last(model, n));
    let name = |model: usize| (least..=longest).find(|&n| is_alone(model, n)).map(|n| last(model, n));
    (0..models.len()).map(name).collect()
}

/// The components of a path that name something. Where these are none but a stage's, as of `./model`, those of the folder that it is; of a path
/// that has none even so, such as `/`, the path itself.
fn components(path: &str) -> Vec<String> {
    let written = plain(path);
    let is_of_stages = written.iter().all(|part| OF_STAGES.contains(&part.as_str()));
    let found = match std::path::absolute(path) {
        Ok(folder) if is_of_stages && folder.is_dir() => plain(&folder.to_string_lossy()),
        _ => written,
    };
    if found.is_empty() { vec![path.to_owned()] } else { found }
}

/// A path's components without those that name nothing; `..` takes away the one before it.
fn plain(path: &str) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(found.pop()),
            part => found.push(part.to_owned()),
        }
    }
    found
}

/// A path without what stages call their folders at its end, as long as something is left.
fn without_stage_folder(path: &[String]) -> Vec<String> {
    let named = path.iter().rposition(|part| !OF_STAGES.contains(&part.as_str()));
    path[..named.map_or(path.len(), |at| at + 1)].to_vec()
}

/// The DARE mask that merging with `seed` uses for elements `range` of `tensor`, for the model of this [`mask_key`]: anyone can check one
/// tensor without merging.
pub fn dare_mask(seed: u64, tensor: &str, model: &str, density: f64, range: Range<usize>) -> Vec<bool> {
    let mut kept = vec![true; range.len()];
    if density < 1.0 {
        Mask::new(seed, tensor, model, density).fill(range.start, &mut kept);
    }
    kept
}
