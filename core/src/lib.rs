//! The decisions of the Bellwether proxy.
