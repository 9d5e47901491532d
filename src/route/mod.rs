//! Which route a request takes: a compiled table that equals first match wins.
