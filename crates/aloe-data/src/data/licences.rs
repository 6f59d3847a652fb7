//! The step that holds the licences that rows carry, from their set or from earlier stages, against those that their sources state: a stage makes
//! no row freer than it was.

use super::Run;
use crate::{About, DataConfig, Error, Item, Result, licence};
use std::collections::BTreeMap;
use std::sync::Arc;

impl Run<'_> {
    /// Refuses a stated licence that allows more than a row's own. Where it forbids more, the row goes under it from here on, unless the row's
    /// own is one of those that it joins: it is then stated of a mixture, and says whose terms the row is under.
    pub(super) fn check_licences(&mut self) -> Result<()> {
        let mut is_own_kept: BTreeMap<(usize, Arc<str>), bool> = BTreeMap::new();
        let mut mistakes = Vec::new();
        // What rows said alike they go on to say alike.
        let mut before: Option<(Arc<About>, Arc<About>)> = None;
        for item in &mut self.items {
            let Some(own) = &item.about.licence else { continue };
            let source = &self.config.sources[item.source];
            let is_kept = *is_own_kept.entry((item.source, Arc::clone(own))).or_insert_with(|| {
                mistakes.extend(source.licence_mistake(own));
                let is_kept =
                    licence::allows_more(own, &source.licence).is_none() || licence::is_part(own, &source.licence);
                is_kept && !licence::is_unstated(own)
            });
            if !is_kept {
                match &before {
                    Some((with, without)) if Arc::ptr_eq(with, &item.about) => item.about = Arc::clone(without),
                    _ => {
                        let with = Arc::clone(&item.about);
                        Arc::make_mut(&mut item.about).licence = None;
                        self.alike.share(item, None);
                        before = Some((with, Arc::clone(&item.about)));
                    }
                }
            }
        }
        if mistakes.is_empty() { Ok(()) } else { Err(Error::Config { mistakes }) }
    }
}

/// The licence of a row: its own, else its source's.
pub(super) fn licence_of<'a>(item: &'a Item, config: &'a DataConfig) -> &'a str {
    item.about.licence.as_deref().unwrap_or(&config.sources[item.source].licence)
}
