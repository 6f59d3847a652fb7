//! Every combination of the knobs' values: the first knob slowest, the last fastest.

use super::Space;

/// All points in order.
pub(super) fn points(space: &Space) -> Vec<Vec<f64>> {
    space.knobs.iter().fold(vec![Vec::new()], |points, knob| {
        let values = knob.range.values();
        points.iter().flat_map(|point| values.iter().map(move |value| [&point[..], &[*value]].concat())).collect()
    })
}

/// Asks for all of them.
pub(super) fn run<E>(space: &Space, ask: &mut impl FnMut(&[f64]) -> Result<f64, E>) -> Result<String, E> {
    let points = points(space);
    for point in &points {
        ask(point)?;
    }
    Ok(format!("all {} points of the grid were scored", points.len()))
}
