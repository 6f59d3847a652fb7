//! One reader per data set: a row of its published layouts to a [`crate::Question`].

pub mod careqa;
pub mod headqa;
pub mod medmcqa;
pub mod medqa;
pub mod mmlu;
pub mod own;
pub mod prompt_engine;
pub mod pubmedqa;

#[cfg(test)]
mod tests;
