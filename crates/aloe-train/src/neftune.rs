//! NEFTune (Jain et al. 2023, arXiv 2310.05914): noise on the embeddings while training.
//!
//! Every value is uniform in [-1, 1) times `alpha / sqrt(L * D)`, with L the tokens of the row itself: in packed rows each document has its
//! own, as if it stood alone (transformers takes the padded length of the batch). The generator is keyed by seed, step and row, so
//! that neither packing nor micro-batches nor a restart changes the noise. Held-out numbers and answers are without it.

use crate::pack::Document;
use aloe_record::CounterRng;
use aloe_tensor::Tensor;

/// The noise `[N, D]` of documents side by side; `numbers` are theirs in the data, `(seed, step)` names the draw.
pub(crate) fn noise(
    documents: &[&Document],
    numbers: &[usize],
    hidden_size: usize,
    alpha: f64,
    (seed, step): (u64, u64),
) -> Tensor {
    let n_tokens: usize = documents.iter().map(|document| document.ids.len()).sum();
    let mut values = Vec::with_capacity(n_tokens * hidden_size);
    for (document, &number) in documents.iter().zip(numbers) {
        let n_values = document.ids.len() * hidden_size;
        let scale = (alpha / (n_values as f64).sqrt()) as f32;
        let rng = CounterRng::new(seed, &format!("neftune/{step}"), number as u64);
        let blocks = (0..n_values.div_ceil(4) as u64).flat_map(|block| rng.block(block));
        values.extend(blocks.take(n_values).map(|bits| scale * uniform(bits)));
    }
    Tensor::from_f32(&[n_tokens, hidden_size], values)
}

/// 24 random bits as a number in [-1, 1), exact in f32.
fn uniform(bits: u32) -> f32 {
    (bits >> 8) as f32 / 8_388_608.0 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(n: usize) -> Document {
        Document { source: "a:1".into(), data_source: None, ids: vec![1; n], loss_mask: vec![true; n] }
    }

    fn draw(lens: &[usize], numbers: &[usize], key: (u64, u64)) -> Vec<f32> {
        let documents: Vec<Document> = lens.iter().map(|&n| document(n)).collect();
        noise(&documents.iter().collect::<Vec<_>>(), numbers, 16, 5.0, key).as_f32().to_vec()
    }

    /// A uniform value in (-a, a) has variance a^2 / 3, and its fourth moment a^4 / 5 gives the square's deviation.
    #[test]
    fn each_document_has_the_papers_spread_for_its_own_length() {
        for len in [7, 100, 1000] {
            let values = draw(&[50, len], &[3, 4], (1, 2));
            let own = &values[50 * 16..];
            let n = own.len() as f64;
            assert_eq!(own.len(), len * 16);
            let bound = 5.0 / n.sqrt();
            assert!(own.iter().all(|&value| f64::from(value).abs() <= bound * (1.0 + 1e-6)));
            let mean = own.iter().map(|&value| f64::from(value)).sum::<f64>() / n;
            let square = own.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>() / n;
            assert!(mean.abs() < 5.0 * bound / (3.0 * n).sqrt(), "{len}: mean {mean}");
            let deviation = bound * bound * (4.0f64 / 45.0 / n).sqrt();
            assert!((square - bound * bound / 3.0).abs() < 5.0 * deviation, "{len}: square {square}");
        }
    }

    #[test]
    fn noise_belongs_to_seed_step_and_row_and_not_to_its_batch_mates() {
        let alone = draw(&[20], &[9], (1, 2));
        assert_eq!(draw(&[5, 20], &[0, 9], (1, 2))[5 * 16..], alone);
        for other in [draw(&[20], &[8], (1, 2)), draw(&[20], &[9], (1, 3)), draw(&[20], &[9], (2, 2))] {
            assert_ne!(other, alone);
        }
    }
}
