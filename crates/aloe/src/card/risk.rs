//! The healthcare risk assessment: three risks by six points (Kapoor et al. 2024), the first point in three parts.
//!
//! The assessment is the reference system's, in our words. It is a stated document, not a measurement; the card says so.

/// One risk with its eight cells: the first point has three parts.
pub(crate) struct Risk {
    /// Short name.
    pub(crate) title: &'static str,
    /// Execution, malicious actors, resources, existing risk, existing defences, marginal risk, new defences, uncertainty.
    pub(crate) cells: [&'static str; 8],
}

/// Row headings of the table, in the order of [`Risk::cells`].
pub(crate) const POINTS: [&str; 8] = [
    "1. Threat: how it would be carried out",
    "1. Threat: who would",
    "1. Threat: with what",
    "2. Risk that exists already",
    "3. Defences that exist",
    "4. What an open model adds",
    "5. New defences",
    "6. Uncertainty and assumptions",
];

/// The three risks.
pub(crate) const RISKS: [Risk; 3] = [
    Risk {
        title: "Impersonation of healthcare professionals",
        cells: [
            "Write plausible medical text, hide that a model wrote it, and pose as an expert to steer somebody.",
            "People after money; people with a stake in somebody else's care.",
            "Some first trust, such as the web page of an invented clinic; the victim's history for a targeted attempt; \
             fast generation for live conversation.",
            "The practice is old, international and lucrative without any model.",
            "Registers of physicians and certificates; public knowledge of how to check them.",
            "More reach where contact is digital and not face to face.",
            "Teaching the public about synthetic text; personal contact for grave matters; behavioural authentication; \
             disclosure laws and watermarks.",
            "Assumes a digital channel whose limit is response time; faster models and voice or video widen it.",
        ],
    },
    Risk {
        title: "Medical decisions without a professional",
        cells: [
            "Ask the model for a diagnosis or a treatment and follow it without professional advice.",
            "Anybody who does not know the limits of such models.",
            "Access to the model without supervision.",
            "Self-diagnosis and self-medication are common.",
            "Prescription-only medicines, diagnostics reserved to trained staff, public campaigns.",
            "Personal, persuasive, actionable answers invite over-reliance.",
            "Examples of confident errors in public teaching; answers that carry disclaimers; guardrails; detectors of \
             requests for self-diagnosis.",
            "Assumes that a professional can be reached; where none can, the assessment must be made anew.",
        ],
    },
    Risk {
        title: "Access to dangerous substances or procedures",
        cells: [
            "Ask about controlled or dangerous substances or procedures that endanger life or public health.",
            "A person who wants to make or obtain such a substance or to perform such a procedure.",
            "Access to the model without supervision.",
            "The information is public in libraries and online.",
            "Authors leave details out; some works are restricted, with little effect.",
            "One place that finds, condenses and explains; a released file cannot be recalled.",
            "Alignment by preference training, which jailbreaks still get around; separate detectors; licensed access in \
             extreme cases.",
            "Assumes that getting the materials stays much harder than reading about them.",
        ],
    },
];

/// The assessment as a Markdown table.
pub(crate) fn table() -> String {
    let mut text = String::from("| point |");
    for risk in &RISKS {
        text.push_str(&format!(" {} |", risk.title));
    }
    text.push_str("\n|---|---|---|---|\n");
    for (row, point) in POINTS.iter().enumerate() {
        text.push_str(&format!("| {point} |"));
        for risk in &RISKS {
            text.push_str(&format!(" {} |", risk.cells[row]));
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_six_points_are_filled_for_all_three_risks() {
        for (row, point) in POINTS.iter().enumerate() {
            assert!(RISKS.iter().all(|risk| risk.cells[row].len() > 20), "{point}");
        }
        let points: std::collections::BTreeSet<_> = POINTS.iter().filter_map(|point| point.chars().next()).collect();
        assert_eq!(points.len(), 6);
        assert_eq!(table().lines().count(), 2 + POINTS.len());
    }
}
