//! Listeners and downstream connections of one worker.
//!
//! Each worker accepts from its own socket of a listener's group. What must hold over all workers (how many
//! connections there are, how many one client has) is counted in [`Shared`]; everything else is the worker's own.

pub mod connection;
pub mod listener;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;

/// Counts of one listener over all workers.
#[derive(Debug, Default)]
pub struct Shared {
    connections: AtomicU32,
    clients: Mutex<HashMap<IpAddr, u32>>,
}

/// A connection's place under its listener's limits; dropping it gives the place back.
#[derive(Debug)]
pub struct Place {
    shared: Arc<Shared>,
    client: Option<IpAddr>,
}

impl Shared {
    /// Open connections.
    pub fn connections(&self) -> u32 {
        self.connections.load(Ordering::Relaxed)
    }

    /// Counts one more connection, unless there are `limit`.
    pub fn enter(self: &Arc<Self>, limit: Option<u32>) -> Option<Place> {
        // Ordering: the count itself is exact; nothing else is published through it.
        let before = self.connections.fetch_add(1, Ordering::Relaxed);
        if limit.is_some_and(|limit| before >= limit) {
            self.connections.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        Some(Place {
            shared: Arc::clone(self),
            client: None,
        })
    }
}

impl Place {
    /// Counts the connection for its client, unless that one has `limit` already.
    pub fn for_client(&mut self, client: IpAddr, limit: u32) -> bool {
        // An IPv6 client usually has a /64 of its own.
        let client = match client {
            IpAddr::V4(_) => client,
            IpAddr::V6(address) => IpAddr::V6((u128::from(address) & !u128::from(u64::MAX)).into()),
        };
        let mut clients = self.shared.clients.lock();
        let count = clients.entry(client).or_insert(0);
        if *count >= limit {
            return false;
        }
        *count += 1;
        self.client = Some(client);
        true
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.connections.fetch_sub(1, Ordering::Relaxed);
        let Some(client) = self.client else { return };
        let mut clients = self.shared.clients.lock();
        if let Some(count) = clients.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                clients.remove(&client);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_given_back_by_dropping_it() {
        let shared = Arc::new(Shared::default());
        let first = shared.enter(Some(1));
        assert!(first.is_some());
        assert!(shared.enter(Some(1)).is_none());
        drop(first);
        assert!(shared.enter(Some(1)).is_some());
    }

    #[test]
    fn one_client_cannot_take_the_places_of_others() {
        let shared = Arc::new(Shared::default());
        let (one, other) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let mut first = shared.enter(None).unwrap();
        assert!(first.for_client(one, 1));
        let mut second = shared.enter(None).unwrap();
        assert!(!second.for_client(one, 1));
        assert!(second.for_client(other, 1));
        drop(first);
        let mut third = shared.enter(None).unwrap();
        assert!(third.for_client(one, 1));
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_client() {
        let shared = Arc::new(Shared::default());
        let mut first = shared.enter(None).unwrap();
        assert!(first.for_client("2001:db8::1".parse().unwrap(), 1));
        let mut second = shared.enter(None).unwrap();
        assert!(!second.for_client("2001:db8::2".parse().unwrap(), 1));
    }
}
