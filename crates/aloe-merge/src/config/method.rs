//! The merge methods: names, what inputs each takes, and its parameters with scopes, ranges and defaults.
//!
//! Source: mergekit 0.1.5, `merge_methods/` (the specs of each method). Ours alone is `rescale_kind`; the default of DARE is the paper's
//! division by the density (mergekit until February 2025), that of DELLA mergekit's `l1`.

use super::{ParameterValue, RescaleKind};

/// How tensors are combined.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// Weighted mean of the models.
    Linear,
    /// Spherical interpolation between two models.
    Slerp,
    /// Spherical interpolation of two models or task vectors, by tensor, row or column.
    Nuslerp,
    /// Barycentric interpolation on a hypersphere.
    Multislerp,
    /// Riemannian mean of directions times the mean norm.
    Karcher,
    /// One model, scaled.
    Passthrough,
    /// Where two models are close, the second; elsewhere a step of fixed size towards it.
    Nearswap,
    /// Interpolation between the base and the mean by the angle between task vectors.
    ModelStock,
    /// Select by variance, calculate weights, erase minority signs.
    Sce,
    /// Weighted sum of task vectors.
    TaskArithmetic,
    /// TIES (arXiv 2306.01708): keep the largest changes, elect a sign, average what agrees.
    Ties,
    /// DARE (arXiv 2311.03099) in place of the trim of TIES: keep changes at random and rescale them.
    DareTies,
    /// DARE without the election.
    DareLinear,
    /// Model Breadcrumbs (arXiv 2312.06795): drop the largest and the smallest changes.
    Breadcrumbs,
    /// Breadcrumbs with the election of TIES.
    BreadcrumbsTies,
    /// DELLA (arXiv 2406.11617): keep changes at random, the larger the likelier, and elect.
    Della,
    /// DELLA without the election.
    DellaLinear,
}

/// All methods in the order of the documentation.
pub const METHODS: [(Method, &str); 17] = [
    (Method::Linear, "linear"),
    (Method::Slerp, "slerp"),
    (Method::Nuslerp, "nuslerp"),
    (Method::Multislerp, "multislerp"),
    (Method::Karcher, "karcher"),
    (Method::Passthrough, "passthrough"),
    (Method::Nearswap, "nearswap"),
    (Method::ModelStock, "model_stock"),
    (Method::Sce, "sce"),
    (Method::TaskArithmetic, "task_arithmetic"),
    (Method::Ties, "ties"),
    (Method::DareTies, "dare_ties"),
    (Method::DareLinear, "dare_linear"),
    (Method::Breadcrumbs, "breadcrumbs"),
    (Method::BreadcrumbsTies, "breadcrumbs_ties"),
    (Method::Della, "della"),
    (Method::DellaLinear, "della_linear"),
];

/// What a method does with the base model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BaseUse {
    /// A model like the others.
    Ignored,
    /// Differences are taken to it where there is one.
    Optional,
    /// Nothing can be merged without it.
    Required,
}

impl Method {
    /// The method of mergekit's name.
    pub fn of_name(name: &str) -> Option<Self> {
        METHODS.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// mergekit's name.
    pub fn name(self) -> &'static str {
        METHODS.iter().find(|row| row.0 == self).map_or("?", |row| row.1)
    }

    /// What the base model is to it.
    pub fn base_use(self) -> BaseUse {
        match self {
            Self::Linear | Self::Karcher | Self::Passthrough => BaseUse::Ignored,
            Self::Nuslerp | Self::Multislerp => BaseUse::Optional,
            _ => BaseUse::Required,
        }
    }

    /// Fewest and most inputs beside the base (all inputs where the base is ignored).
    pub fn n_inputs(self) -> (usize, usize) {
        match self {
            Self::Slerp | Self::Nearswap | Self::Passthrough => (1, 1),
            Self::Nuslerp => (2, 2),
            Self::ModelStock => (2, usize::MAX),
            _ => (1, usize::MAX),
        }
    }

    /// Whether it merges task vectors by weight, sparsified or not: the family of `generalized_task_arithmetic.py`.
    pub fn is_task_arithmetic(self) -> bool {
        self.sparsification().is_some() || self == Self::TaskArithmetic
    }

    /// What its sparsification keeps.
    pub fn sparsification(self) -> Option<Sparsification> {
        match self {
            Self::Ties => Some(Sparsification::Magnitude),
            Self::DareTies | Self::DareLinear => Some(Sparsification::Random),
            Self::Breadcrumbs | Self::BreadcrumbsTies => Some(Sparsification::Outliers),
            Self::Della | Self::DellaLinear => Some(Sparsification::ByRank),
            _ => None,
        }
    }

    /// Whether a sign is elected per element.
    pub fn elects(self) -> bool {
        matches!(self, Self::Ties | Self::DareTies | Self::BreadcrumbsTies | Self::Della)
    }

    /// The parameters it has, in the order they are resolved.
    pub fn parameters(self) -> Vec<ParameterSpec> {
        let spec = |parameter, scope, default| ParameterSpec { parameter, scope, default };
        let flag = |value| Some(ParameterValue::Flag(value));
        let number = |value| Some(ParameterValue::Number(value));
        use {Parameter as P, Scope::*};
        match self {
            Self::Linear => vec![spec(P::Weight, Input, None), spec(P::Normalize, Shared, flag(true))],
            Self::Slerp | Self::Nearswap => vec![spec(P::T, Shared, None)],
            Self::Nuslerp => vec![
                spec(P::Weight, NonBase, None),
                spec(P::NuslerpRowWise, Shared, flag(false)),
                spec(P::NuslerpFlatten, Shared, flag(true)),
            ],
            Self::Multislerp => vec![
                spec(P::Weight, NonBase, None),
                spec(P::NormalizeWeights, Shared, flag(true)),
                spec(P::Eps, Shared, number(1e-8)),
            ],
            Self::Karcher => vec![spec(P::MaxIter, Shared, number(10.0)), spec(P::Tol, Shared, number(1e-5))],
            // 1 stands for mergekit's "none", which multiplies by nothing: the same value.
            Self::Passthrough => vec![spec(P::Scale, Input, number(1.0))],
            Self::ModelStock => vec![spec(P::FilterWise, Shared, flag(false))],
            Self::Sce => vec![spec(P::Int8Mask, Shared, flag(false)), spec(P::SelectTopk, Shared, number(1.0))],
            _ => self.task_arithmetic_parameters(),
        }
    }

    fn task_arithmetic_parameters(self) -> Vec<ParameterSpec> {
        let spec = |parameter, scope, default| ParameterSpec { parameter, scope, default: Some(default) };
        let random = matches!(self.sparsification(), Some(Sparsification::Random | Sparsification::ByRank));
        let is_dare = self.sparsification() == Some(Sparsification::Random);
        let kind = if is_dare { RescaleKind::Density } else { RescaleKind::L1 };
        let normalize = matches!(self, Self::Ties | Self::Della);
        let mut specs = vec![
            ParameterSpec { parameter: Parameter::Weight, scope: Scope::NonBase, default: None },
            spec(Parameter::Density, Scope::NonBase, ParameterValue::Number(1.0)),
            spec(Parameter::Normalize, Scope::Shared, ParameterValue::Flag(normalize)),
            spec(Parameter::Lambda, Scope::Shared, ParameterValue::Number(1.0)),
            spec(Parameter::Rescale, Scope::Shared, ParameterValue::Flag(random)),
            spec(Parameter::RescaleKind, Scope::Shared, ParameterValue::Kind(kind)),
            spec(Parameter::Int8Mask, Scope::Shared, ParameterValue::Flag(false)),
        ];
        match self.sparsification() {
            Some(Sparsification::Outliers) => {
                specs.push(spec(Parameter::Gamma, Scope::NonBase, ParameterValue::Number(0.01)));
            }
            Some(Sparsification::ByRank) => {
                specs.push(spec(Parameter::Epsilon, Scope::NonBase, ParameterValue::Number(0.15)));
            }
            _ => {}
        }
        specs
    }
}

/// Which part of a task vector is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sparsification {
    /// The largest changes.
    Magnitude,
    /// A random sample.
    Random,
    /// Neither the largest nor the smallest.
    Outliers,
    /// A random sample in which larger changes are likelier, by their rank in the row.
    ByRank,
}

/// The parameters that exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Parameter {
    /// Factor of a model.
    Weight,
    /// Share of a task vector that is kept, in [0, 1].
    Density,
    /// Factor of the merged task vector.
    Lambda,
    /// Whether to divide by the sum of the weights.
    Normalize,
    /// The dtype of mergekit's masks: accepted, changes no number.
    Int8Mask,
    /// Whether to rescale what was kept.
    Rescale,
    /// Ours: `density` or `l1`.
    RescaleKind,
    /// Share of the largest changes that breadcrumbs drop.
    Gamma,
    /// Half the spread of DELLA's probabilities.
    Epsilon,
    /// Place between two models; step size of nearswap.
    T,
    /// Factor of a model that passes through.
    Scale,
    /// Share of the elements, by variance, that SCE merges.
    SelectTopk,
    /// Whether model_stock interpolates each row by its own angle.
    FilterWise,
    /// Whether nuslerp without flattening works on columns (mergekit's name for them is rows).
    NuslerpRowWise,
    /// Whether nuslerp takes the tensor as one vector.
    NuslerpFlatten,
    /// Whether multislerp divides the weights by their sum.
    NormalizeWeights,
    /// What multislerp adds to norms.
    Eps,
    /// Most steps of the Karcher mean.
    MaxIter,
    /// Where the Karcher mean has converged.
    Tol,
}

/// Names and what a value must be.
const NAMES: [(Parameter, &str, Range); 19] = [
    (Parameter::Weight, "weight", Range::Finite),
    (Parameter::Density, "density", Range::Share),
    (Parameter::Lambda, "lambda", Range::Finite),
    (Parameter::Normalize, "normalize", Range::Flag),
    (Parameter::Int8Mask, "int8_mask", Range::Flag),
    (Parameter::Rescale, "rescale", Range::Flag),
    (Parameter::RescaleKind, "rescale_kind", Range::Kind),
    (Parameter::Gamma, "gamma", Range::Part),
    (Parameter::Epsilon, "epsilon", Range::Part),
    (Parameter::T, "t", Range::Finite),
    (Parameter::Scale, "scale", Range::Finite),
    (Parameter::SelectTopk, "select_topk", Range::Share),
    (Parameter::FilterWise, "filter_wise", Range::Flag),
    (Parameter::NuslerpRowWise, "nuslerp_row_wise", Range::Flag),
    (Parameter::NuslerpFlatten, "nuslerp_flatten", Range::Flag),
    (Parameter::NormalizeWeights, "normalize_weights", Range::Flag),
    (Parameter::Eps, "eps", Range::Positive),
    (Parameter::MaxIter, "max_iter", Range::Count),
    (Parameter::Tol, "tol", Range::Positive),
];

/// What a parameter's value must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// Any finite number.
    Finite,
    /// From 0 to 1.
    Share,
    /// At least 0 and below 1.
    Part,
    /// Above 0.
    Positive,
    /// A whole number from 0 on.
    Count,
    /// True or false.
    Flag,
    /// `density` or `l1`.
    Kind,
}

impl Parameter {
    /// The parameter of a name.
    pub fn of_name(name: &str) -> Option<Self> {
        NAMES.iter().find(|row| row.1 == name).map(|row| row.0)
    }

    /// Its name in the YAML.
    pub fn name(self) -> &'static str {
        NAMES.iter().find(|row| row.0 == self).map_or("?", |row| row.1)
    }

    /// What its value must be.
    pub fn range(self) -> Range {
        NAMES.iter().find(|row| row.0 == self).map_or(Range::Finite, |row| row.2)
    }

    /// All names, for messages.
    pub fn names() -> String {
        NAMES.iter().map(|row| row.1).collect::<Vec<_>>().join(", ")
    }
}

/// Whom a value belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The tensor.
    Shared,
    /// Each input.
    Input,
    /// Each input but the base.
    NonBase,
}

/// A parameter of a method.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ParameterSpec {
    /// Which.
    pub parameter: Parameter,
    /// Whose.
    pub scope: Scope,
    /// Its value where none is given; none means that it must be given.
    pub default: Option<ParameterValue>,
}
