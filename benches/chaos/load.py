"""Open-loop load: requests leave when the schedule says so, whether or not earlier ones have been answered.

A closed loop would wait for a slow proxy and so hide what its users suffer. Latency is counted from the scheduled
time, so lateness of any kind is in it. Connections are kept and reused, the last used first; a request that finds none
idle opens one.
"""

import asyncio
import dataclasses
import random
import socket
import time

#: How long a user waits before giving up.
PATIENCE = 5.0
POST_SHARE = 0.2
POST_BODY = b'{"order": "' + b"x" * 180 + b'"}'


@dataclasses.dataclass
class Request:
    at: float
    method: str
    identity: str
    #: "ok", "http 503", "truncated", "closed", "timeout", "refused"
    outcome: str = ""
    upstream: str = ""
    latency: float = 0.0
    late: float = 0.0

    @property
    def failed(self):
        return self.outcome != "ok"


def schedule(seed, rate, seconds):
    """Arrivals of many independent users: exponential gaps, the same ones for the same seed."""
    chance, at, requests = random.Random(seed), 0.0, []
    while (at := at + chance.expovariate(rate)) < seconds:
        method = "POST" if chance.random() < POST_SHARE else "GET"
        requests.append(Request(at, method, f"{method[0]}{len(requests)}"))
    return requests


class Client:
    def __init__(self, port):
        self.port = port
        self.idle = []
        self.running = set()

    async def drive(self, requests, start):
        """Sends all of `requests`, whose times count from `start`; returns when each has an outcome."""
        for request in requests:
            delay = start + request.at - time.monotonic()
            if delay > 0:
                await asyncio.sleep(delay)
            task = asyncio.create_task(self.send(request, start))
            self.running.add(task)
            task.add_done_callback(self.running.discard)
        if self.running:
            await asyncio.wait(list(self.running))

    async def send(self, request, start):
        request.late = time.monotonic() - start - request.at
        left = start + request.at + PATIENCE - time.monotonic()
        connection = None
        try:
            async with asyncio.timeout(max(left, 0)):
                connection = await self.connection()
                status, whole, request.upstream = await connection.ask(head(request))
            request.outcome = f"http {status}" if status != 200 else "ok" if whole else "truncated"
            if connection.reusable:
                self.idle.append(connection)
                connection = None
        except TimeoutError:
            request.outcome = "timeout"
        except ConnectionError:
            request.outcome = "closed" if connection else "refused"
        finally:
            request.latency = time.monotonic() - start - request.at
            if connection:
                connection.transport.abort()

    async def connection(self):
        while self.idle:
            connection = self.idle.pop()
            if not connection.transport.is_closing():
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, "127.0.0.1", self.port)
        return connection

    def close(self):
        for connection in self.idle:
            connection.transport.abort()


def head(request):
    text = f"{request.method} /{request.identity} HTTP/1.1\r\nhost: chaos.test\r\nx-request: {request.identity}\r\n"
    if request.method == "POST":
        return f"{text}content-type: application/json\r\ncontent-length: {len(POST_BODY)}\r\n\r\n".encode() + POST_BODY
    return f"{text}\r\n".encode()


class Connection(asyncio.Protocol):
    """A client's connection: one request, one answer, again."""

    def connection_made(self, transport):
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.answer = None
        self.reusable = False

    def ask(self, request):
        """A future of (status, whether the body came whole, the upstream that answered)."""
        self.buffer = b""
        self.reusable = False
        self.answer = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self.answer

    def data_received(self, data):
        if self.answer is None or self.answer.done():
            self.transport.abort()
            return
        self.buffer += data
        if (parsed := self.parse()) is None:
            return
        status, headers, body = parsed
        whole = self.whole(headers, body)
        if whole:
            self.reusable = headers.get("connection", "").lower() != "close"
            self.answer.set_result((status, True, headers.get("x-upstream", "")))

    def connection_lost(self, problem):
        if self.answer is None or self.answer.done():
            return
        if (parsed := self.parse()) is None:
            self.answer.set_exception(ConnectionResetError("closed before an answer"))
        else:
            status, headers, _ = parsed
            delimited = "content-length" in headers or "transfer-encoding" in headers
            self.answer.set_result((status, not delimited and problem is None, headers.get("x-upstream", "")))

    def parse(self):
        head, blank, body = self.buffer.partition(b"\r\n\r\n")
        if not blank:
            return None
        lines = head.decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        return int(lines[0].split(" ")[1]), headers, body

    @staticmethod
    def whole(headers, body):
        if "content-length" in headers:
            return len(body) >= int(headers["content-length"])
        if "transfer-encoding" in headers:
            return body.endswith(b"0\r\n\r\n")
        return False
