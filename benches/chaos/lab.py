#!/usr/bin/env python3
"""One proxy, three upstreams, one fault: runs it and scores it.

    lab.py UNIT.json        # written by run.py, which also gives this process its namespaces; the result goes beside it

Timeline: warm-up, fault, recovery; the load runs through all of it and never pauses.
"""

import asyncio
import dataclasses
import json
import os
import pathlib
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "common")]

import faults  # noqa: E402
import load  # noqa: E402
import network  # noqa: E402
import proxies  # noqa: E402
import score  # noqa: E402
from process import Process, free_ports  # noqa: E402

UPSTREAMS = 3


@dataclasses.dataclass
class Unit:
    """What to run; everything that run.py decides."""

    proxy: str
    fault: str
    binary: str
    directory: str
    lane: int
    isolated: bool
    seed: int
    rate: float
    warm_up: float
    seconds: float
    recovery: float


@dataclasses.dataclass
class Upstream:
    process: Process
    control: pathlib.Path
    log: pathlib.Path


class Lab:
    def __init__(self, unit):
        self.unit = unit
        self.directory = pathlib.Path(unit.directory)
        self.fault = faults.ALL[unit.fault]()
        self.upstreams = {}
        self.proxy = self.network = self.names = None

    async def run(self):
        unit = self.unit
        # A fourth address, where an upstream may move to.
        count = UPSTREAMS + 1
        self.network = network.Isolated(self.directory, count) if unit.isolated else network.Loopback(unit.lane, count)
        for number in range(1, UPSTREAMS + 1):
            self.start_upstream(number)
        for number in range(1, UPSTREAMS + 1):
            await self.listening(number)
        servers = self.network.addresses[:UPSTREAMS]
        if self.fault.needs_names:
            self.names = await self.network.serve_names(servers)
        port, admin = free_ports(2)
        self.proxy = proxies.ALL[unit.proxy](
            unit.binary, self.directory, servers, self.network.port, port, admin, self.fault.needs_names
        )
        # In a thread: the name server answers in this one.
        await asyncio.to_thread(self.proxy.start)
        client = load.Client(port)
        await self.serving(client)

        requests = load.schedule(unit.seed, unit.rate, unit.warm_up + unit.seconds + unit.recovery)
        start = time.monotonic() + 0.1
        happening = asyncio.create_task(self.happen(start))
        await client.drive(requests, start)
        began, ended = await happening
        client.close()
        evidence = await asyncio.to_thread(self.proxy.evidence)
        wall = time.time() - time.monotonic()
        for event in evidence.get("events", []):
            event["at"] = round(event["time"] / 1000 - wall - began, 3)
        logs = {number: upstream.log for number, upstream in self.upstreams.items()}
        timeline = score.Timeline(start, began, ended, start + unit.warm_up + unit.seconds + unit.recovery)
        row = score.score(self.fault, requests, logs, timeline, UPSTREAMS)
        return {"proxy": unit.proxy, "fault": unit.fault, **row, "lacks": self.proxy.lacks, "evidence": evidence}

    async def happen(self, start):
        """The fault in its time; returns when it began and when it was over."""
        unit = self.unit
        await self.fault.prepare(self)
        await asyncio.sleep(start + unit.warm_up - time.monotonic())
        began = time.monotonic()
        await self.fault.begin(self)
        await asyncio.sleep(start + unit.warm_up + unit.seconds - time.monotonic())
        await self.fault.end(self)
        return began, time.monotonic()

    def start_upstream(self, number):
        control, log = self.directory / f"u{number}.control", self.directory / f"u{number}.events"
        command = [sys.executable, str(HERE / "upstream.py"), f"u{number}", self.network.addresses[number - 1]]
        command += [str(self.network.port), str(control), str(log)]
        control.unlink(missing_ok=True)
        process = Process([*self.network.inside, *command], self.directory / f"u{number}.log")
        self.upstreams[number] = Upstream(process, control, log)

    async def listening(self, number):
        """Waits until an upstream serves: its control socket is the last that it opens."""
        upstream = self.upstreams[number]
        until = time.monotonic() + 10
        while not upstream.control.exists():
            if not upstream.process.alive() or time.monotonic() > until:
                raise RuntimeError(f"upstream {number} does not serve: {upstream.process.said()}")
            await asyncio.sleep(0.01)

    async def tell(self, number, fault):
        reader, writer = await asyncio.open_unix_connection(str(self.upstreams[number].control))
        writer.write(f"{fault}\n".encode())
        answer = await asyncio.wait_for(reader.read(), 5)
        writer.close()
        if answer != b"ok\n":
            raise RuntimeError(f"upstream {number} did not become {fault}")

    async def serving(self, client):
        """Waits until the proxy passes requests to every upstream."""
        seen, until = set(), time.monotonic() + 15
        while len(seen) < UPSTREAMS:
            if not self.proxy.process.alive() or time.monotonic() > until:
                raise RuntimeError(f"{self.proxy.title} does not serve: {self.proxy.process.said()}")
            requests = [load.Request(0, "GET", "ready") for _ in range(4)]
            await client.drive(requests, time.monotonic())
            seen |= {request.upstream for request in requests if not request.failed}
            await asyncio.sleep(0.05)

    def stop(self):
        if self.proxy and self.proxy.process:
            self.proxy.process.kill()
        for upstream in self.upstreams.values():
            upstream.process.kill()
        if self.network:
            self.network.stop()


def main(path):
    unit = Unit(**json.loads(pathlib.Path(path).read_text()))
    take_precedence()
    lab = Lab(unit)
    try:
        result = asyncio.run(lab.run())
    finally:
        lab.stop()
    done = pathlib.Path(path).with_suffix(".result")
    done.with_suffix(".new").write_text(json.dumps(result))
    os.rename(done.with_suffix(".new"), done)


def take_precedence():
    """All that a lab runs goes before the machine's other work, where that is allowed: the dips that another process
    causes would look like those of a fault."""
    try:
        os.setpriority(os.PRIO_PROCESS, 0, -10)
    except PermissionError:
        pass


if __name__ == "__main__":
    main(sys.argv[1])
