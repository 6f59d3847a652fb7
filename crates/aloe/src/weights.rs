//! The form of a model's weights in memory as a user names it, `--dtype` and `--quantize` or a recipe's keys of these names, and what
//! of it cannot be had.

use aloe_engine::WeightFormat;
use aloe_tensor::Dtype;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// A dense type.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum DtypeName {
    /// 32-bit floating point
    F32,
    /// bfloat16 weights and matrix inputs, f32 sums
    #[default]
    Bf16,
}

impl DtypeName {
    /// The name in recipes.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// The tensors' type.
    pub(crate) fn dtype(self) -> Dtype {
        match self {
            Self::F32 => Dtype::F32,
            Self::Bf16 => Dtype::Bf16,
        }
    }
}

/// Blocks that weights are rounded to on load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Quantize {
    /// 8-bit blocks (Q8_0)
    Q8,
    /// 4-bit blocks (Q4_0), the output head 8-bit
    Q4,
}

impl Quantize {
    /// The name in recipes.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Q8 => "q8",
            Self::Q4 => "q4",
        }
    }
}

/// The form that a dtype and a quantisation name together; `None` leaves it to the model.
pub(crate) fn weight_format(dtype: Option<DtypeName>, quantize: Option<Quantize>) -> Option<WeightFormat> {
    match quantize {
        Some(Quantize::Q8) => Some(WeightFormat::Q8),
        Some(Quantize::Q4) => Some(WeightFormat::Q4),
        None => dtype.map(|dtype| WeightFormat::Dense(dtype.dtype())),
    }
}

/// Why the two do not go together or not with the model, in words; `model` is a path or an address where it is known.
pub(crate) fn mistake(dtype: Option<DtypeName>, quantize: Option<Quantize>, model: Option<&str>) -> Option<String> {
    let quantize = quantize?.name();
    if dtype == Some(DtypeName::F32) {
        return Some(format!(
            "quantize {quantize} rounds the weights and dtype f32 keeps them; leave one of the two out"
        ));
    }
    let model = model?;
    if model.starts_with("http") || model.starts_with(aloe_engine::announced::SERVERS) {
        return Some(format!(
            "quantize {quantize}: the weights of the endpoint {model} are its server's; leave it out"
        ));
    }
    model.ends_with(".gguf").then(|| {
        format!(
            "quantize {quantize}: the blocks of {model} are used as they are, rounding them again loses more; leave it out, or write \
             a folder with `aloe pull` and quantise that"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantising_goes_with_bf16_and_a_folder_only() {
        let q4 = Some(Quantize::Q4);
        assert_eq!(mistake(None, q4, Some("models/smollm2")), None);
        assert_eq!(mistake(Some(DtypeName::Bf16), q4, None), None);
        assert_eq!(mistake(Some(DtypeName::F32), None, Some("x.gguf")), None);
        assert!(mistake(Some(DtypeName::F32), q4, None).unwrap().contains("leave one of the two out"));
        assert!(mistake(None, q4, Some("http://127.0.0.1:1/v1#m")).unwrap().contains("its server's"));
        assert!(mistake(None, q4, Some("m/model.gguf")).unwrap().contains("used as they are"));
        assert_eq!(weight_format(Some(DtypeName::Bf16), q4), Some(WeightFormat::Q4));
        assert_eq!(weight_format(Some(DtypeName::F32), None), Some(WeightFormat::Dense(Dtype::F32)));
        assert_eq!(weight_format(None, None), None);
    }
}
