//! The circuit breakers of routes: which stands in whose way.

use super::ClusterId;
pub use crate::cluster::guarded::Guarded;

/// The breakers in the way of one route.
#[derive(Debug, Clone, Default)]
pub enum Breakers {
    /// None.
    #[default]
    Off,
    /// One for the route.
    Route(Guarded),
    /// One for each cluster that the route can lead to, shared with other routes to it.
    Cluster(Box<[(ClusterId, Guarded)]>),
    /// One for each endpoint: which of those that each cluster has.
    Endpoint(Box<[(ClusterId, usize)]>),
    /// The same, for this route alone.
    RouteEndpoint(Box<[(ClusterId, usize)]>),
}

impl Breakers {
    /// The one in the way of requests to this cluster.
    pub fn toward(&self, cluster: ClusterId) -> Option<&Guarded> {
        match self {
            Self::Off | Self::Endpoint(_) | Self::RouteEndpoint(_) => None,
            Self::Route(guarded) => Some(guarded),
            Self::Cluster(guarded) => {
                let (_, guarded) = guarded.iter().find(|(id, _)| *id == cluster)?;
                Some(guarded)
            }
        }
    }

    /// The one in the way of attempts at endpoints of this cluster: its place among those that each endpoint has.
    pub fn at_endpoints(&self, cluster: ClusterId) -> Option<usize> {
        let (_, place) = self.places().iter().find(|(id, _)| *id == cluster)?;
        Some(*place)
    }

    /// The one of the cluster that a fallback leads to; that of the route has spoken already.
    pub fn toward_fallback(&self, cluster: ClusterId) -> Option<&Guarded> {
        match self {
            Self::Off | Self::Route(_) | Self::Endpoint(_) | Self::RouteEndpoint(_) => None,
            Self::Cluster(_) => self.toward(cluster),
        }
    }

    /// Where those of endpoints are found, by cluster.
    pub fn places(&self) -> &[(ClusterId, usize)] {
        match self {
            Self::Off | Self::Route(_) | Self::Cluster(_) => &[],
            Self::Endpoint(places) | Self::RouteEndpoint(places) => places,
        }
    }

    /// The word for what one guards.
    pub const fn scope(&self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Route(_) => "route",
            Self::Cluster(_) => "cluster",
            Self::Endpoint(_) => "endpoint",
            Self::RouteEndpoint(_) => "route_endpoint",
        }
    }

    /// Those that requests meet; those of endpoints are the clusters'.
    pub fn iter(&self) -> impl Iterator<Item = &Guarded> {
        let (one, more): (_, &[(ClusterId, Guarded)]) = match self {
            Self::Off | Self::Endpoint(_) | Self::RouteEndpoint(_) => (None, &[]),
            Self::Route(guarded) => (Some(guarded), &[]),
            Self::Cluster(guarded) => (None, guarded),
        };
        one.into_iter().chain(more.iter().map(|(_, guarded)| guarded))
    }
}
