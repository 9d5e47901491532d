//! The world of one configuration: immutable, compiled, swapped atomically.
