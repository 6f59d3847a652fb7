//! A configuration held against the keys of the pinned version of its engine.
