//! The step that looks for identifiers of persons: before the cleaning rules, which take e-mail addresses out without counting them.
//!
//! Manifest and ledger get counts by kind, never text.

use super::Run;
use super::ledger::Entry;
use crate::identifiers::{self, Counts, Identifiers};
use crate::{Error, Item, Result, RowError, parallel};
use std::path::Path;

/// The rule that the ledger and the account name.
const RULE: &str = "identifiers";

impl Run<'_> {
    pub(super) fn take_identifiers(&mut self) -> Result<()> {
        let mode = self.config.identifiers;
        if mode == Identifiers::Off {
            return Ok(());
        }
        let mut items = std::mem::take(&mut self.items);
        let counted = parallel::map_mut(self.n_threads, &mut items, |item| identifiers::apply(item, mode));
        self.cancel.check()?;
        let mut counted = counted.into_iter();
        items.retain(|item| {
            let counts = counted.next().unwrap_or_default();
            if !counts.is_empty() {
                self.account_for(item, counts);
                return mode != Identifiers::Drop;
            }
            true
        });
        self.items = items;
        Ok(())
    }

    /// Broken rows with their text, which holds what rows hold: masked where training rows are masked or dropped for it, and for its owner
    /// alone to read.
    pub(super) fn write_quarantine(&self, path: &Path) -> Result<String> {
        let is_masked = matches!(self.config.identifiers, Identifiers::Mask | Identifiers::Drop);
        let masked = |error: &RowError| RowError {
            raw: error.raw.as_deref().map(|raw| if is_masked { identifiers::masked(raw) } else { raw.to_owned() }),
            ..error.clone()
        };
        let digest = super::lines(path, self.quarantined.iter().map(masked))?;
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let owner_alone = std::fs::Permissions::from_mode(0o600);
            std::fs::set_permissions(path, owner_alone).map_err(Error::io("write", path))?;
        }
        Ok(digest)
    }

    fn account_for(&mut self, item: &Item, counts: Counts) {
        let source = &mut self.report.sources[item.source];
        source.n_with_identifiers += 1;
        for (kind, n_found) in &counts {
            *source.identifiers.entry((*kind).to_owned()).or_default() += n_found;
        }
        let action = match self.config.identifiers {
            Identifiers::Mask => {
                source.count_change(RULE);
                "changed"
            }
            Identifiers::Drop => {
                source.count_drop(RULE);
                "dropped"
            }
            Identifiers::Report | Identifiers::Off => "kept",
        };
        self.ledger.push(Entry::of(item, action, RULE).with(counts));
    }
}
