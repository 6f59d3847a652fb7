//! Tensors, kernels and the thread pool: everything that touches numbers in bulk, and all the `unsafe` code of the workspace.
//!
//! It knows no model: shapes come from the caller, and a wrong shape is the caller's bug (an assertion that prints both).
//! Reading order: `tensor` (what is stored), `device` and `pool` (who computes), `linear` (weights as the kernels want them),
//! `ops` (one file per operation), `simd` and `gemm` (how it is fast), `reference` (plain twins that judge the fast ones), `peak`
//! (what the machine could do).
//!
//! Promises, tested in `ops`: a result does not depend on the number of threads; each output of a matrix product is one f32
//! chain over K in fixed order, whatever the number of rows; a query's attention does not depend on its batch mates.
#![expect(
    unsafe_code,
    reason = "the one crate that may: vector instructions, a scoped thread pool and a file map need it"
)]
#![expect(
    unsafe_op_in_unsafe_fn,
    reason = "a kernel's contract stands at its head: available instructions, valid pointers; a block per load would bury the maths"
)]

mod device;
mod dither;
mod error;
mod gemm;
mod heap;
mod laps;
mod linear;
mod lora;
mod mmap;
mod narrow;
pub mod ops;
mod pack;
mod pages;
mod peak;
mod pool;
mod probe;
mod quant;
pub mod reference;
mod rounded;
mod sha256;
mod simd;
mod tensor;
#[cfg(test)]
mod testing;
mod transpose;

pub use device::{Device, Isa};
pub use dither::rounded_by_place;
pub use error::Error;
pub use heap::{Heap, give_back_freed_memory};
pub use laps::{lap, start_laps, take_laps};
pub use linear::Linear;
pub use lora::{DropoutAt, Lora, LoraDropout};
pub use mmap::Mmap;
pub use ops::SwigluRounded;
pub use ops::attention::{
    AttentionBlock, AttentionInputs, AttentionPlan, CachedSequence, KvPage, KvSegment, PageWrite, PagedSequence,
    RoundedAttention,
};
pub use ops::loss::{CrossEntropy, CrossEntropyInputs, HeadGrad};
pub use ops::optimizer::AdamW;
pub use ops::rope::{RopeTable, Rotation};
pub use peak::{ProductKind, run_products};
pub use probe::ReadProbe;
pub use quant::BlockFormat;
pub use rounded::Rounded;
pub use sha256::{Sha256, sha256_all};
pub use tensor::{Dtype, Tensor};
