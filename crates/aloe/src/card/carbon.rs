//! Carbon by the three formulas that the Aloe papers lead to, each with its terms shown.
//!
//! The card's 439.25 kg is 7,000 h x 0.250 kW x 0.251 kg/kWh; the Beta paper (arXiv 2505.04388, appendix D) charges a node
//! of 4 x 700 W GPUs and a tenth of a 350 W CPU at 0.158 kg/kWh; the ML CO2 calculator (Lacoste et al. 2019) multiplies the
//! device's power, hours, intensity and PUE.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// What the author states about the machine; hours come from the records.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Power {
    /// Power that one device draws while computing, in watts: of a GPU with its share of the node, or of a machine that computes on its
    /// processors. An assumption unless it was measured.
    pub(crate) device_w: f64,
    /// Grid intensity in kg CO2eq per kWh, with its source in `intensity_source`.
    pub(crate) intensity_kg_per_kwh: f64,
    /// Where the intensity is from.
    pub(crate) intensity_source: String,
    /// Power usage effectiveness of the site; 1 for a machine under a desk.
    #[serde(default = "one")]
    pub(crate) pue: f64,
}

fn one() -> f64 {
    1.0
}

/// One formula with its terms.
pub(crate) struct Estimate {
    /// Which formula.
    pub(crate) name: String,
    /// The product as it is computed.
    pub(crate) terms: String,
    /// Its value in kg CO2eq.
    pub(crate) kg: f64,
}

/// The Alpha card's formula: hours at 250 W and 0.251 kg/kWh.
pub(crate) fn alpha_card(hours: f64) -> Estimate {
    Estimate {
        name: "Alpha card (250 W a device-hour, 0.251 kg/kWh)".to_owned(),
        terms: format!("{hours:.4} h x 0.250 kW x 0.251 kg/kWh"),
        kg: hours * 0.250 * 0.251,
    }
}

/// The Beta paper's formula for so many hours of devices, of which a node has four: 2.835 kW a node at 0.158 kg/kWh.
pub(crate) fn beta_node(device_hours: f64) -> Estimate {
    let node_kw = (4.0 * 700.0 * 1.0 + 350.0 * 0.10) / 1000.0;
    Estimate {
        name: "Beta paper (a 4-GPU node of 2,835 W, 0.158 kg/kWh)".to_owned(),
        terms: format!(
            "{device_hours:.4} h / 4 devices a node x (4 x 0.700 kW x 1.0 + 0.350 kW x 0.10) x 0.158 kg/kWh"
        ),
        kg: node_kw * device_hours / 4.0 * 0.158,
    }
}

/// The ML CO2 calculator's formula with the author's terms.
pub(crate) fn generic(hours: f64, power: &Power) -> Estimate {
    Estimate {
        name: "ML CO2 calculator, with the stated power of a device".to_owned(),
        terms: format!(
            "{:.3} kW x {hours:.4} h x {} kg/kWh ({}) x PUE {}",
            power.device_w / 1000.0,
            power.intensity_kg_per_kwh,
            power.intensity_source,
            power.pue
        ),
        kg: power.device_w / 1000.0 * hours * power.intensity_kg_per_kwh * power.pue,
    }
}

/// A GPU job's share: its GPU-hours at the site's stated watts, beside the hours above. `None` without GPUs or their power.
pub(crate) fn gpu_job(stage: &str, job: &Value, power: &Power) -> Option<Estimate> {
    let hours = job["gpu_hours"].as_f64().filter(|hours| *hours > 0.0)?;
    let kw = job["gpu_watts"].as_f64()? / 1000.0;
    let (pue, intensity) = (power.pue, power.intensity_kg_per_kwh);
    Some(Estimate {
        name: format!("GPUs of the job of {stage}, at the power that the site states"),
        terms: format!("{hours:.4} GPU-h x {kw:.3} kW x {pue} x {intensity} kg/kWh"),
        kg: hours * kw * pue * intensity,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 8 GPUs for half an hour at 700 W, PUE 1.1, 0.158 kg/kWh: 4 h x 0.7 x 1.1 x 0.158 = 0.48664 kg.
    #[test]
    fn a_gpu_jobs_share_is_its_gpu_hours_at_the_sites_watts() {
        let power = Power { device_w: 30.0, intensity_kg_per_kwh: 0.158, intensity_source: "x".into(), pue: 1.1 };
        let job = serde_json::json!({"gpu_hours": 4.0, "gpu_watts": 700.0});
        assert!((gpu_job("eval", &job, &power).unwrap().kg - 0.48664).abs() < 1e-9);
        assert!(gpu_job("eval", &serde_json::json!({"gpu_hours": 0.0, "gpu_watts": 700.0}), &power).is_none());
    }

    #[test]
    fn the_alpha_cards_published_figure_comes_out() {
        assert!((alpha_card(7000.0).kg - 439.25).abs() < 1e-9);
    }

    /// 8 nodes of 4 GPUs for 17.14 h.
    #[test]
    fn the_beta_papers_61_42_kg_come_out_of_8_nodes_and_17_14_hours() {
        assert!((beta_node(8.0 * 4.0 * 17.14).kg - 61.42).abs() < 0.005);
    }

    /// 32 GPUs for an hour are 8 nodes of 2.835 kW for an hour: 22.68 kWh, whichever of the two formulas says so.
    #[test]
    fn thirty_two_gpus_for_an_hour_are_22_68_kwh() {
        let power = Power { device_w: 708.75, intensity_kg_per_kwh: 0.158, intensity_source: "x".into(), pue: 1.0 };
        for estimate in [beta_node(32.0), generic(32.0, &power)] {
            assert!((estimate.kg / 0.158 - 22.68).abs() < 1e-9, "{}", estimate.terms);
        }
    }

    /// 0.1 kW x 2 h x 0.5 kg/kWh x 1.5 = 0.15 kg.
    #[test]
    fn the_generic_formula_multiplies_its_four_terms() {
        let power = Power { device_w: 100.0, intensity_kg_per_kwh: 0.5, intensity_source: "test".into(), pue: 1.5 };
        assert!((generic(2.0, &power).kg - 0.15).abs() < 1e-12);
    }
}
