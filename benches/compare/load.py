"""The work that every proxy is given, and how much of it was done.

Each function returns `Done`: requests answered well, and the rest. All of them end by themselves, by a number of
requests or by a time. The generators are the usual ones (wrk, h2load, openssl), pinned together with the upstream to
the core that the proxies do not use; what they cannot do (many idle connections, waiting for the first answer) is
done here with plain sockets.
"""

import dataclasses
import pathlib
import re
import resource
import socket
import subprocess
import threading
import time


@dataclasses.dataclass
class Done:
    requests: int
    failed: int = 0


@dataclasses.dataclass
class Generator:
    """Starts load generators pinned to `core`."""

    core: str
    directory: pathlib.Path

    def pinned(self, command):
        return ["taskset", "-c", self.core, *(str(word) for word in command)]

    def run(self, command, seconds):
        answer = subprocess.run(
            self.pinned(command), capture_output=True, text=True, check=False, timeout=seconds + 120
        )
        return answer.stdout + answer.stderr

    def wrk(self, url, seconds, connections=64, script=None, headers=()):
        """Keep-alive requests for some seconds, one outstanding per connection."""
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "10s"]
        for header in headers:
            command += ["-H", header]
        if script:
            path = self.directory / "wrk.lua"
            path.write_text(script)
            command += ["-s", path]
        said = self.run([*command, url], seconds)
        done = number(r"(\d+) requests in", said)
        refused = number(r"Non-2xx or 3xx responses: (\d+)", said)
        broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", said)
        failed = refused + (sum(int(count) for count in broken.groups()) if broken else 0)
        return Done(done - refused, failed)

    def h2load(self, url, requests, connections, streams=1, http1=False):
        """A number of requests, over HTTP/2 with prior knowledge or ALPN, or over HTTP/1.1."""
        command = ["h2load", "-t1", f"-c{connections}", f"-n{requests}", f"-m{streams}"]
        said = self.run([*command, *(["--h1"] if http1 else []), url], 120)
        done = number(r"(\d+) 2xx", said)
        return Done(done, requests - done)

    def handshakes(self, port, seconds, clients=6):
        """Full TLS handshakes with one small request each. `s_time -new` never resumes a session."""
        command = ["openssl", "s_time", "-connect", f"127.0.0.1:{port}", "-new", "-www", "/", "-time", seconds]
        running = [
            subprocess.Popen(self.pinned(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for _ in range(clients)
        ]
        done = 0
        for client in running:
            said, _ = client.communicate(timeout=seconds + 60)
            # The first "connections in" is by processor time, the second by the clock; the count is the same.
            done += number(r"(\d+) connections in", said)
        return Done(done)


def number(pattern, text):
    found = re.search(pattern, text)
    return int(found.group(1)) if found else 0


def upload(path, size):
    """A script for wrk that sends bodies of `size` bytes."""
    return f'wrk.method = "POST"\nwrk.path = "{path}"\nwrk.body = string.rep("x", {size})\n'


def ask(port, path="/", timeout=10.0):
    """One request on a connection of its own. Returns the open socket, after the whole answer has been read."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=timeout)
    try:
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: bench.test\r\n\r\n".encode())
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += received(connection)
        head, _, body = answer.partition(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 200"):
            raise ConnectionError(head.split(b"\r\n")[0].decode(errors="replace"))
        length = number(r"(?i)content-length: *(\d+)", head.decode())
        while len(body) < length:
            body += received(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def received(connection):
    data = connection.recv(65536)
    if not data:
        raise ConnectionError("closed before the end of the answer")
    return data


def first_answer(port, started, limit=60.0, alive=lambda: True):
    """Milliseconds from `started` until a request is answered with 200, for as long as the server is `alive`."""
    while time.monotonic() - started < limit:
        if not alive():
            raise ConnectionError("it has ended")
        try:
            ask(port).close()
            return (time.monotonic() - started) * 1000
        except OSError:
            time.sleep(0.001)
    raise TimeoutError(f"port {port} did not answer with 200 within {limit:.0f} s")


class Idle:
    """Connections that have had one request each and stay open."""

    def __init__(self, port, count):
        self.connections = []
        try:
            for _ in range(count):
                self.connections.append(ask(port))
        except BaseException:
            self.close()
            raise

    def close(self):
        for connection in self.connections:
            connection.close()


def while_running(action, load):
    """Runs `load` with `action` beside it in a thread of its own; the action's failure is the caller's."""
    problem = []

    def guarded():
        try:
            action()
        except Exception as error:  # handed over, not swallowed
            problem.append(error)

    beside = threading.Thread(target=guarded)
    beside.start()
    try:
        return load()
    finally:
        beside.join()
        if problem:
            raise problem[0]


def raise_open_files(wanted=20000):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        limit = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))

