//! A weight matrix as the kernels want it: packed once, multiplied often.
//!
//! The packed form serves `linear` and the row lookup of a tied embedding; the form for `linear_grad_input` is made of it for each
//! product and dropped: a product of hundreds of rows takes far longer, and a second copy would cost the memory. `weight` unpacks.

use crate::lora::Lora;
use crate::pack::{Panels, Source};
use crate::pool::SharedMut;
use crate::quant::{BlockFormat, BlockPanels};
use crate::tensor::f32_from_bf16;
use crate::{Device, Dtype, Tensor};
use std::ops::Range;

/// The packed weight.
#[derive(Clone, Debug)]
pub(crate) enum Packed {
    Dense(Panels),
    Blocks(BlockPanels),
}

/// What a product rounds its input to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OperandKind {
    Dense(Dtype),
    Blocks,
}

/// The weight `[O, K]` and bias of `y = x W^T + b`, with a low-rank update where one is trained.
#[derive(Clone, Debug)]
pub struct Linear {
    out_features: usize,
    in_features: usize,
    packed: Packed,       // lanes O, units or blocks over K
    bias: Option<Tensor>, // [O] f32
    lora: Option<Box<Lora>>,
}

impl Linear {
    /// From a weight `[O, K]`, f32 or bf16, and an optional bias `[O]`; packs on this thread.
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self::new_on(&Device::cpu(1), weight, bias)
    }

    /// The same, packing on the device's threads.
    pub fn new_on(device: &Device, weight: Tensor, bias: Option<Tensor>) -> Self {
        let &[out_features, in_features] = weight.shape() else { panic!("weight {:?}", weight.shape()) };
        let mut forward = Panels::kept(weight.dtype(), out_features, in_features);
        forward.fill_from_rows(device, source(&weight), in_features);
        Self::packed_as(Packed::Dense(forward), (out_features, in_features), bias)
    }

    /// A copy of `dtype` to train with of an f32 master `[O, K]`; in bf16 rounded as [`Self::update_from_f32`] does.
    pub fn of_master(device: &Device, master: &Tensor, dtype: Dtype, bias: Option<Tensor>) -> Self {
        let &[out_features, in_features] = master.shape() else { panic!("master {:?}", master.shape()) };
        let mut forward = Panels::new(dtype, out_features, in_features);
        forward.fill_from_rows(device, Source::Masters(master.as_f32()), in_features);
        Self::packed_as(Packed::Dense(forward), (out_features, in_features), bias)
    }

    /// From a bf16 weight `[O, K]` as its file holds it, little-endian: mapped bytes go straight into the packed form.
    pub fn from_bf16_bytes(device: &Device, [o, k]: [usize; 2], bytes: &[u8], bias: Option<Tensor>) -> Self {
        let mut forward = Panels::kept(Dtype::Bf16, o, k);
        forward.fill_from_rows(device, Source::Bf16Bytes(bytes), k);
        Self::packed_as(Packed::Dense(forward), (o, k), bias)
    }

    /// As [`Self::from_bf16_bytes`], in twelve bits a number where the device's kernels are faster so and the numbers allow it (`narrow.rs`):
    /// the same numbers and products, but never trained.
    pub fn narrow_from_bf16_bytes(device: &Device, [o, k]: [usize; 2], bytes: &[u8], bias: Option<Tensor>) -> Self {
        Self::narrow_or_plain(device, Source::Bf16Bytes(bytes), [o, k], bias)
    }

    /// The same of a bf16 weight `[O, K]`.
    pub fn narrow_of(device: &Device, weight: &Tensor, bias: Option<Tensor>) -> Self {
        let &[o, k] = weight.shape() else { panic!("weight {:?}", weight.shape()) };
        Self::narrow_or_plain(device, Source::Bf16(weight.as_bf16_bits()), [o, k], bias)
    }

    fn narrow_or_plain(device: &Device, source: Source, [o, k]: [usize; 2], bias: Option<Tensor>) -> Self {
        let narrow = device.isa().pairs_bf16().then(|| Panels::narrowed(device, source, (o, k))).flatten();
        let panels = narrow.unwrap_or_else(|| {
            let mut plain = Panels::kept(Dtype::Bf16, o, k);
            plain.fill_from_rows(device, source, k);
            plain
        });
        Self::packed_as(Packed::Dense(panels), (o, k), bias)
    }

    /// Whether the weight is held in twelve bits a number.
    pub fn is_narrow(&self) -> bool {
        matches!(&self.packed, Packed::Dense(panels) if panels.is_narrow())
    }

    /// Of panels made by a test.
    #[cfg(test)]
    pub(crate) fn of_panels(panels: Panels, shape: (usize, usize), bias: Option<Tensor>) -> Self {
        Self::packed_as(Packed::Dense(panels), shape, bias)
    }

    fn packed_as(packed: Packed, (out_features, in_features): (usize, usize), bias: Option<Tensor>) -> Self {
        if let Some(bias) = &bias {
            assert_eq!(bias.shape(), [out_features], "bias against weight [{out_features}, {in_features}]");
        }
        let bias = bias.map(|b| b.cast(Dtype::F32));
        Self { out_features, in_features, packed, bias, lora: None }
    }

    /// From stored blocks, one slice of bytes per row of the weight `[rows.len(), in_features]`: used as they are, laid out anew.
    pub fn from_blocks(
        device: &Device,
        format: BlockFormat,
        in_features: usize,
        rows: &[&[u8]],
        bias: Option<Tensor>,
    ) -> Self {
        assert!(
            in_features.is_multiple_of(format.block_len()),
            "{in_features} elements in blocks of {}",
            format.name()
        );
        let shape = (rows.len(), in_features);
        Self::packed_as(Packed::Blocks(BlockPanels::new(device, format, shape, rows)), shape, bias)
    }

    /// Rounds a weight `[O, K]` to blocks: `Q8_0` or `Q4_0`, for `--quantize`. `read` fills row `o` of the weight `[K]`; it is called
    /// from all threads, once a row, so that the whole matrix is never held in f32.
    pub fn quantize(
        device: &Device,
        [o, k]: [usize; 2],
        read: &(dyn Fn(usize, &mut [f32]) + Sync),
        format: BlockFormat,
        bias: Option<Tensor>,
    ) -> Self {
        Self::packed_as(Packed::Blocks(BlockPanels::encode(device, format, (o, k), read)), (o, k), bias)
    }

    /// O, the number of rows of the weight.
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// K, the number of columns of the weight.
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// Type of the operands of the product; bf16 for a weight in blocks, through which gradients flow in bf16.
    pub fn dtype(&self) -> Dtype {
        match &self.packed {
            Packed::Dense(panels) => panels.dtype,
            Packed::Blocks(_) => Dtype::Bf16,
        }
    }

    /// The low-rank update, if there is one.
    pub fn lora(&self) -> Option<&Lora> {
        self.lora.as_deref()
    }

    /// The low-rank update, to be changed.
    pub fn lora_mut(&mut self) -> Option<&mut Lora> {
        self.lora.as_deref_mut()
    }

    /// Puts a low-rank update beside the weight, or takes it away.
    pub fn set_lora(&mut self, lora: Option<Lora>) {
        if let Some(lora) = &lora {
            let shape = [lora.b().out_features(), lora.a().in_features()];
            assert_eq!(shape, [self.out_features, self.in_features], "an update of another shape than the weight");
        }
        self.lora = lora.map(Box::new);
    }

    /// The block format, when the weight is stored in one.
    pub fn block_format(&self) -> Option<BlockFormat> {
        match &self.packed {
            Packed::Dense(_) => None,
            Packed::Blocks(panels) => Some(panels.format),
        }
    }

    /// Bytes of the packed weight, the bias and the update.
    pub fn nbytes(&self) -> usize {
        let packed = match &self.packed {
            Packed::Dense(panels) => panels.nbytes(),
            Packed::Blocks(panels) => panels.nbytes(),
        };
        packed + self.bias.as_ref().map_or(0, Tensor::nbytes) + self.lora().map_or(0, Lora::nbytes)
    }

    /// The bias `[O]`, f32.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// A copy of the weight `[O, K]`, unpacked.
    pub fn weight(&self) -> Tensor {
        let shape = [self.out_features, self.in_features];
        let lanes = 0..self.out_features;
        match &self.packed {
            Packed::Dense(panels) if panels.dtype == Dtype::Bf16 => {
                let row = |o| panels.lane_units(o).flat_map(|u| [u as u16, (u >> 16) as u16]).take(self.in_features);
                Tensor::from_bf16_bits(&shape, lanes.flat_map(row).collect())
            }
            Packed::Dense(panels) => {
                Tensor::from_f32(&shape, lanes.flat_map(|o| panels.lane_units(o)).map(f32::from_bits).collect())
            }
            Packed::Blocks(panels) => {
                let mut values = vec![0.0; self.out_features * self.in_features];
                values.chunks_exact_mut(self.in_features.max(1)).enumerate().for_each(|(o, row)| panels.row(o, row));
                Tensor::from_f32(&shape, values)
            }
        }
    }

    /// Rows of the weight as f32 `[N, K]`: the embedding of `ids` when the head is tied to it.
    pub fn rows(&self, device: &Device, ids: &[u32]) -> Tensor {
        let k = self.in_features;
        let mut out = vec![0.0f32; ids.len() * k];
        let rows = SharedMut::new(&mut out);
        device.for_each(ids.len(), &|n| {
            // SAFETY: each index has its own row.
            let row = unsafe { rows.slice(n * k, k) };
            let lane = ids[n] as usize;
            assert!(lane < self.out_features, "id {lane} of {} rows", self.out_features);
            match &self.packed {
                Packed::Dense(panels) => dense_row(panels, lane, row),
                Packed::Blocks(panels) => panels.row(lane, row),
            }
        });
        Tensor::from_f32(&[ids.len(), k], out)
    }

    /// Replaces the weight by f32 masters `[O * K]`, packing included. In bf16 each number is rounded up or down by a fixed threshold of its
    /// own (`dither.rs`), so that steps below half a bf16 gap are seen. A weight in blocks is never trained.
    pub fn update_from_f32(&mut self, device: &Device, masters: &[f32]) {
        let Packed::Dense(forward) = &mut self.packed else { panic!("an update of a weight in blocks") };
        forward.fill_from_rows(device, Source::Masters(masters), self.in_features);
    }

    /// Replaces the bias `[O]`.
    pub fn set_bias(&mut self, bias: &[f32]) {
        assert_eq!(bias.len(), self.out_features);
        self.bias = Some(Tensor::from_f32(&[bias.len()], bias.to_vec()));
    }

    /// Where a panel of the packed weight begins.
    pub(crate) fn panel_start(&self, panel: usize) -> *const u8 {
        match &self.packed {
            Packed::Dense(panels) => panels.as_ptr().wrapping_add(panel * panels.panel_stride()).cast(),
            Packed::Blocks(panels) => panels.panel(panel),
        }
    }

    pub(crate) fn packed(&self) -> &Packed {
        &self.packed
    }

    /// A narrow weight's panels as plain ones, for one product of `n` rows that are so many that widening it once costs less than in each
    /// task; but not those of a weight that is too large to be found in a cache again.
    pub(crate) fn widened_for(&self, device: &Device, n: usize) -> Option<Panels> {
        const MANY_ROWS: usize = 256;
        const MOST_NUMBERS: usize = 4 << 20;
        match &self.packed {
            Packed::Dense(panels)
                if panels.is_narrow() && n >= MANY_ROWS && panels.lanes * self.in_features <= MOST_NUMBERS =>
            {
                Some(panels.widened(device))
            }
            _ => None,
        }
    }

    pub(crate) fn operand(&self) -> OperandKind {
        match &self.packed {
            Packed::Dense(panels) => OperandKind::Dense(panels.dtype),
            Packed::Blocks(_) => OperandKind::Blocks,
        }
    }

    /// Rows `part` of the weight packed for gradients of the input: lanes K, units over the rows. `part` starts at a multiple of 32.
    pub(crate) fn backward(&self, device: &Device, part: Range<usize>) -> Panels {
        match &self.packed {
            Packed::Dense(panels) => crate::transpose::transposed(device, panels, part, self.in_features),
            Packed::Blocks(panels) => panels.widened(device, part),
        }
    }
}

fn dense_row(panels: &Panels, lane: usize, row: &mut [f32]) {
    let units = panels.lane_units(lane);
    match panels.dtype {
        Dtype::F32 => row.iter_mut().zip(units).for_each(|(r, u)| *r = f32::from_bits(u)),
        Dtype::Bf16 => row.chunks_mut(2).zip(units).for_each(|(r, u)| {
            r[0] = f32_from_bf16(u as u16);
            if let Some(r) = r.get_mut(1) {
                *r = f32_from_bf16((u >> 16) as u16);
            }
        }),
    }
}

fn source(tensor: &Tensor) -> Source<'_> {
    match tensor.dtype() {
        Dtype::F32 => Source::F32(tensor.as_f32()),
        Dtype::Bf16 => Source::Bf16(tensor.as_bf16_bits()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aloe_record::CounterRng;

    #[test]
    fn a_weight_from_a_files_bytes_is_the_weight_from_its_numbers_at_any_address() {
        let device = Device::cpu(2);
        for (o, k) in [(33, 7), (64, 96), (5, 1)] {
            let bits: Vec<u16> = (0..o * k).map(|i| CounterRng::new(1, "w", i as u64).at(0) as u16 & 0x7f7f).collect();
            let mut file = vec![9u8];
            file.extend(bits.iter().flat_map(|b| b.to_le_bytes()));
            let found = Linear::from_bf16_bytes(&device, [o, k], &file[1..], None);
            assert_eq!(found.weight().to_bf16_bits(), bits);
            assert_eq!(found.dtype(), Dtype::Bf16);
        }
    }
}
