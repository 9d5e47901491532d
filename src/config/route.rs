//! Routes, as written: what they match, what they do, and the settings they share with policies.

use super::policy::Policy;
use super::table::{Many, Map, Sp, object, words};
use super::units::{
    Cidr, FilePath, GrpcStatus, HeaderName, HostPattern, Method, Pattern, Percent, RequestKey, UrlPath,
};

words! {
    /// Scheme of a redirect.
    Scheme: "scheme", "schemes" { Http = "http", Https = "https" }
}

object! {
    /// What to do with some requests. The first route that matches is taken.
    Route = "route" {
        /// stable key for state and metrics: name your routes
        name: Option<Sp<String>> = none as "`route-N`";
        /// names of listeners
        listeners: Option<Sp<Many<String>>> = none as "all inbound";
        /// all keys must match; several values in one key = any of them
        matches @ "match": Sp<RouteMatch> = "{}" as "everything";
        /// exactly one of cluster, weighted_clusters, redirect, direct_response
        cluster: Option<Sp<String>> = none;
        /// name → weight
        weighted_clusters: Option<Sp<Map<u32>>> = none;
        /// same key, same side of the split
        split_key: Option<Sp<Many<RequestKey>>> = none as "random";
        /// answer with another place
        redirect: Option<Sp<Redirect>> = none;
        /// answer by ourselves
        direct_response: Option<Sp<DirectResponse>> = none;
        /// change the request before it is sent
        rewrite: Option<Sp<Rewrite>> = none;
        /// answers ignored, never retried, never counted
        mirror: Option<Sp<Mirror>> = none;
        /// changes to request headers
        request_headers: Option<Sp<HeaderEdits>> = none;
        /// changes to response headers
        response_headers: Option<Sp<HeaderEdits>> = none;
        /// name in `policies`
        policy_name @ "policy": Option<Sp<String>> = none;
        ..policy: Policy;
    }
}

object! {
    /// Which requests a route takes.
    RouteMatch = "route.match" {
        /// exact or `"*.example.com"`; port ignored
        host: Option<Sp<Many<HostPattern>>> = none as "any";
        /// exact; at most one of path, path_prefix, path_regex
        path: Option<Sp<Many<UrlPath>>> = none;
        /// whole segments: `/api` matches `/api` and `/api/x`, not `/apix`
        path_prefix: Option<Sp<Many<UrlPath>>> = none;
        /// whole path
        path_regex: Option<Sp<Pattern>> = none;
        /// request methods
        method: Option<Sp<Many<Method>>> = none as "any";
        /// names case-insensitive
        headers: Option<Sp<Map<ValueMatch>>> = none;
        /// query parameters
        query: Option<Sp<Map<ValueMatch>>> = none;
        /// content-type application/grpc and this service/method
        grpc: Option<Sp<GrpcMatch>> = none;
        /// after `trusted_proxies`
        client_ip: Option<Sp<Many<Cidr>>> = none;
    }
}

object! {
    /// A condition on a header or a query parameter. A bare value is `exact`.
    ValueMatch = "value_match", short exact {
        /// exactly one key of this table
        exact: Option<Sp<String>> = none;
        /// starts with
        prefix: Option<Sp<String>> = none;
        /// ends with
        suffix: Option<Sp<String>> = none;
        /// has in it
        contains: Option<Sp<String>> = none;
        /// matches as a whole
        regex: Option<Sp<Pattern>> = none;
        /// is there, or is not
        present: Option<Sp<bool>> = none;
    }
}

object! {
    /// gRPC calls.
    GrpcMatch = "match.grpc" {
        /// `shop.v1.Cart`
        service: Sp<String> = req;
        /// names of calls
        method: Option<Sp<Many<String>>> = none as "any";
    }
}

object! {
    /// Answer with another place.
    Redirect = "route.redirect" {
        /// scheme of the target
        scheme: Option<Sp<Scheme>> = none as "same";
        /// host of the target
        host: Option<Sp<String>> = none as "same";
        /// port of the target
        port: Option<Sp<u32>> = none as "default of scheme" in (1, 65_535);
        /// path of the target
        path: Option<Sp<String>> = none as "same";
        /// replaces the matched prefix
        path_prefix: Option<Sp<UrlPath>> = none;
        /// 301 302 303 307 308
        status: Sp<u32> = "308";
    }
}

object! {
    /// Answer by ourselves.
    DirectResponse = "route.direct_response" {
        /// 200 to 599
        status: Sp<u32> = "200";
        /// text, may hold templates
        body: Option<Sp<String>> = none;
        /// file that is sent
        body_file: Option<Sp<FilePath>> = none;
        /// headers of the answer
        headers: Option<Sp<Map<String>>> = none;
        /// status in gRPC answers
        grpc_status: Option<Sp<GrpcStatus>> = none as "by status";
    }
}

object! {
    /// Change the request before it is sent.
    Rewrite = "route.rewrite" {
        /// replaces the matched `path_prefix`
        path_prefix: Option<Sp<UrlPath>> = none;
        /// replaces the path
        path: Option<Sp<UrlPath>> = none;
        /// replaces what a regex finds
        regex: Option<Sp<RewriteRegex>> = none;
        /// literal, or `{endpoint}`
        host: Option<Sp<String>> = none as "client's Host";
    }
}

object! {
    /// Replace by regex.
    RewriteRegex = "rewrite.regex" {
        /// matched against the whole path
        pattern: Sp<Pattern> = req;
        /// `$1`, `$${name}`
        substitution: Sp<String> = req;
    }
}

object! {
    /// Send a copy of requests somewhere else.
    Mirror = "route.mirror" {
        /// who gets the copy
        cluster: Sp<String> = req;
        /// how many of the requests
        percent: Sp<Percent> = "100%";
    }
}

object! {
    /// Changes to headers, in this order: remove, set, add.
    HeaderEdits = "header_edits" {
        /// replaces all values of a header
        set: Option<Sp<Map<String>>> = none;
        /// adds one more value
        add: Option<Sp<Map<String>>> = none;
        /// takes headers away
        remove: Option<Sp<Many<HeaderName>>> = none;
    }
}
