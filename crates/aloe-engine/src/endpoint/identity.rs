//! What tells an endpoint's answers from every other's, for the keys of an answer cache. No more is known of a server than its
//! address and what its list of models says.

use super::Endpoint;
use serde_json::{Value, json};

impl Endpoint {
    /// Addresses, model, what the list says of it and who renders.
    pub(crate) fn cache_identity(&self) -> Value {
        json!({
            "address": self.replicas.bases(), "model": self.model, "listed": self.listed, "server_template": self.server_template
        })
    }

    /// Whether the server renders chat messages itself.
    pub(crate) fn renders(&self) -> bool {
        self.server_template
    }
}
