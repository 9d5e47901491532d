"""The proxies, each configured for resilience as well as its manual allows.

One brief for all: an application whose answers take some milliseconds and whose callers give up after five seconds. So a
connection gets half a second, a try one second, a request two further tries on other servers within four seconds;
GETs may be repeated after any failure, POSTs only if nobody can have seen them. Health checks once a second with half a
second to answer, two failures in a row count. Whoever fails is set aside for five seconds at first. Beyond that each has
what it alone can do.
"""

import json
import pathlib
import subprocess
import urllib.request

from network import NAME
from process import Process


class Proxy:
    """How the configuration of a proxy reads and how it is started.

    `servers` are the addresses of the upstreams; with `names` they are to be found, and followed, by name.
    """

    name: str
    title: str
    #: Which program it is.
    binary_name: str
    file: str
    #: What could not be configured here, for the report.
    lacks = ""

    def __init__(self, binary, directory, servers, upstream_port, port, admin, names):
        self.binary, self.servers, self.upstream_port = binary, servers, upstream_port
        self.port, self.admin, self.names = port, admin, names
        self.directory = pathlib.Path(directory) / self.name
        self.directory.mkdir(parents=True)
        self.path = self.directory / self.file
        self.process = None

    @property
    def addresses(self):
        return [f"{server}:{self.upstream_port}" for server in self.servers]

    def start(self):
        self.path.write_text(self.config())
        self.process = Process(self.command(), self.directory / "log")

    def evidence(self):
        """What the proxy itself says has happened."""
        return {}


class Bellwether(Proxy):
    name = "bellwether"
    title = "bellwether"
    binary_name = "bellwether"
    file = "bellwether.yaml"

    policy = """
    timeout: 4s
    retry:
      num_retries: 2
      per_try_timeout: 1s
      retry_on: [connect_failure, refused_stream, reset, per_try_timeout, 5xx]"""
    check = "{ path: /healthz, interval: 1s, timeout: 500ms, unhealthy_threshold: 2 }"
    cluster = """
    connect_timeout: 500ms
    outlier_detection: { consecutive_5xx: 5LATENCY }"""
    #: Compares latencies; a version that does not know it yet is run without.
    latency = ", latency_factor: 3"

    def start(self):
        self.path.write_text(self.config())
        checked = subprocess.run([self.binary, "check", "-c", self.path], capture_output=True, text=True, check=False)
        if checked.returncode != 0 and "latency_factor" in checked.stdout + checked.stderr:
            self.latency = ""
            self.lacks = "this version does not perform outlier_detection.latency_factor"
        super().start()

    def config(self):
        cluster = self.cluster.replace("LATENCY", self.latency)
        where = f"discovery: {{ dns: {{ name: {NAME}:{self.upstream_port} }} }}"
        if not self.names:
            where = f"endpoints: {json.dumps(self.addresses)}"
        # All users of this bench have one address.
        limits = "limits: { max_connections_per_ip: off }"
        return f"""
listeners:
  web: {{ address: "127.0.0.1:{self.port}", {limits} }}
routes:
  - cluster: app{self.policy}
clusters:
  app:
    health_check: {self.check}
    {where}{cluster}
telemetry: {{ access_log: off }}
admin: {{ address: "127.0.0.1:{self.admin}" }}
runtime: {{ worker_threads: 1 }}
"""

    def command(self):
        return [self.binary, "run", "-c", str(self.path)]

    def evidence(self):
        metrics = self.ask("/metrics").splitlines()
        return {
            "events": json.loads(self.ask("/api/v1/events") or "{}").get("events", []),
            "endpoints": json.loads(self.ask("/api/v1/clusters/app/endpoints") or "{}").get("endpoints", []),
            "retries": [line for line in metrics if line.startswith("bellwether_retries") and not line.endswith(" 0")],
            "log": (self.directory / "log").read_text(errors="replace")[-8000:],
        }

    def ask(self, path):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}{path}", timeout=2) as answer:
                return answer.read().decode()
        except OSError:
            return ""


class BellwetherDefaults(Bellwether):
    """What somebody gets who writes nothing but where the endpoints are and how to check them."""

    name = "bellwether-defaults"
    title = "bellwether, defaults"
    policy = cluster = ""
    check = "/healthz"


class HAProxy(Proxy):
    name = "haproxy"
    title = "HAProxy"
    binary_name = "haproxy"
    file = "haproxy.cfg"

    def config(self):
        servers = "\n".join(f"    server s{number} {address}" for number, address in enumerate(self.addresses, 1))
        if self.names:
            servers = f"    server-template s 4 {NAME}:{self.upstream_port} resolvers local init-addr libc,none"
        return f"""
global
    nbthread 1
    maxconn 8000
resolvers local
    nameserver local 127.0.0.1:53
    hold valid 1s
    hold obsolete 1s
    resolve_retries 2
    timeout resolve 1s
    timeout retry 500ms
defaults
    mode http
    timeout connect 500ms
    timeout client 60s
    timeout server 1s
    timeout queue 1s
    timeout check 500ms
    timeout http-request 10s
    retries 2
    option redispatch 1
    retry-on conn-failure empty-response response-timeout 500 502 503 504
    http-reuse safe
frontend web
    bind 127.0.0.1:{self.port}
    default_backend app
backend app
    balance leastconn
    http-request disable-l7-retry if METH_POST
    option httpchk GET /healthz
    default-server check inter 1s fastinter 200ms downinter 1s fall 2 rise 2
    default-server observe layer7 error-limit 5 on-error mark-down slowstart 10s
{servers}
"""

    def command(self):
        return [self.binary, "-f", str(self.path), "-db"]


class Nginx(Proxy):
    name = "nginx"
    title = "nginx"
    binary_name = "nginx"
    file = "nginx.conf"

    def config(self):
        servers = "\n".join(f"    server {address} max_fails=3 fail_timeout=5s;" for address in self.addresses)
        upstream = f"upstream app {{\n    zone app 256k;\n    least_conn;\n{servers}\n    keepalive 64;\n  }}"
        target = 'proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection "";'
        if self.names:
            # This edition follows a name only where a variable holds it, and then neither counts failures nor keeps
            # connections; it does try the next address.
            upstream = "resolver 127.0.0.1 valid=1s ipv6=off;"
            target = f"set $app {NAME}; proxy_pass http://$app:{self.upstream_port}; proxy_http_version 1.1;"
        return f"""
daemon off;
master_process off;
worker_processes 1;
pid {self.directory}/pid;
error_log stderr crit;
events {{ worker_connections 8000; }}
http {{
  access_log off;
  client_body_temp_path {self.directory}/body;
  proxy_temp_path {self.directory}/proxy;
  fastcgi_temp_path {self.directory}/f;
  uwsgi_temp_path {self.directory}/u;
  scgi_temp_path {self.directory}/s;
  keepalive_requests 1000000;
  {upstream}
  server {{
    listen 127.0.0.1:{self.port} backlog=4096;
    location / {{
      {target}
      proxy_set_header Host $http_host;
      proxy_connect_timeout 500ms;
      proxy_send_timeout 1s;
      proxy_read_timeout 1s;
      proxy_next_upstream error timeout invalid_header http_500 http_502 http_503 http_504;
      proxy_next_upstream_tries 3;
      proxy_next_upstream_timeout 4s;
    }}
  }}
}}
"""

    def command(self):
        return [self.binary, "-p", str(self.directory), "-c", str(self.path)]


class Envoy(Proxy):
    name = "envoy"
    title = "Envoy"
    binary_name = "envoy"
    file = "envoy.yaml"

    def config(self):
        servers = [NAME] if self.names else self.servers
        endpoints = "".join(
            f"""
          - endpoint: {{ address: {{ socket_address: {{ address: {server}, port_value: {self.upstream_port} }} }} }}"""
            for server in servers
        )
        kind = "STRICT_DNS\n    respect_dns_ttl: true\n    dns_lookup_family: V4_ONLY" if self.names else "STATIC"
        predicate = "envoy.retry_host_predicates.previous_hosts"
        retry = f"""
                    num_retries: 2
                    per_try_timeout: 1s
                    retry_back_off: {{ base_interval: 0.005s, max_interval: 0.050s }}
                    host_selection_retry_max_attempts: 5
                    retry_host_predicate:
                    - name: {predicate}
                      typed_config:
                        "@type": type.googleapis.com/envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"""
        return f"""
static_resources:
  listeners:
  - name: web
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {self.port} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: web
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes:
              - match: {{ prefix: /, headers: [{{ name: ":method", string_match: {{ exact: POST }} }}] }}
                route:
                  cluster: app
                  timeout: 4s
                  retry_policy:
                    retry_on: connect-failure,refused-stream{retry}
              - match: {{ prefix: / }}
                route:
                  cluster: app
                  timeout: 4s
                  retry_policy:
                    retry_on: 5xx,reset,connect-failure,refused-stream{retry}
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}
  clusters:
  - name: app
    type: {kind}
    connect_timeout: 0.5s
    lb_policy: LEAST_REQUEST
    least_request_lb_config: {{ slow_start_config: {{ slow_start_window: 10s }} }}
    common_lb_config: {{ healthy_panic_threshold: {{ value: 20 }} }}
    outlier_detection:
      interval: 1s
      base_ejection_time: 5s
      max_ejection_time: 300s
      max_ejection_percent: 70
      always_eject_one_host: true
      # Else a green check brings back a host whose application fails.
      successful_active_health_check_uneject_host: false
      consecutive_5xx: 5
      consecutive_gateway_failure: 5
      enforcing_consecutive_gateway_failure: 100
      split_external_local_origin_errors: true
      consecutive_local_origin_failure: 3
      enforcing_consecutive_local_origin_failure: 100
      failure_percentage_threshold: 20
      failure_percentage_minimum_hosts: 3
      failure_percentage_request_volume: 20
      enforcing_failure_percentage: 100
      enforcing_failure_percentage_local_origin: 100
    circuit_breakers:
      thresholds:
      - max_connections: 8000
        max_pending_requests: 8000
        max_requests: 8000
        retry_budget: {{ budget_percent: {{ value: 20 }}, min_retry_concurrency: 50 }}
    health_checks:
    - timeout: 0.5s
      interval: 1s
      # Without this the second check comes a minute after the start, because the first has seen no traffic.
      no_traffic_interval: 1s
      unhealthy_threshold: 2
      healthy_threshold: 2
      http_health_check: {{ path: /healthz }}
    load_assignment:
      cluster_name: app
      endpoints:
      - lb_endpoints:{endpoints}
"""

    def command(self):
        return [self.binary, "-c", str(self.path), "--log-level", "error", "--concurrency", "1", "--disable-hot-restart"]


ALL = {kind.name: kind for kind in (Bellwether, BellwetherDefaults, HAProxy, Nginx, Envoy)}
