//! Recipes.
pub(crate) mod raw;
