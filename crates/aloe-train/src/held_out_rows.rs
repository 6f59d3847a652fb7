//! The errors of a supervised stage's held-out figures: what each row takes, whole and by data source, and what changed since the start.
//!
//! A row is what its file holds in one line. Where it was cut, its pieces depend on each other and count as one.

use crate::metrics::Metrics;
use crate::pack::Document;
use crate::statistics::Estimate;
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The held-out rows in the order of their first document.
pub(crate) struct Rows<'a> {
    rows: Vec<Row<'a>>,
}

struct Row<'a> {
    source: Option<&'a str>,
    /// Summed negative log-likelihood of its targets.
    sum: f64,
    n_targets: f64,
}

impl<'a> Rows<'a> {
    /// The rows of the documents, of which `each` holds the summed negative log-likelihoods.
    pub(crate) fn of(documents: &'a [Document], each: &[f64]) -> Self {
        let mut places = BTreeMap::<&str, usize>::new();
        let mut rows = Vec::<Row<'_>>::new();
        for (document, sum) in documents.iter().zip(each) {
            let at = *places.entry(document.row()).or_insert(rows.len());
            if at == rows.len() {
                rows.push(Row { source: document.data_source(), sum: 0.0, n_targets: 0.0 });
            }
            rows[at].sum += sum;
            rows[at].n_targets += document.n_targets() as f64;
        }
        Self { rows }
    }

    /// What each row takes.
    pub(crate) fn sums(&self) -> Vec<f64> {
        self.rows.iter().map(|row| row.sum).collect()
    }

    /// Standard errors of the means, and with what the rows took at the `start` their changes: of all rows, and in an object `NAME_by_source`
    /// by data source.
    pub(crate) fn errors(&self, start: Option<&[f64]>, by_source: bool) -> Map<String, Value> {
        let start = start.filter(|start| start.len() == self.rows.len());
        let mut fields = Map::new();
        for (name, value) in self.parts(start, &|_| true) {
            fields.insert(name, json!(value));
        }
        let mut sources: Vec<&str> = self.rows.iter().filter_map(|row| row.source).filter(|_| by_source).collect();
        sources.sort_unstable();
        sources.dedup();
        for source in sources {
            for (name, value) in self.parts(start, &|row| row.source == Some(source)) {
                let object = fields.entry(format!("{name}_by_source")).or_insert_with(|| json!({}));
                object[source] = json!(value);
            }
        }
        fields
    }

    fn parts(&self, start: Option<&[f64]>, is_of: &dyn Fn(&Row<'_>) -> bool) -> Vec<(String, f64)> {
        let rows = || self.rows.iter().enumerate().filter(|(_, row)| is_of(row));
        let now: Vec<(f64, f64)> = rows().map(|(_, row)| (row.sum, row.n_targets)).collect();
        let mut found = Vec::from_iter(Estimate::of_ratio(&now).se.map(|se| (HELD_OUT_SE.to_owned(), se)));
        if let Some(start) = start {
            let changes: Vec<(f64, f64)> = rows().map(|(at, row)| (row.sum - start[at], row.n_targets)).collect();
            found.extend(Estimate::of_ratio(&changes).named(CHANGE));
        }
        found
    }
}

const CHANGE: &str = "held_out_nll_change";
/// Standard error of the held-out mean.
pub(crate) const HELD_OUT_SE: &str = "held_out_nll_se";

/// The change of all rows that the lines of `step` hold.
pub(crate) fn change_at(metrics: &Metrics, step: u64) -> Option<Estimate> {
    Estimate::read(CHANGE, |name| metrics.number_at(step, name))
}

/// The changes by data source that the lines of `step` hold.
pub(crate) fn changes_at(metrics: &Metrics, step: u64) -> BTreeMap<String, Estimate> {
    let parts = ["", "_se", "_low", "_high"].map(|suffix| format!("{CHANGE}{suffix}"));
    let found: BTreeMap<&str, BTreeMap<String, f64>> =
        parts.iter().map(|name| (name.as_str(), metrics.numbers_at(step, &format!("{name}_by_source")))).collect();
    let estimate =
        |source: &String| Some((source.clone(), Estimate::read(CHANGE, |name| found.get(name)?.get(source).copied())?));
    found[CHANGE].keys().filter_map(estimate).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(source: &str, of: &str, n_targets: usize) -> Document {
        Document {
            source: source.into(),
            data_source: Some(of.into()),
            ids: vec![1; n_targets + 1],
            loss_mask: vec![true; n_targets + 1],
        }
    }

    /// The golden values stand in `statistics`; here it is which numbers go there.
    #[test]
    fn pieces_of_a_row_are_one_cluster_and_changes_are_told_by_source() {
        let documents = [
            document("f:1 (piece 1)", "a", 1),
            document("f:2", "b", 3),
            document("f:1 (piece 2)", "a", 2),
            document("g:1", "a", 1),
        ];
        let rows = Rows::of(&documents, &[1.0, 6.0, 4.0, 0.5]);
        assert_eq!(rows.sums(), [5.0, 6.0, 0.5]);
        let found = rows.errors(Some(&[6.0, 6.5, 2.5]), true);
        let whole = Estimate::of_ratio(&[(-1.0, 3.0), (-0.5, 3.0), (-2.0, 1.0)]);
        let of_a = Estimate::of_ratio(&[(-1.0, 3.0), (-2.0, 1.0)]);
        // -3.5 / 7 and -3 / 4.
        assert_eq!((whole.mean, of_a.mean), (-0.5, -0.75));
        assert_eq!(found["held_out_nll_change"], whole.mean);
        assert_eq!(found["held_out_nll_change_se"], whole.se.unwrap());
        assert_eq!(found["held_out_nll_change_low"], whole.interval.unwrap()[0]);
        assert_eq!(found["held_out_nll_se"], Estimate::of_ratio(&[(5.0, 3.0), (6.0, 3.0), (0.5, 1.0)]).se.unwrap());
        assert_eq!(found["held_out_nll_change_by_source"]["a"], of_a.mean);
        assert_eq!(found["held_out_nll_change_se_by_source"]["a"], of_a.se.unwrap());
        assert_eq!(found["held_out_nll_change_by_source"]["b"], -0.5 / 3.0);
        assert!(found["held_out_nll_change_se_by_source"].get("b").is_none(), "one row has no error");
        // At the start there is nothing to compare with.
        let found = rows.errors(None, false);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["held_out_nll_se"]);
    }
}
