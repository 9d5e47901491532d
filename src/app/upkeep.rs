//! What happens by the passing of time alone: breakers whose time is over, endpoints that are compared, and gauges that tell how they stand.
//!
//! Requests do all of this too when they come by. This is for the time when none comes.

use std::time::{SystemTime, UNIX_EPOCH};

use bellwether_core::Dice;

use crate::cluster::outliers::Witness;
use crate::snapshot::Snapshot;

/// Lets time pass for everything in `snapshot`. To be called about once a second.
pub(super) fn upkeep(snapshot: &Snapshot, witness: Witness<'_>, dice: &mut Dice) {
    let Witness {
        worker, events, now, ..
    } = witness;
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    for guarded in snapshot.routes.iter().flat_map(|route| route.breakers.iter()) {
        if let Some(change) = guarded.breaker.tick(&guarded.settings, now, dice) {
            guarded.changed(worker, events, snapshot.generation, &change);
        }
        guarded.report(now, since_epoch);
    }
    for cluster in &snapshot.clusters {
        cluster.metrics.show_concurrency(cluster.adaptive_readings());
        cluster.sweep(witness, dice);
        cluster.heed_all(witness);
        cluster.weigh(witness);
    }
}
