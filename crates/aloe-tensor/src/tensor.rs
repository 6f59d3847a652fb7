//! The opaque tensor: a shape and contiguous row-major numbers, f32 or bf16.
//!
//! Cloning shares the storage; writing to a shared tensor copies it first. It has no views and no strides: an operation that
//! wants part of a tensor says so in its own arguments.

use std::sync::Arc;

/// Number type of a tensor's elements, and of the operands of a matrix product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// IEEE single precision.
    F32,
    /// The upper half of an f32: 8 bits of significand.
    Bf16,
}

impl Dtype {
    /// Bytes of one element.
    pub fn size_bytes(self) -> usize {
        match self {
            Dtype::F32 => 4,
            Dtype::Bf16 => 2,
        }
    }
}

/// Rounds to bf16, ties to even; NaN stays NaN.
#[inline(always)]
pub(crate) fn bf16_from_f32(value: f32) -> u16 {
    // Written without a branch, so that loops over it become vector code.
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1));
    let quiet = bits | 0x0040_0000;
    ((if value.is_nan() { quiet } else { rounded }) >> 16) as u16
}

/// Exact.
#[inline(always)]
pub(crate) fn f32_from_bf16(bits: u16) -> f32 {
    f32::from_bits((bits as u32) << 16)
}

#[derive(Clone, Debug)]
enum Storage {
    F32(Arc<Vec<f32>>),
    Bf16(Arc<Vec<u16>>),
}

/// A contiguous row-major array on the host.
#[derive(Clone, Debug)]
pub struct Tensor {
    shape: Vec<usize>,
    storage: Storage,
}

impl Tensor {
    /// All zero.
    pub fn zeros(shape: &[usize], dtype: Dtype) -> Self {
        let n = shape.iter().product();
        match dtype {
            Dtype::F32 => Self::from_f32(shape, vec![0.0; n]),
            Dtype::Bf16 => Self::from_bf16_bits(shape, vec![0; n]),
        }
    }

    /// Takes the numbers over.
    pub fn from_f32(shape: &[usize], data: Vec<f32>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "shape {shape:?} against {} elements", data.len());
        Self { shape: shape.to_vec(), storage: Storage::F32(Arc::new(data)) }
    }

    /// A tensor of f32 whose elements `write` writes.
    ///
    /// # Safety
    /// `write` writes every element.
    pub(crate) unsafe fn written(shape: &[usize], write: impl FnOnce(*mut f32)) -> Self {
        let n = shape.iter().product();
        let mut data = Vec::with_capacity(n);
        write(data.as_mut_ptr());
        // SAFETY: within the capacity, and written as the caller promised.
        unsafe { data.set_len(n) };
        Self::from_f32(shape, data)
    }

    /// Takes bf16 numbers over, given as their bits.
    pub fn from_bf16_bits(shape: &[usize], data: Vec<u16>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "shape {shape:?} against {} elements", data.len());
        Self { shape: shape.to_vec(), storage: Storage::Bf16(Arc::new(data)) }
    }

    /// Rows, columns, ...
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Element type.
    pub fn dtype(&self) -> Dtype {
        match self.storage {
            Storage::F32(_) => Dtype::F32,
            Storage::Bf16(_) => Dtype::Bf16,
        }
    }

    /// Bytes of the elements.
    pub fn nbytes(&self) -> usize {
        self.len() * self.dtype().size_bytes()
    }

    /// The same elements under another shape of the same size.
    pub fn reshape(mut self, shape: &[usize]) -> Self {
        assert_eq!(shape.iter().product::<usize>(), self.len(), "reshape {:?} to {shape:?}", self.shape);
        self.shape = shape.to_vec();
        self
    }

    /// A copy of rows `start..end` of the first axis.
    pub fn slice_rows(&self, start: usize, end: usize) -> Self {
        let width: usize = self.shape[1..].iter().product();
        assert!(start <= end && end <= self.shape[0], "rows {start}..{end} of {:?}", self.shape);
        let mut shape = self.shape.clone();
        shape[0] = end - start;
        match &self.storage {
            Storage::F32(data) => Self::from_f32(&shape, data[start * width..end * width].to_vec()),
            Storage::Bf16(data) => Self::from_bf16_bits(&shape, data[start * width..end * width].to_vec()),
        }
    }

    /// A copy of the given rows of the first axis, in the given order.
    pub fn gather_rows(&self, rows: &[usize]) -> Self {
        let width: usize = self.shape[1..].iter().product();
        let mut shape = self.shape.clone();
        shape[0] = rows.len();
        match &self.storage {
            Storage::F32(data) => Self::from_f32(&shape, gather(data, rows, width)),
            Storage::Bf16(data) => Self::from_bf16_bits(&shape, gather(data, rows, width)),
        }
    }

    /// The numbers as f32 (bf16 widened, exactly).
    pub fn to_f32_vec(&self) -> Vec<f32> {
        match &self.storage {
            Storage::F32(data) => data.to_vec(),
            Storage::Bf16(data) => data.iter().map(|&b| f32_from_bf16(b)).collect(),
        }
    }

    /// The numbers as bf16 bits (f32 rounded to nearest even).
    pub fn to_bf16_bits(&self) -> Vec<u16> {
        match &self.storage {
            Storage::F32(data) => data.iter().map(|&v| bf16_from_f32(v)).collect(),
            Storage::Bf16(data) => data.to_vec(),
        }
    }

    /// The elements of an f32 tensor.
    pub fn as_f32(&self) -> &[f32] {
        match &self.storage {
            Storage::F32(data) => data,
            Storage::Bf16(_) => panic!("as_f32 on a bf16 tensor of shape {:?}", self.shape),
        }
    }

    /// The elements of a bf16 tensor, as bits.
    pub fn as_bf16_bits(&self) -> &[u16] {
        match &self.storage {
            Storage::Bf16(data) => data,
            Storage::F32(_) => panic!("as_bf16_bits on an f32 tensor of shape {:?}", self.shape),
        }
    }

    /// The elements of an f32 tensor, to be written; copies first when the storage is shared.
    pub fn as_f32_mut(&mut self) -> &mut [f32] {
        match &mut self.storage {
            Storage::F32(data) => Arc::make_mut(data).as_mut_slice(),
            Storage::Bf16(_) => panic!("as_f32_mut on a bf16 tensor of shape {:?}", self.shape),
        }
    }

    /// The elements of an f32 tensor, taken out (copied when shared).
    pub fn into_f32_vec(self) -> Vec<f32> {
        match self.storage {
            Storage::F32(data) => Arc::try_unwrap(data).unwrap_or_else(|shared| shared.to_vec()),
            Storage::Bf16(_) => self.to_f32_vec(),
        }
    }

    /// The same numbers in another type (shared when it is already that).
    pub fn cast(&self, dtype: Dtype) -> Self {
        match (self.dtype(), dtype) {
            (Dtype::F32, Dtype::Bf16) => Self::from_bf16_bits(&self.shape, self.to_bf16_bits()),
            (Dtype::Bf16, Dtype::F32) => Self::from_f32(&self.shape, self.to_f32_vec()),
            _ => self.clone(),
        }
    }
}

fn gather<T: Copy>(data: &[T], rows: &[usize], width: usize) -> Vec<T> {
    let mut out = Vec::with_capacity(rows.len() * width);
    for &row in rows {
        out.extend_from_slice(&data[row * width..(row + 1) * width]);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_to_nearest_even() {
        // 1 + 2^-8 lies halfway between 1 and 1 + 2^-7: even is 1. 1 + 3*2^-8 lies halfway between 1+2^-7 and 1+2^-6: even is the latter.
        assert_eq!(bf16_from_f32(1.0 + 1.0 / 256.0), 0x3f80);
        assert_eq!(bf16_from_f32(1.0 + 3.0 / 256.0), 0x3f82);
        assert_eq!(bf16_from_f32(1.0 + 1.0 / 256.0 + 1e-6), 0x3f81);
        assert_eq!(bf16_from_f32(f32::MAX), 0x7f80, "past the largest bf16 lies infinity");
        assert!(f32_from_bf16(bf16_from_f32(f32::NAN)).is_nan());
        assert_eq!(bf16_from_f32(-0.0), 0x8000);
    }

    #[test]
    fn writing_to_a_clone_leaves_the_original_alone() {
        let a = Tensor::from_f32(&[2], vec![1.0, 2.0]);
        let mut b = a.clone();
        b.as_f32_mut()[0] = 9.0;
        assert_eq!(a.as_f32(), [1.0, 2.0]);
        assert_eq!(b.as_f32(), [9.0, 2.0]);
    }

    #[test]
    fn gathered_rows_come_in_the_order_asked() {
        let a = Tensor::from_f32(&[3, 2], vec![0., 1., 10., 11., 20., 21.]);
        assert_eq!(a.gather_rows(&[2, 0, 2]).as_f32(), [20., 21., 0., 1., 20., 21.]);
        assert_eq!(a.slice_rows(1, 3).as_f32(), [10., 11., 20., 21.]);
    }
}
