//! The process itself: admin listener, threads, draining, reload, fleet; and the tests of a configuration. As written.

use std::time::Duration;

use super::listener::ReadOrWrite;
use super::policy::Mode;
use super::table::{List, Many, Map, Sp, object, words};
use super::tls::ListenerTls;
use super::units::{Address, Auto, OutputPath, Secret, Size, Url, WordOr};

words! {
    /// What is shared between proxies.
    Shared: "kind of state", "kinds" {
        RateLimits = "rate_limits", Breakers = "breakers", Ejections = "ejections", Leader = "leader", Sessions = "sessions",
    }
}
words! {
    /// What happens when the store cannot be reached.
    OnLoss: "reaction", "reactions" { Local = "local", Reject = "reject" }
}

object! {
    /// The operators' listener: API, dashboard, metrics.
    Admin = "admin" {
        /// off loopback: `auth` or `read_only` is required
        address: Sp<Address> = "127.0.0.1:9900";
        /// the page
        dashboard: Sp<bool> = "true";
        /// refuses what changes something
        read_only: Sp<bool> = "false";
        /// who may use it
        auth: Option<Sp<AdminAuth>> = none;
        /// TLS for operators
        tls: Sp<Option<ListenerTls>> = "off";
    }
}

object! {
    /// Who may use the admin listener.
    AdminAuth = "admin.auth" {
        /// use `${file:…}`
        bearer_token: Option<Sp<Secret>> = none;
        /// read only
        viewer_token: Option<Sp<Secret>> = none;
        /// heartbeats of endpoints, nothing else
        heartbeat_token: Option<Sp<Secret>> = none;
    }
}

object! {
    /// The process.
    Runtime = "runtime" {
        /// cgroup-aware
        worker_threads: Sp<WordOr<Auto, u32>> = "auto" in (1, 1_024);
        /// how we stop
        drain: Sp<Drain> = "{}";
        /// how changes are taken up
        reload: Sp<Reload> = "{}";
        /// the zone we run in, for `load_balancing.zone_aware`
        zone: Option<Sp<String>> = none as "$BELLWETHER_ZONE";
        /// what is given up when memory, descriptors or time run short
        overload: Sp<Option<Overload>> = "{}" as "on";
        /// last good discovery, breaker and leader state for a warm start
        state_file: Option<Sp<OutputPath>> = none;
    }
}

object! {
    /// What is given up when memory, descriptors or time run short.
    Overload = "runtime.overload" {
        /// observe = levels are shown, and nothing is given up
        mode: Sp<Mode> = "enforce";
        /// what the process may use
        max_memory: Option<Sp<Size>> = none as "limit of the control group, else physical memory";
    }
}

object! {
    /// How we stop.
    Drain = "runtime.drain" {
        /// not ready but still accepting
        min: Sp<Duration> = "15s" as "5s sidecar, 15s edge";
        /// then exit; what is cut off is counted in the log (exit code 8)
        max: Sp<Duration> = "60s" as "30s sidecar, 60s edge";
        /// outbound listeners stay until the app's connections are gone
        wait_for_app: Sp<bool> = "false" as "true in profile sidecar";
    }
}

object! {
    /// How changes are taken up.
    Reload = "runtime.reload" {
        /// file and directory, symlink swap included
        watch: Sp<bool> = "true";
        /// quiet time before a change is read
        debounce: Sp<Duration> = "250ms";
    }
}

object! {
    /// State shared between proxies.
    Fleet = "fleet" {
        /// exactly one of etcd, redis, raft
        etcd: Option<Sp<FleetEtcd>> = none;
        /// a Redis server
        redis: Option<Sp<FleetRedis>> = none;
        /// the proxies themselves
        raft: Option<Sp<FleetRaft>> = none;
        /// proxies with the same name share
        name: Sp<String> = "default";
        /// what is shared
        share: Sp<Many<Shared>> = "[rate_limits, leader]";
        /// store unreachable: go on alone, or refuse what needs it
        on_loss: Sp<OnLoss> = "local";
    }
}

object! {
    /// An etcd cluster.
    FleetEtcd = "fleet.etcd" {
        /// its addresses
        endpoints: Sp<List<String>> = req;
        /// where keys start
        prefix: Sp<String> = "/bellwether";
    }
}

object! {
    /// A Redis server.
    FleetRedis = "fleet.redis" {
        /// `redis://host:6379/0`
        url: Sp<Url> = req;
    }
}

object! {
    /// The proxies themselves.
    FleetRaft = "fleet.raft" {
        /// this proxy
        node_id: Sp<String> = req;
        /// where the others reach it
        address: Sp<Address> = req;
        /// the others by name
        peers: Sp<Map<Address>> = req;
        /// where its log is kept
        data_dir: Sp<OutputPath> = req;
    }
}

object! {
    /// This request must take that route.
    Test = "test" {
        /// `GET https://shop.example/api`
        request: Sp<String> = req;
        /// where it arrives
        listener: Option<Sp<String>> = none as "first that fits";
        /// its headers
        headers: Option<Sp<Map<String>>> = none;
        /// what must come of it
        expect: Sp<Expect> = req;
    }
}

object! {
    /// What must come of a request.
    Expect = "test.expect" {
        /// name of the route
        route: Option<Sp<String>> = none;
        /// name of the cluster
        cluster: Option<Sp<String>> = none;
        /// direct responses, redirects, 404
        status: Option<Sp<u32>> = none in (100, 599);
        /// of a redirect
        location: Option<Sp<String>> = none;
        /// after rewrite
        path: Option<Sp<String>> = none;
        /// what the request does to data
        operation: Option<Sp<ReadOrWrite>> = none;
    }
}
