//! DARE and DELLA against mergekit's own code with our masks put in place of torch's (`oracles/mergekit_masks.py`, which computes them by code
//! of its own from their description).

use super::golden::distance;
use super::*;
use aloe_model::SafeTensorsFile;

/// One unit: 1e-6 in float32, the last place of bfloat16, of the value or of the tensor's size.
#[test]
fn dare_and_della_with_the_same_masks_equal_mergekit_element_by_element_at_every_rescale() {
    let (dir, options) = models();
    let texts: serde_json::Map<String, serde_json::Value> =
        atomic::read_json(Path::new(&format!("{GOLDEN}/masks.json"))).unwrap();
    let golden = SafeTensorsFile::open(Path::new(&format!("{GOLDEN}/masks.safetensors"))).unwrap();
    let (mut wrong, mut n, mut n_changed) = (Vec::new(), 0, 0);
    for (name, text) in &texts {
        let config = parse(text.as_str().unwrap()).unwrap();
        let planned = plan(&config, &options).unwrap();
        let prefix = format!("{name}/");
        for tensor in golden.names().iter().filter(|tensor| tensor.starts_with(&prefix)) {
            let theirs = golden.load_f32(tensor).unwrap();
            let spec = &tensor[prefix.len()..];
            let found = planned.tensors.iter().find(|planned| planned.spec.hf_name == spec).unwrap();
            let (ours, _) = merge_tensor(&config, &planned, found).unwrap();
            let far = distance(&ours, &theirs, planned.dtype.name());
            if far > 1.0 {
                wrong.push(format!("{tensor}: {far:.2}"));
            }
            n += ours.len();
            let base = value("base", spec, ours.len());
            n_changed +=
                ours.iter().zip(&base).filter(|(merged, base)| (**merged - **base).abs() > 2f32.powi(-14)).count();
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!((texts.len(), n), (32, 82_944));
    assert!(n_changed * 4 > n, "{n_changed} of {n} elements are not the base's");
    drop(dir);
}
