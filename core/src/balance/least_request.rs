//! Least request: fewest in flight for its weight.
//!
//! For equal weights it is the power of two choices: of two random endpoints the one with fewer requests in flight
//! (Mitzenmacher, 2001), which comes close to asking all of them and does not send every worker to the same one. With
//! unequal weights the first candidate is drawn by weight and keeps the request unless the other is much less busy *for
//! its weight*. A quiet cluster is thus shared by weight, where dividing `in flight + 1` by it would give everything to
//! the heaviest.
//!
//! It is blind to an endpoint that fails at once: that one is always idle. [`super::peak_ewma`] is not.

use super::Load;

/// How busy an endpoint is for its (relative) weight; comparable only within one tier.
#[must_use]
pub(super) fn cost(load: &Load, weight: f32) -> f32 {
    load.in_flight() as f32 / weight + 1.0
}
