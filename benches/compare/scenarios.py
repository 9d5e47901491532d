"""What is measured: one class per row of the table.

`run` returns `{label: [one figure per round]}`. A row says how its figures are read (`unit`, `digits`), and what is
wanted of bellwether: at most `goal` in the unit, or at most `goal_ratio` times what `against` needs in the same round.
"""

import contextlib
import dataclasses
import pathlib
import time

import load
import measure
import peers
import tools


@dataclasses.dataclass
class Bench:
    """Everything that a scenario needs."""

    kinds: list
    binaries: dict
    directory: pathlib.Path
    certificate: str
    upstream: peers.Upstream
    generator: load.Generator
    core: str
    rounds: int
    seconds: int
    missing: set
    made: int = 0

    def make(self, kind):
        """A fresh instance of a peer, with ports and a directory of its own."""
        self.made += 1
        binary = self.binaries["bellwether" if issubclass(kind, peers.Bellwether) else kind.name]
        place = self.directory / str(self.made)
        return kind(binary, place, self.certificate, self.upstream.endpoints)

    @contextlib.contextmanager
    def running(self, kinds, **how):
        """One running instance of each kind, stopped at the end."""
        started = []
        try:
            for kind in kinds:
                started.append(self.make(kind).start(self.core, **how))
            yield started
        finally:
            for peer in started:
                peer.stop()


class Scenario:
    key: str
    title: str
    unit = ""
    digits = 1
    goal = None
    goal_ratio = None
    against = peers.HAProxy.name

    def __init__(self):
        #: Requests that were not answered well, by label: a figure with failures is not a figure.
        self.failed = {}

    def kinds(self, bench):
        return bench.kinds

    def run(self, bench):
        raise NotImplementedError

    def count(self, peer, done):
        if done.failed:
            self.failed[peer.label] = self.failed.get(peer.label, 0) + done.failed
        return done.requests


class Work(Scenario):
    """Processor time per unit of work, in turns."""

    unit = "µs"

    def work(self, bench, peer, seconds):
        """Gives the peer its work and returns what was done of it."""
        raise NotImplementedError

    def figure(self, seconds, requests):
        return seconds * 1e6 / requests

    def run(self, bench):
        values = {}
        with bench.running(self.kinds(bench)) as running:
            for peer in running:
                self.work(bench, peer, 1)
            self.failed.clear()
            for number in range(bench.rounds):
                for peer in running:
                    before = measure.cpu_seconds(peer.process.pid)
                    requests = self.count(peer, self.work(bench, peer, bench.seconds))
                    used = measure.cpu_seconds(peer.process.pid) - before
                    if not requests:
                        raise RuntimeError(f"{peer.label} answered nothing: {peer.process.said()}")
                    values.setdefault(peer.label, []).append(self.figure(used, requests))
                    tools.note(f"  round {number + 1} {peer.label}: {values[peer.label][-1]:.2f} {self.unit}")
        return values


class KeepAlive(Work):
    key, title, goal_ratio = "h1", "HTTP/1.1 keep-alive, 64 connections, 1 kB: CPU per request", 1.0

    def work(self, bench, peer, seconds):
        return bench.generator.wrk(f"http://127.0.0.1:{peer.ports.http}/", seconds)


class Http2(Work):
    key, title, goal_ratio = "h2", "HTTP/2 to HTTP/1.1, 16 connections of 8 streams, 1 kB: CPU per request", 1.1

    def work(self, bench, peer, seconds):
        url = f"http://127.0.0.1:{peer.ports.http2}/"
        return bench.generator.h2load(url, 12_000 * seconds, connections=16, streams=8)


class Tls(Work):
    key, title, goal_ratio = "tls", "HTTP/1.1 keep-alive over TLS 1.3: CPU per request", 0.9

    def work(self, bench, peer, seconds):
        return bench.generator.wrk(f"https://127.0.0.1:{peer.ports.tls}/", seconds)


class Handshake(Work):
    key, title, goal_ratio = "handshake", "full TLS 1.3 handshake (ECDSA P-256) and one request: CPU each", 0.65

    def work(self, bench, peer, seconds):
        return bench.generator.handshakes(peer.ports.tls, seconds)


class Churn(Work):
    key, title = "churn", "a new connection for every request: CPU per request"

    def work(self, bench, peer, seconds):
        url = f"http://127.0.0.1:{peer.ports.http}/"
        return bench.generator.wrk(url, seconds, headers=["Connection: close"])


class Bodies(Work):
    unit, digits, goal_ratio = "s/GiB", 2, 0.85

    def figure(self, seconds, requests):
        return seconds / (requests * peers.LARGE / 2**30)


class Down(Bodies):
    key, title = "down", "1 MiB answers, 16 connections: CPU"

    def work(self, bench, peer, seconds):
        return bench.generator.wrk(f"http://127.0.0.1:{peer.ports.http}/large", seconds, connections=16)


class Up(Bodies):
    key, title = "up", "1 MiB request bodies, 16 connections: CPU"

    def work(self, bench, peer, seconds):
        script = load.upload("/upload", peers.LARGE)
        url = f"http://127.0.0.1:{peer.ports.http}"
        return bench.generator.wrk(url, seconds, connections=16, script=script)


class AccessLog(Work):
    key, title = "log", "JSON access log to a file, against the same without: CPU per request"
    goal_ratio, against = 1.15, peers.Bellwether.name

    def kinds(self, bench):
        return [peers.BellwetherLogging, peers.Bellwether] if peers.Bellwether in bench.kinds else []

    work = KeepAlive.work


class SystemCalls(Scenario):
    key, title, digits, goal = "calls", "system calls per HTTP/1.1 keep-alive request", 2, 4.3

    def run(self, bench):
        values = {}
        with bench.running(self.kinds(bench)) as running:
            for _ in range(bench.rounds):
                for peer in running:
                    url = f"http://127.0.0.1:{peer.ports.http}/"
                    bench.generator.wrk(url, 1)
                    counted = measure.count_system_calls(peer.process.pid, lambda: bench.generator.wrk(url, 2))
                    if counted is None:
                        tools.note("  neither perf nor strace can count here")
                        return {}
                    done, calls = counted
                    values.setdefault(peer.label, []).append(calls / self.count(peer, done))
        return values


class Instructions(Scenario):
    """User instructions, exact where time is noisy; the difference of two loads, so that connecting cancels out."""

    key, title, digits, goal = "instructions", "user instructions per HTTP/1.1 keep-alive request", 0, 28_000
    FEW, MANY = 1_000, 5_000

    def load(self, bench, peer, requests):
        url = f"http://127.0.0.1:{peer.ports.http}/"
        return bench.generator.h2load(url, requests, connections=64, http1=True)

    def run(self, bench):
        if "valgrind" in bench.missing:
            tools.note("  no valgrind")
            return {}
        values = {}
        for kind in self.kinds(bench):
            peer = bench.make(kind)
            try:
                peer.start(bench.core, prefix=measure.callgrind([], peer.directory))
                self.load(bench, peer, self.FEW)
                measure.instructions_since_last(peer.process.pid, peer.directory)
                counts = []
                for requests in (self.FEW, self.MANY):
                    done = self.count(peer, self.load(bench, peer, requests))
                    counts.append((done, measure.instructions_since_last(peer.process.pid, peer.directory)))
                (few, cost_of_few), (many, cost_of_many) = counts
                values[peer.label] = [(cost_of_many - cost_of_few) / (many - few)]
                tools.note(f"  {peer.label}: {values[peer.label][0]:.0f}")
            except Exception as problem:  # a peer that valgrind cannot run is left out, with the reason
                tools.note(f"  {peer.label} not counted: {problem}")
            finally:
                peer.stop()
        return values


class Policies(Instructions):
    """What each policy costs: the same count with one of them changed."""

    key, title, goal = "policies", "user instructions per HTTP/1.1 request, one policy changed", None

    def kinds(self, bench):
        if peers.Bellwether not in bench.kinds:
            return []
        return [peers.Bellwether, *map(peers.with_policy, peers.POLICIES)]


class Http2Instructions(Instructions):
    key, title, goal = "h2-instructions", "user instructions per HTTP/2 to HTTP/1.1 request", None

    def load(self, bench, peer, requests):
        return bench.generator.h2load(f"http://127.0.0.1:{peer.ports.http2}/", requests, connections=16, streams=8)


class IdleConnections(Scenario):
    key, title, unit, goal = "idle-connections", "memory per idle keep-alive connection, 4,000 of them", "KiB", 8
    CONNECTIONS = 4_000

    def run(self, bench):
        values = {}
        for kind in self.kinds(bench):
            with bench.running([kind]) as (peer,):
                # Some traffic first: what grows once belongs to no connection.
                bench.generator.wrk(f"http://127.0.0.1:{peer.ports.http}/", 1)
                time.sleep(1)
                before = measure.resident_kib(peer.process.pid)
                idle = load.Idle(peer.ports.http, self.CONNECTIONS)
                try:
                    time.sleep(2)
                    after = measure.resident_kib(peer.process.pid)
                finally:
                    idle.close()
                values[peer.label] = [(after - before) / self.CONNECTIONS]
        return values


class IdleProcess(Scenario):
    key, title, unit, goal = "idle-process", "resident memory of the idle process", "MiB", 15

    def run(self, bench):
        values = {}
        for kind in self.kinds(bench):
            with bench.running([kind]) as (peer,):
                time.sleep(1)
                values[peer.label] = [measure.resident_kib(peer.process.pid) / 1024]
        return values


class StartUp(Scenario):
    key, title, unit, goal = "start", "start-up to the first proxied request", "ms", 50

    def run(self, bench):
        values = {}
        for _ in range(max(bench.rounds, 5)):
            for kind in self.kinds(bench):
                peer = bench.make(kind)
                try:
                    peer.start(bench.core, wait=False)
                    took = load.first_answer(peer.ports.http, peer.process.started)
                    values.setdefault(peer.label, []).append(took)
                finally:
                    peer.stop()
        return values


class Reloads(Scenario):
    key, title, digits, goal = "reloads", "failed requests during 20 reloads in 5 s under load", 0, 0
    RELOADS = 20

    def run(self, bench):
        values = {}
        for kind in self.kinds(bench):
            if kind.reload_signal is None:
                continue
            with bench.running([kind], reloadable=True) as (peer,):

                def reloads(peer=peer):
                    for _ in range(self.RELOADS):
                        time.sleep(5 / self.RELOADS)
                        peer.reload()

                url = f"http://127.0.0.1:{peer.ports.http}/"
                done = load.while_running(reloads, lambda url=url: bench.generator.wrk(url, 7))
                values[peer.label] = [float(done.failed)]
                tools.note(f"  {peer.label}: {done.requests} requests, {done.failed} failed")
        return values


class BinarySize(Scenario):
    key, title, unit, goal = "size", "size of the executable", "MiB", 16

    def run(self, bench):
        return {
            kind.name: [pathlib.Path(bench.binaries[kind.name]).stat().st_size / 2**20] for kind in self.kinds(bench)
        }


ALL = [
    KeepAlive,
    Http2,
    Tls,
    Handshake,
    Churn,
    Down,
    Up,
    AccessLog,
    SystemCalls,
    Instructions,
    Policies,
    Http2Instructions,
    IdleConnections,
    IdleProcess,
    StartUp,
    Reloads,
    BinarySize,
]


