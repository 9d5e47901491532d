//! HTTP semantics of a forwarded message: hygiene, forwarding fields, bodies, replies of our own.
