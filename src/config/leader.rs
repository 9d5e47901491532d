//! Who leads, as written.

use std::time::Duration;

use super::table::{List, Many, Map, Sp, object, words};
use super::tls::ClusterTls;
use super::units::{AnyValue, HeaderName, Method, Pointer, Size, Statuses};

words! {
    /// Known systems.
    Preset: "leader preset", "presets" {
        Patroni = "patroni", Etcd = "etcd", Consul = "consul", Vault = "vault", Rqlite = "rqlite", Webdis = "webdis",
        Orchestrator = "orchestrator",
    }
}
words! {
    /// What a 2xx of a write means.
    Durability: "durability", "durabilities" { Async = "async", Quorum = "quorum" }
}
words! {
    /// Two claims at once.
    OnConflict: "reaction", "reactions" { HighestEpoch = "highest_epoch", KeepCurrent = "keep_current", RejectWrites = "reject_writes" }
}
words! {
    /// In-flight requests on the former leader.
    OldLeaderRequests: "reaction", "reactions" { Finish = "finish", Abort = "abort" }
}
words! {
    /// What the value of the key names.
    KeyMatch: "choice", "choices" { Address = "address", Name = "name" }
}

object! {
    /// Who leads. A bare word is a preset.
    Leader = "leader", short preset {
        /// fills `http`; any field of `http` may be overridden
        preset: Option<Sp<Preset>> = none;
        /// ask every endpoint; several sources may be given, they are merged
        http: Option<Sp<LeaderHttp>> = none;
        /// a name that resolves to the leader
        dns: Option<Sp<LeaderDns>> = none;
        /// holderIdentity matches endpoint name or address
        kubernetes_lease: Option<Sp<LeaderLease>> = none;
        /// value names the leader
        etcd_key: Option<Sp<LeaderEtcdKey>> = none;
        /// `role:` of the endpoints
        fixed @ "static": Option<Sp<bool>> = none;
        /// what a 2xx of a write means; async: late answers of a deposed leader are not passed on as success
        durability: Option<Sp<Durability>> = none as "by preset, else async";
        /// hints only, trigger an immediate probe
        from_responses: Option<Sp<FromResponses>> = none;
        /// per endpoint, jittered; 200 ms while no leader is known
        interval: Sp<Duration> = "1s" in (1, u32::MAX);
        /// to answer
        timeout: Sp<Duration> = "500ms" in (1, u32::MAX);
        /// an unconfirmed claim older than this is not believed
        max_age: Sp<Duration> = "5s" in (1, u32::MAX);
        /// two claims at once; a registry source (etcd_key, kubernetes_lease) always decides first
        on_conflict: Sp<OnConflict> = "highest_epoch" as "highest_epoch; equal epochs: reject_writes";
        /// hold writes (and `strong`/`leader` reads) while no leader is usable, then 503 `no_leader` + Retry-After; a duration is `max_wait`
        hold: Sp<Option<Hold>> = "10s";
        /// in-flight requests on the former leader
        old_leader_requests: Sp<OldLeaderRequests> = "finish";
        /// request header on writes with the believed epoch, so that the backend can refuse an old one (fencing)
        epoch_header: Sp<Option<HeaderName>> = "x-bellwether-epoch";
    }
}

object! {
    /// How writes wait for a leader. A bare duration is `max_wait`.
    Hold = "leader.hold", short max_wait {
        /// how long
        max_wait: Sp<Duration> = "10s";
        /// how many
        max_requests: Sp<u32> = "1000" in (1, 1_000_000);
        /// how much
        max_bytes: Sp<Size> = "16MiB";
        /// larger bodies are refused at once
        max_body: Sp<Size> = "64KiB";
        /// a longer gap stops holding
        max_failover: Sp<Option<Duration>> = "20s";
    }
}

object! {
    /// Ask every endpoint.
    LeaderHttp = "leader.http" {
        /// where to ask
        port: Option<Sp<u32>> = none as "endpoint's" in (1, 65_535);
        /// what to ask
        path: Option<Sp<String>> = none as "req unless preset";
        /// how to ask
        method: Sp<Method> = "GET";
        /// body of the question
        body: Option<Sp<String>> = none;
        /// headers of the question
        headers: Option<Sp<Map<String>>> = none;
        /// TLS of the question
        tls: Option<Sp<Option<ClusterTls>>> = none as "cluster's";
        /// a list: all must hold
        leader_when: Option<Sp<Many<Condition>>> = none as "{status: \"200-299\"}";
        /// who follows
        replica_when: Option<Sp<Many<Condition>>> = none as "answered, 2xx, and not leader";
        /// JSON pointer(s) or `header:NAME`, first present wins; grows with every election; believed only from nodes that claim to lead
        epoch: Option<Sp<Many<Pointer>>> = none;
        /// a different cluster is never followed
        cluster_id: Option<Sp<Many<Pointer>>> = none;
        /// extra proof that the claim is current
        fresh_when: Option<Sp<Condition>> = none;
        /// replication position
        position: Option<Sp<Many<Pointer>>> = none;
    }
}

object! {
    /// What an answer must say.
    Condition = "condition" {
        /// answers with these statuses
        status: Option<Sp<Many<Statuses>>> = none;
        /// with one of equals, in, equals_json
        json: Option<Sp<Pointer>> = none;
        /// the value
        equals: Option<Sp<AnyValue>> = none;
        /// one of the values
        one_of @ "in": Option<Sp<List<AnyValue>>> = none;
        /// compare two fields of the same answer
        equals_json: Option<Sp<Pointer>> = none;
        /// value is this endpoint's host (port ignored)
        equals_self: Option<Sp<bool>> = none;
        /// with equals or in
        header: Option<Sp<HeaderName>> = none;
    }
}

object! {
    /// A name that resolves to the leader.
    LeaderDns = "leader.dns" {
        /// the name
        name: Sp<String> = req;
    }
}

object! {
    /// A Kubernetes lease.
    LeaderLease = "leader.lease" {
        /// name of the lease
        name: Sp<String> = req;
        /// where it is
        namespace: Option<Sp<String>> = none as "own";
    }
}

object! {
    /// A key in etcd.
    LeaderEtcdKey = "leader.etcd_key" {
        /// addresses of etcd
        endpoints: Sp<List<String>> = req;
        /// `/service/main/leader`
        key: Sp<String> = req;
        /// what the value names
        matches @ "match": Sp<KeyMatch> = "address";
    }
}

object! {
    /// What ordinary answers tell about the leader.
    FromResponses = "leader.from_responses" {
        /// 307/308 Location, followed for any method because nothing was executed
        redirect: Sp<bool> = "true";
        /// header naming the leader
        header: Option<Sp<HeaderName>> = none;
        /// safe to retry on another endpoint
        not_leader_status: Sp<Many<Statuses>> = "[421]" as "421";
    }
}
