#!/usr/bin/env python3
"""By how much three layers of the proxy multiply the load of a service that fails every request.

    python3 benches/chaos/layers.py                       # builds the dist binary; 2 x 40 seconds
    python3 benches/chaos/layers.py --bellwether PATH --rate 200 --seconds 30

Each layer tries twice more what failed, as far as its budget lets it; breakers are off, or they would stop it at once.
The control has no budgets.
"""

import argparse
import asyncio
import contextlib
import pathlib
import socket
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "common")]

import tools  # noqa: E402

LAYERS = 3
ANSWER = b"HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n"


class Service(asyncio.Protocol):
    """Fails, and counts."""

    count = 0

    def connection_made(self, transport):
        self.transport, self.read = transport, b""

    def data_received(self, data):
        *heads, self.read = (self.read + data).split(b"\r\n\r\n")
        Service.count += len(heads)
        self.transport.write(ANSWER * len(heads))


def free_port():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


def config(port, behind, budget):
    return f"""
listeners: {{ web: {{ address: "127.0.0.1:{port}", trusted_proxies: [127.0.0.1/32] }} }}
routes:
  - cluster: next
    circuit_breaker: off
    retry: {{ num_retries: 2, retry_on: [5xx] }}
clusters: {{ next: {{ endpoints: ["127.0.0.1:{behind}"]{budget} }} }}
admin: off
"""


async def ask(port, rate, seconds):
    """Asks at a steady rate on a few connections; returns how many answers came."""
    connections = [await asyncio.open_connection("127.0.0.1", port) for _ in range(8)]
    free = asyncio.Queue()
    for connection in connections:
        free.put_nowait(connection)
    answers = 0

    async def one():
        nonlocal answers
        reader, writer = connection = await free.get()
        writer.write(b"GET / HTTP/1.1\r\nhost: service\r\n\r\n")
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        await reader.readexactly(length)
        answers += 1
        free.put_nowait(connection)

    began, asked = time.monotonic(), []
    for number in range(int(rate * seconds)):
        await asyncio.sleep(began + number / rate - time.monotonic())
        asked.append(asyncio.create_task(one()))
    await asyncio.gather(*asked)
    for _, writer in connections:
        writer.close()
    return answers


async def amplification(binary, budget, arguments, directory):
    server = await asyncio.get_running_loop().create_server(Service, "127.0.0.1", 0)
    behind = server.sockets[0].getsockname()[1]
    with contextlib.ExitStack() as stack:
        stack.callback(server.close)
        for _ in range(LAYERS):
            port = free_port()
            path = directory / f"{port}.yaml"
            path.write_text(config(port, behind, budget))
            log = stack.enter_context(open(directory / f"{port}.log", "wb"))
            process = subprocess.Popen([binary, "run", "-c", path], stdout=log, stderr=log)
            stack.callback(process.wait)
            stack.callback(process.kill)
            behind = port
            for _ in range(200):
                with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                    break
                await asyncio.sleep(0.05)
            else:
                sys.exit(f"a proxy does not listen: {pathlib.Path(log.name).read_text()}")
        Service.count = 0
        answers = await ask(port, arguments.rate, arguments.seconds)
        return Service.count / answers


async def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bellwether", help="the binary; without it the dist profile is built")
    parser.add_argument("--rate", type=float, default=100, help="requests a second (100)")
    parser.add_argument("--seconds", type=float, default=40, help="for so long (40)")
    arguments = parser.parse_args()
    binary = arguments.bellwether or tools.build(HERE.parent.parent)
    with tempfile.TemporaryDirectory() as directory:
        for title, budget in [("default budgets", ""), ("no budgets (control)", ", retry_budget: off")]:
            factor = await amplification(str(binary), budget, arguments, pathlib.Path(directory))
            print(f"{title}: {factor:.2f} x over {LAYERS} layers at {arguments.rate:.0f} requests/s")


asyncio.run(main())
