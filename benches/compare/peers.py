"""The proxies, each configured as well as it can be for the same duties, and the upstream behind them.

Duties: two endpoints with keep-alive connections to both, a health check, `x-forwarded-for`, one thread, HTTP/1.1 and
TLS on their ports, HTTP/2 without TLS, no access log. Everything beyond that which a proxy does by default stays on:
for bellwether these are the policies of the quickstart (retry, ejection, breaker, metrics, request ids).
"""

import dataclasses
import pathlib
import signal
import subprocess

import load
from process import Process, free_ports

SMALL = 1024
LARGE = 1 << 20


@dataclasses.dataclass
class Ports:
    """Where a proxy listens."""

    http: int
    http2: int
    tls: int
    admin: int

    @classmethod
    def free(cls):
        return cls(*free_ports(4))


class Peer:
    """A proxy: how its configuration reads and how it is started."""

    name: str
    #: What its processes are asked with to load the configuration anew.
    reload_signal = signal.SIGHUP

    def __init__(self, binary, directory, certificate, upstreams, label=None):
        self.binary = binary
        self.label = label or self.name
        self.directory = pathlib.Path(directory) / self.label.replace(" ", "-")
        self.directory.mkdir(parents=True)
        self.certificate = certificate
        self.upstreams = upstreams
        self.ports = Ports.free()
        self.process = None

    def start(self, core, prefix=(), reloadable=False, wait=True):
        """Starts it pinned to `core`; `prefix` is a program to run it under."""
        self.write(reloadable)
        self.process = Process([*prefix, *self.command(reloadable)], self.directory / "log", core)
        if wait:
            try:
                load.first_answer(self.ports.http, self.process.started, alive=self.process.alive)
            except OSError as problem:
                said = self.process.said()
                self.stop()
                raise RuntimeError(f"{self.label} does not serve: {problem}\n{said}") from problem
        return self

    def stop(self):
        if self.process:
            self.process.stop()
            self.process = None

    def reload(self):
        self.write(True)
        self.process.signal(self.reload_signal)

    def write(self, reloadable):
        """Writes the configuration; each time a little different, so that a reload has something to do."""
        self.generation = getattr(self, "generation", 0) + 1
        path = self.directory / self.file
        path.with_suffix(".new").write_text(self.config(reloadable))
        path.with_suffix(".new").rename(path)

    @property
    def path(self):
        return self.directory / self.file


class Bellwether(Peer):
    name = "bellwether"
    file = "bellwether.yaml"
    access_log = "off"
    #: Lines for the route and for the cluster, besides the defaults.
    route = cluster = ""

    def config(self, reloadable):
        ports, (one, two) = self.ports, self.upstreams
        pem = f'cert: "{self.certificate}.crt", key: "{self.certificate}.key"'
        limits = "limits: { max_connections_per_ip: off }"
        # Editing a header is no duty of the others: only where a reload must have an effect to see.
        edit = f'    response_headers: {{ set: {{ x-generation: "{self.generation}" }} }}' if reloadable else ""
        return f"""
listeners:
  web: {{ address: "127.0.0.1:{ports.http}", {limits} }}
  web2: {{ address: "127.0.0.1:{ports.http2}", {limits} }}
  secure: {{ address: "127.0.0.1:{ports.tls}", {limits}, tls: {{ certificates: [{{ {pem} }}] }} }}
routes:
  - cluster: app
{edit}
{self.route}
clusters:
  app:
    health_check: /healthz
{self.cluster}
    endpoints: ["127.0.0.1:{one}", "127.0.0.1:{two}"]
telemetry:
  access_log: {self.access_log}
admin: {{ address: "127.0.0.1:{ports.admin}" }}
# Under callgrind everything is late, which the overload guard would take for danger.
runtime: {{ worker_threads: 1, overload: off }}
"""

    def command(self, reloadable):
        return [self.binary, "run", "-c", str(self.path)]


class BellwetherLogging(Bellwether):
    """The same with the access log on."""

    name = "bellwether with access log"

    @property
    def access_log(self):
        return f'{{ format: json, output: "{self.directory}/access.log" }}'


#: What is on by default or costs something on every request, by the lines that change it: of the route, of the cluster.
POLICIES = {
    "no breaker": (["circuit_breaker: off"], []),
    "no retry": (["retry: off"], []),
    "no retry budget": ([], ["retry_budget: off"]),
    "no outlier detection": ([], ["outlier_detection: off"]),
    "no panic": ([], ["panic: off"]),
    "no timeout, no deadline": (["timeout: off"], []),
    "round robin": ([], ["load_balancing: { policy: round_robin }"]),
    "none of these": (
        ["circuit_breaker: off", "retry: off", "timeout: off"],
        ["retry_budget: off", "outlier_detection: off", "panic: off", "load_balancing: { policy: round_robin }"],
    ),
    "hedging too": (["hedge: { delay: 1s }"], []),
    "rate limit too": (["rate_limit: [{ rate: 1000000/s, key: client_ip }]"], []),
    "limits too": ([], ["limits: { max_in_flight: 10000, max_in_flight_per_endpoint: 10000 }"]),
    "adaptive limit too": ([], ["adaptive_concurrency: { mode: observe }"]),
    "breakers of endpoints instead": (["circuit_breaker: { scope: endpoint }"], []),
}


def with_policy(label):
    """Bellwether with one policy changed."""
    route, cluster = ("\n".join("    " + line for line in lines) for lines in POLICIES[label])
    return type("Changed", (Bellwether,), {"name": label, "route": route, "cluster": cluster})


class HAProxy(Peer):
    name = "haproxy"
    file = "haproxy.cfg"
    reload_signal = signal.SIGUSR2

    def config(self, reloadable):
        ports = self.ports
        servers = "\n".join(
            f"    server s{number} 127.0.0.1:{port} check inter 5s"
            for number, port in enumerate(self.upstreams)
        )
        # Old and new workers of a reload hand the listening sockets over through this.
        socket_line = f"    stats socket {self.directory}/admin.sock level admin expose-fd listeners" if reloadable else ""
        return f"""# generation {self.generation}
global
    nbthread 1
    maxconn 8000
    ssl-default-bind-options ssl-min-ver TLSv1.2
{socket_line}
defaults
    mode http
    timeout connect 1s
    timeout client 60s
    timeout server 60s
    timeout http-request 10s
    retries 1
    option redispatch
    http-reuse always
    option forwardfor
frontend web
    bind 127.0.0.1:{ports.http}
    bind 127.0.0.1:{ports.http2} proto h2
    bind 127.0.0.1:{ports.tls} ssl crt {self.certificate}.pem alpn h2,http/1.1
    default_backend app
backend app
    balance roundrobin
    option httpchk GET /healthz
    default-server pool-max-conn -1
{servers}
"""

    def command(self, reloadable):
        return [self.binary, "-f", str(self.path), "-W" if reloadable else "-db"]


class Nginx(Peer):
    name = "nginx"
    file = "nginx.conf"

    def config(self, reloadable):
        ports, (one, two) = self.ports, self.upstreams
        process = "master_process on" if reloadable else "master_process off"
        return f"""# generation {self.generation}
daemon off;
{process};
worker_processes 1;
pid {self.directory}/pid;
error_log stderr crit;
events {{ worker_connections 8000; multi_accept on; }}
http {{
  access_log off;
  client_body_temp_path {self.directory}/body;
  proxy_temp_path {self.directory}/proxy;
  fastcgi_temp_path {self.directory}/f;
  uwsgi_temp_path {self.directory}/u;
  scgi_temp_path {self.directory}/s;
  sendfile on;
  tcp_nodelay on;
  keepalive_requests 1000000000;
  client_max_body_size 0;
  ssl_certificate {self.certificate}.crt;
  ssl_certificate_key {self.certificate}.key;
  ssl_protocols TLSv1.2 TLSv1.3;
  upstream app {{
    server 127.0.0.1:{one};
    server 127.0.0.1:{two};
    keepalive 256;
    keepalive_requests 1000000000;
  }}
  server {{
    listen 127.0.0.1:{ports.http} backlog=4096;
    listen 127.0.0.1:{ports.http2} http2 backlog=4096;
    listen 127.0.0.1:{ports.tls} ssl backlog=4096;
    location / {{
      proxy_pass http://app;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Host $http_host;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
      proxy_request_buffering off;
      proxy_buffers 16 64k;
      proxy_busy_buffers_size 128k;
      proxy_max_temp_file_size 0;
    }}
  }}
}}
"""

    def command(self, reloadable):
        return [self.binary, "-p", str(self.directory), "-c", str(self.path)]


class Envoy(Peer):
    name = "envoy"
    file = "envoy.yaml"
    #: It has no reload by signal; its dynamic configuration is another product.
    reload_signal = None

    def config(self, reloadable):
        ports = self.ports
        endpoints = "".join(
            f"""
          - endpoint: {{ address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }} }}"""
            for port in self.upstreams
        )
        secure = f"""
      transport_socket:
        name: envoy.transport_sockets.tls
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext
          common_tls_context:
            tls_certificates:
            - certificate_chain: {{ filename: {self.certificate}.crt }}
              private_key: {{ filename: {self.certificate}.key }}"""
        listeners = "".join(
            f"""
  - name: {name}
    address: {{ socket_address: {{ address: 127.0.0.1, port_value: {port} }} }}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: {name}
          codec_type: AUTO
          use_remote_address: true
          route_config:
            virtual_hosts:
            - name: all
              domains: ["*"]
              routes: [{{ match: {{ prefix: / }}, route: {{ cluster: app, retry_policy: {{ retry_on: "connect-failure,refused-stream,reset,gateway-error", num_retries: 1 }} }} }}]
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{ "@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router }}{tls}"""
            for name, port, tls in (("web", ports.http, ""), ("web2", ports.http2, ""), ("secure", ports.tls, secure))
        )
        return f"""# generation {self.generation}
static_resources:
  listeners:{listeners}
  clusters:
  - name: app
    type: STATIC
    connect_timeout: 1s
    lb_policy: LEAST_REQUEST
    outlier_detection: {{ consecutive_5xx: 5 }}
    circuit_breakers: {{ thresholds: [{{ max_connections: 20000, max_pending_requests: 20000, max_requests: 20000 }}] }}
    health_checks: [{{ timeout: 1s, interval: 5s, unhealthy_threshold: 3, healthy_threshold: 2, http_health_check: {{ path: /healthz }} }}]
    load_assignment:
      cluster_name: app
      endpoints:
      - lb_endpoints:{endpoints}
"""

    def command(self, reloadable):
        quiet = ["--log-level", "error", "--concurrency", "1", "--disable-hot-restart"]
        return [self.binary, "-c", str(self.path), *quiet]


class Upstream:
    """nginx with the answers that everybody proxies, on the core that the proxies do not use."""

    def __init__(self, binary, directory, core):
        self.directory = pathlib.Path(directory) / "upstream"
        (self.directory / "files").mkdir(parents=True)
        (self.directory / "files" / "large").write_bytes(b"x" * LARGE)
        self.ports = free_ports(3)
        (self.directory / "nginx.conf").write_text(self.config())
        command = [binary, "-p", str(self.directory), "-c", str(self.directory / "nginx.conf")]
        self.process = Process(command, self.directory / "log", core)
        for port in self.endpoints:
            load.first_answer(port, self.process.started, limit=10)

    @property
    def endpoints(self):
        return self.ports[:2]

    def config(self):
        one, two, inner = self.ports
        # An upload is answered when its body has been read whole, as an application would: nginx reads the body only
        # for something that it passes on, here to itself and without the body.
        return f"""
daemon off;
master_process off;
worker_processes 1;
pid {self.directory}/pid;
error_log stderr crit;
events {{ worker_connections 8000; multi_accept on; }}
http {{
  access_log off;
  client_body_temp_path {self.directory}/body;
  proxy_temp_path {self.directory}/proxy;
  fastcgi_temp_path {self.directory}/f;
  uwsgi_temp_path {self.directory}/u;
  scgi_temp_path {self.directory}/s;
  default_type application/octet-stream;
  sendfile on;
  tcp_nodelay on;
  open_file_cache max=16;
  keepalive_requests 1000000000;
  keepalive_timeout 300s;
  client_max_body_size 0;
  client_body_buffer_size {LARGE + 4096};
  upstream inner {{ server 127.0.0.1:{inner}; keepalive 64; }}
  server {{
    listen 127.0.0.1:{one} backlog=4096;
    listen 127.0.0.1:{two} backlog=4096;
    root {self.directory}/files;
    location = / {{ return 200 "{'x' * SMALL}"; }}
    location = /healthz {{ return 200 "ok"; }}
    location = /large {{ }}
    location = /upload {{
      proxy_pass http://inner/;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_set_header Content-Length "";
      proxy_pass_request_body off;
      proxy_method GET;
    }}
  }}
  server {{
    listen 127.0.0.1:{inner} backlog=4096;
    location / {{ return 200 "ok"; }}
  }}
}}
"""

    def stop(self):
        self.process.stop()


def certificate(openssl, directory):
    """A self-signed ECDSA P-256 certificate; the path without its ending."""
    path = pathlib.Path(directory) / "server"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30"]
        + ["-subj", "/CN=bench.test", "-addext", "subjectAltName=DNS:bench.test,IP:127.0.0.1"]
        + ["-keyout", f"{path}.key", "-out", f"{path}.crt"],
        check=True,
        capture_output=True,
    )
    pem = path.with_suffix(".crt").read_text() + path.with_suffix(".key").read_text()
    path.with_suffix(".pem").write_text(pem)
    return str(path)
