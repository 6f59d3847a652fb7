//! Run folders as a user has them: planned, run on this machine and under a real Slurm, broken in every way that a cluster breaks things.
//!
//! The chain is tiny.toml of road.rs (stories260K): SFT twice, a merge, DPO, evaluations, red-teaming, the card. What it must give is
//! what `aloe run` gives on the recipe itself.

mod bundle;
mod chain;
mod data_shards;
mod engines;
mod faults;
mod held;
mod limits;
mod made_rows;
mod planned;
mod rig;
mod servers;
mod shards;
mod shipped;
mod starts;
