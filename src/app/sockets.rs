//! Listening sockets, by identity.
//!
//! A socket outlives settings: a listener that keeps its address keeps its sockets over every reload. They come from
//! the process before us (hand-over), from systemd, or from the kernel. Copies are kept for the next hand-over.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use super::systemd::Activated;
use super::upgrade::{Inherited, distribute};
use crate::net::tcp::{self, Bound, ListenOptions, bind_workers};
use crate::net::{Address, SocketAddress};
use crate::server::Shared;
use crate::snapshot::Listener;

/// The sockets of one listener.
#[derive(Debug)]
pub struct Open {
    /// Counts of its connections.
    pub shared: Arc<Shared>,
    /// The listener it serves now.
    pub listener: Arc<Listener>,
    /// Where it really listens; the port is the kernel's when none was asked for.
    pub local: SocketAddress,
    /// For a successor.
    pub copies: Vec<Bound>,
}

/// All listening sockets of the process.
#[derive(Debug, Default)]
pub struct Sockets {
    open: HashMap<Arc<str>, Open>,
    /// Sockets of the operators' listeners with their keys, for a successor.
    operators: Vec<(String, Bound)>,
    /// From a predecessor, not yet claimed.
    pub inherited: Option<Inherited>,
    /// From systemd, not yet claimed.
    pub activated: Option<Activated>,
}

/// Sockets that were just opened for a listener, one list per worker.
#[derive(Debug)]
pub struct Fresh {
    /// Identity.
    pub key: Arc<str>,
    /// Whose.
    pub listener: Arc<Listener>,
    /// Counts of its connections.
    pub shared: Arc<Shared>,
    /// Per worker.
    pub sockets: Vec<Vec<Bound>>,
    local: SocketAddress,
    copies: Vec<Bound>,
}

/// The identity of a listener's sockets: its address, and its name where the kernel chooses the port.
pub fn key(listener: &Listener) -> Arc<str> {
    match &listener.address {
        Address::Tcp { port: 0, .. } => format!("{}@{}", listener.address, listener.name).into(),
        address => address.to_string().into(),
    }
}

impl Sockets {
    /// Nothing open yet, but sockets that others opened for us.
    pub fn given(inherited: Option<Inherited>, activated: Activated) -> Self {
        Self {
            open: HashMap::new(),
            operators: Vec::new(),
            inherited,
            activated: Some(activated),
        }
    }

    /// Opens sockets for a listener that has none yet. Nothing changes until [`Sockets::keep`].
    ///
    /// # Errors
    /// What the kernel said.
    pub fn bind(&mut self, listener: &Arc<Listener>, workers: usize) -> io::Result<Option<Fresh>> {
        let key = key(listener);
        if self.open.contains_key(&key) {
            return Ok(None);
        }
        let address = listener.address.to_listen()?;
        let inherited = self.inherited.as_mut().and_then(|inherited| inherited.take(&key));
        let activated = &mut self.activated;
        let given = || {
            activated
                .as_mut()
                .and_then(|activated| activated.take(&listener.name, &address))
        };
        let bound = match inherited.or_else(given) {
            Some(bound) => bound,
            None => bind_workers(&address, workers, &ListenOptions::default())?,
        };
        let local = bound.first().ok_or(io::ErrorKind::NotConnected)?.local_addr()?;
        let copies = bound
            .iter()
            .map(Bound::try_clone)
            .collect::<io::Result<Vec<_>>>()?;
        let sockets = distribute(bound, workers)?;
        let listener = Arc::clone(listener);
        Ok(Some(Fresh {
            key,
            listener,
            shared: Arc::default(),
            sockets,
            local,
            copies,
        }))
    }

    /// Opens an operators' listener, or takes over the predecessor's; `role` tells those at one address apart.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn operators(&mut self, role: &str, address: &Address) -> io::Result<tcp::Listener> {
        // No address of a listener looks like this.
        let key = format!("{role} {address}");
        let inherited = self.inherited.as_mut().and_then(|inherited| inherited.take(&key));
        let bound = match inherited {
            Some(bound) => bound,
            None => bind_workers(&address.to_listen()?, 1, &ListenOptions::default())?,
        };
        let socket = bound.into_iter().next().ok_or(io::ErrorKind::NotConnected)?;
        self.operators.push((key, socket.try_clone()?));
        tcp::Listener::new(socket, tcp::ConnectOptions::default())
    }

    /// All sockets with their keys, for a successor.
    pub fn copies(&self) -> impl Iterator<Item = (&str, &Bound)> {
        let listeners = self.open.iter();
        let listeners = listeners.flat_map(|(key, open)| open.copies.iter().map(move |copy| (&**key, copy)));
        listeners.chain(self.operators.iter().map(|(key, copy)| (key.as_str(), copy)))
    }

    /// Remembers what was opened.
    pub fn keep(&mut self, fresh: &mut Fresh) {
        let open = Open {
            shared: Arc::clone(&fresh.shared),
            listener: Arc::clone(&fresh.listener),
            local: fresh.local.clone(),
            copies: std::mem::take(&mut fresh.copies),
        };
        self.open.insert(Arc::clone(&fresh.key), open);
    }

    /// Updates the listeners and returns the identities that no listener has any more.
    pub fn reconcile(&mut self, listeners: &[Arc<Listener>]) -> Vec<Arc<str>> {
        let wanted: HashMap<Arc<str>, &Arc<Listener>> = listeners
            .iter()
            .map(|listener| (key(listener), listener))
            .collect();
        let mut gone: Vec<Arc<str>> = Vec::new();
        self.open.retain(|key, open| match wanted.get(key) {
            Some(listener) => {
                open.listener = Arc::clone(listener);
                true
            }
            None => {
                gone.push(Arc::clone(key));
                false
            }
        });
        gone.sort();
        gone
    }

    /// What is open, by identity.
    pub fn iter(&self) -> impl Iterator<Item = (&Arc<str>, &Open)> {
        self.open.iter()
    }

    /// The sockets of a listener by name.
    pub fn of(&self, name: &str) -> Option<&Open> {
        self.open.values().find(|open| &*open.listener.name == name)
    }

    /// Gives the copies up, so that the sockets close when the workers stop accepting.
    pub fn release(&mut self, key: &str) {
        if let Some(open) = self.open.get_mut(key) {
            open.copies.clear();
        }
    }
}
