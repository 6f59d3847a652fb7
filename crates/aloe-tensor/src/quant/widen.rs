//! Rows of a weight in blocks, widened to the bf16 panels through which gradients of the input flow.
//!
//! A panel's 32 lanes are the 32 elements of one block, so each panel reads one block of each row. Never the whole weight at once.

use super::BlockPanels;
use crate::pack::Panels;
use crate::{Device, Dtype};
use std::ops::Range;

impl BlockPanels {
    /// Rows `part` of the weight `[O, K]` as bf16 panels with lanes K and units over the part: values rounded once from f32.
    pub(crate) fn widened(&self, device: &Device, part: Range<usize>) -> Panels {
        assert!(part.end <= self.lanes, "rows {part:?} of {}", self.lanes);
        let mut panels = Panels::new(Dtype::Bf16, self.k, part.len());
        panels.fill_blocks(device, part.len(), &|panel, row, values| self.block(part.start + row, panel, values));
        panels
    }
}
