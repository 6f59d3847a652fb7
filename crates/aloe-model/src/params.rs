//! The numbers that training changes: f32 master weights and their gradients, both in the order of the table in `arch`.
//!
//! The optimizer walks them side by side; the compute copies in `weights` are refreshed from the masters after each step.

use crate::Result;
use crate::arch::{self, Role, TensorSpec};
use crate::config::Config;
use crate::source::ModelSource;
use aloe_tensor::{Device, Dtype, Tensor, ops};
use std::sync::Arc;

/// f32 master weights, one tensor per row of the table: the whole model's, or with LoRA those that are trained.
#[derive(Clone, Debug)]
pub struct Params {
    /// The model they belong to.
    pub config: Config,
    specs: Arc<[TensorSpec]>,
    tensors: Vec<Tensor>,
}

impl Params {
    /// Reads every tensor as f32. A non-finite weight is refused by name.
    pub fn load(source: &ModelSource) -> Result<Self> {
        let config = source.config().clone();
        let specs: Arc<[TensorSpec]> = arch::tensors(&config).into();
        let tensors = specs.iter().map(|spec| source.load(&spec.hf_name, Dtype::F32)).collect::<Result<_>>()?;
        Ok(Self { config, specs, tensors })
    }

    /// Masters made by `make`, which must give f32 tensors of the spec's shape.
    pub fn from_fn(config: &Config, mut make: impl FnMut(&TensorSpec) -> Tensor) -> Self {
        Self::of_table(config, arch::tensors(config), |spec| Ok(make(spec))).expect("making cannot fail")
    }

    /// Masters of another table than the model's own: those that LoRA trains.
    pub(crate) fn of_table(
        config: &Config,
        table: Vec<TensorSpec>,
        make: impl FnMut(&TensorSpec) -> Result<Tensor>,
    ) -> Result<Self> {
        let specs: Arc<[TensorSpec]> = table.into();
        let tensors = specs.iter().map(make).collect::<Result<Vec<_>>>()?;
        for (spec, tensor) in specs.iter().zip(&tensors) {
            assert_eq!(spec.shape, tensor.shape(), "{}", spec.hf_name);
            assert_eq!(tensor.dtype(), Dtype::F32, "{}", spec.hf_name);
        }
        Ok(Self { config: config.clone(), specs, tensors })
    }

    /// The table's rows.
    pub fn specs(&self) -> &[TensorSpec] {
        &self.specs
    }

    /// The tensors, in table order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The tensors, to be changed, in table order. Shapes must stay.
    pub fn tensors_mut(&mut self) -> &mut [Tensor] {
        &mut self.tensors
    }

    /// The tensor of that Hugging Face name.
    pub fn get(&self, hf_name: &str) -> Option<&Tensor> {
        self.specs.iter().position(|spec| spec.hf_name == hf_name).map(|i| &self.tensors[i])
    }

    /// The tensor of that role.
    pub fn role(&self, role: Role) -> Option<&Tensor> {
        position(&self.specs, role).map(|i| &self.tensors[i])
    }
}

/// Gradients of the masters, f32, in table order. A tied embedding has one, the sum of both uses.
#[derive(Clone, Debug)]
pub struct Grads {
    specs: Arc<[TensorSpec]>,
    tensors: Vec<Tensor>,
    /// Tensors whose numbers count as zero until they are next written.
    stale: Vec<bool>,
}

impl Grads {
    /// All zero.
    pub fn zeros(config: &Config) -> Self {
        let specs: Arc<[TensorSpec]> = arch::tensors(config).into();
        let tensors = specs.iter().map(|spec| Tensor::zeros(&spec.shape, Dtype::F32)).collect();
        let stale = vec![true; specs.len()];
        Self { specs, tensors, stale }
    }

    /// All zero, one for each of the masters.
    pub fn of(params: &Params) -> Self {
        let tensors = params.specs.iter().map(|spec| Tensor::zeros(&spec.shape, Dtype::F32)).collect();
        Self { specs: params.specs.clone(), tensors, stale: vec![true; params.specs.len()] }
    }

    /// Sets all to zero, keeping the memory. What a backward pass writes next replaces the old numbers, so nothing is cleared here;
    /// [`Self::settle`] clears what it did not write.
    pub fn zero(&mut self) {
        self.stale.fill(true);
    }

    /// Makes zeros of what nothing was added to since [`Self::zero`]; to be called before the gradients are read.
    pub fn settle(&mut self) {
        for (tensor, stale) in self.tensors.iter_mut().zip(&mut self.stale) {
            if std::mem::take(stale) {
                tensor.as_f32_mut().fill(0.0);
            }
        }
    }

    /// The table's rows.
    pub fn specs(&self) -> &[TensorSpec] {
        &self.specs
    }

    /// The gradients, in table order.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The gradients, to be changed, in table order.
    pub fn tensors_mut(&mut self) -> &mut [Tensor] {
        &mut self.tensors
    }

    /// The gradient of the tensor of that Hugging Face name.
    pub fn get(&self, hf_name: &str) -> Option<&Tensor> {
        self.specs.iter().position(|spec| spec.hf_name == hf_name).map(|i| &self.tensors[i])
    }

    /// Adds the gradients of embedded tokens, (ids, `[N, D]`) of one pass after the other.
    pub fn add_embedded(&mut self, device: &Device, parts: &[(&[u32], &Tensor)]) {
        if let Some(dembed) = self.role_if_any(Role::Embed).filter(|_| !parts.is_empty()) {
            ops::embedding_grads(device, parts, dembed);
        }
    }

    /// The square of the norm over all gradients, in f64, the same for any number of threads.
    pub fn sum_of_squares(&self, device: &Device) -> f64 {
        self.tensors.iter().map(|tensor| ops::sum_of_squares(device, tensor)).sum()
    }

    /// The tensor, made zero if its numbers are old.
    fn settled(&mut self, i: usize) -> &mut Tensor {
        if std::mem::take(&mut self.stale[i]) {
            self.tensors[i].as_f32_mut().fill(0.0);
        }
        &mut self.tensors[i]
    }

    /// The tensor of a role that not every model has, or that is not trained.
    pub(crate) fn role_if_any(&mut self, role: Role) -> Option<&mut Tensor> {
        position(&self.specs, role).map(|i| self.settled(i))
    }

    /// A trained tensor to be added to, or, where the flag says so, to be overwritten whole.
    pub(crate) fn fresh_if_any(&mut self, role: Role) -> Option<(&mut Tensor, bool)> {
        let i = position(&self.specs, role)?;
        let fresh = std::mem::take(&mut self.stale[i]);
        Some((&mut self.tensors[i], fresh))
    }

    /// Tensors to be added to, or, where the flag says so, to be overwritten whole.
    pub(crate) fn fresh_mut<const M: usize>(&mut self, roles: [Role; M]) -> [(&mut Tensor, bool); M] {
        let at = roles.map(|role| position(&self.specs, role).expect("every role of the architecture is in its table"));
        let fresh = at.map(|i| std::mem::take(&mut self.stale[i]));
        let tensors = self.tensors.get_disjoint_mut(at).expect("roles differ");
        let mut fresh = fresh.into_iter();
        tensors.map(|tensor| (tensor, fresh.next().unwrap_or(false)))
    }

    /// The gradients of two roles of which the first is trained: a matrix and its bias, LoRA's two factors.
    pub(crate) fn pair_mut(&mut self, first: Role, second: Role) -> Option<(&mut Tensor, Option<&mut Tensor>)> {
        let i = position(&self.specs, first)?;
        self.settled(i);
        Some(match position(&self.specs, second) {
            None => (&mut self.tensors[i], None),
            Some(j) => {
                self.settled(j);
                let [a, b] = self.tensors.get_disjoint_mut([i, j]).expect("two roles are two tensors");
                (a, Some(b))
            }
        })
    }
}

pub(crate) fn position(specs: &[TensorSpec], role: Role) -> Option<usize> {
    specs.iter().position(|spec| spec.role == role)
}
