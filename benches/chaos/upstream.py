#!/usr/bin/env python3
"""An application that misbehaves on command, and writes down what it was asked and what it has done.

    upstream.py NAME ADDRESS PORT CONTROL LOG

HTTP/1.1 with keep-alive on ADDRESS:PORT; `/healthz` is the health check, everything else the application, which takes
`SERVICE` seconds per request. CONTROL is a unix socket that takes one line, the name of a fault or `none`, and answers
`ok`: a socket of the file system is reached whatever the network does.

LOG gets one line per event, written at once, so that it survives `kill -9`: the clock, what happened (`received`: the
request has arrived whole; `executed`: the work has been done, whether or not anybody still waits for it) and the id.
"""

import asyncio
import os
import random
import socket
import struct
import sys
import time

#: How long the work takes: long enough that a process which dies has requests under way.
SERVICE = 0.020
BODY = 1024
SLOW = 0.800
ERROR_SHARE = 0.3
DRIP_PIECES = 16
DRIP_PAUSE = 0.100

#: Faults of the application alone: the health check stays green. In all others it suffers with the rest.
APPLICATION_FAULTS = {"reset", "drip", "slow", "errors", "gray", "gray503"}
STATUS = {200: b"OK", 500: b"Internal Server Error", 503: b"Service Unavailable"}


class Upstream:
    def __init__(self, name, address, port, log):
        self.name, self.address, self.port = name, address, port
        self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self.fault = "none"
        self.chance = random.Random(name)
        self.connections = set()
        self.server = None

    async def listen(self):
        loop = asyncio.get_running_loop()
        self.server = await loop.create_server(
            lambda: Connection(self), self.address, self.port, backlog=1024, reuse_address=True
        )

    async def become(self, fault):
        before, self.fault = self.fault, fault
        if fault == "refuse" and before != "refuse":
            # The port closes and so does every connection, as when a process gives up but does not end.
            self.server.close()
            for connection in list(self.connections):
                connection.transport.abort()
        elif before == "refuse" and fault != "refuse":
            await self.listen()

    def note(self, what, identity):
        if identity is None:
            return
        os.write(self.log, f"{time.monotonic():.6f} {what} {identity}\n".encode())

    async def control(self, reader, writer):
        fault = (await reader.readline()).decode().strip()
        await self.become(fault)
        writer.write(b"ok\n")
        writer.close()


class Connection(asyncio.Protocol):
    """One request at a time; what arrives meanwhile waits in the buffer."""

    def __init__(self, upstream):
        self.upstream = upstream
        self.buffer = b""
        self.busy = False

    def connection_made(self, transport):
        self.transport = transport
        self.upstream.connections.add(self)
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def connection_lost(self, problem):
        self.upstream.connections.discard(self)

    def data_received(self, data):
        self.buffer += data
        self.proceed()

    def proceed(self):
        if self.busy or (end := self.buffer.find(b"\r\n\r\n")) < 0:
            return
        lines = self.buffer[:end].decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        body = end + 4
        if "chunked" in headers.get("transfer-encoding", ""):
            if (last := self.buffer.find(b"0\r\n\r\n", body)) < 0:
                return
            body = last + 5
        else:
            body += int(headers.get("content-length", 0))
            if len(self.buffer) < body:
                return
        self.buffer = self.buffer[body:]
        self.busy = True
        target = lines[0].split(" ")[1]
        if target == "/healthz":
            self.upstream.note("health", "-")
            if self.upstream.fault not in ("stall",):
                self.answer(200, b"ok")
        else:
            # A copy that nobody waits for is no traffic: it is served, and not noted.
            identity = None if "x-bellwether-copy" in headers else headers.get("x-request", target)
            self.serve(identity, self.upstream.fault)

    def serve(self, identity, fault):
        upstream, later = self.upstream, asyncio.get_running_loop().call_later
        upstream.note("received", identity)
        if fault == "stall":
            return
        if fault in ("gray", "gray503") or (fault == "errors" and upstream.chance.random() < ERROR_SHARE):
            later(SERVICE, self.answer, 503 if fault == "gray503" else 500, b"out of order")
        else:
            later(SLOW if fault == "slow" else SERVICE, self.execute, identity, fault)

    def execute(self, identity, fault):
        self.upstream.note("executed", identity)
        if fault == "reset":
            self.break_off()
        elif fault == "drip":
            self.write(self.head(200, BODY))
            self.drip(DRIP_PIECES)
        else:
            self.answer(200, b"x" * BODY)

    def drip(self, pieces):
        self.write(b"x" * (BODY // DRIP_PIECES))
        if pieces > 1:
            asyncio.get_running_loop().call_later(DRIP_PAUSE, self.drip, pieces - 1)
        else:
            self.done()

    def break_off(self):
        """Half of the answer, then a reset."""
        self.write(self.head(200, BODY) + b"x" * (BODY // 2))
        if (plug := self.transport.get_extra_info("socket")) is not None and not self.transport.is_closing():
            plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            # After a moment, so that the half is on its way before the reset would throw it away.
            asyncio.get_running_loop().call_later(0.005, self.transport.abort)

    def answer(self, status, body):
        self.write(self.head(status, len(body)) + body)
        self.done()

    def done(self):
        self.busy = False
        self.proceed()

    def head(self, status, length):
        return (
            f"HTTP/1.1 {status} {STATUS[status].decode()}\r\ncontent-type: application/octet-stream\r\n"
            f"x-upstream: {self.upstream.name}\r\ncontent-length: {length}\r\n\r\n"
        ).encode()

    def write(self, data):
        if not self.transport.is_closing():
            self.transport.write(data)


async def main(name, address, port, control, log):
    upstream = Upstream(name, address, int(port), log)
    await upstream.listen()
    if os.path.exists(control):
        os.unlink(control)
    await asyncio.start_unix_server(upstream.control, control)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
