"""Where the upstreams live: each behind a virtual cable of its own, so that one can be cut; and a name server.

`Isolated` expects to run in network and mount namespaces that nobody else uses (run.py makes them). All upstreams share
a further namespace; a cable (a pair of veth devices) with its own subnet leads to each. A cable is cut by giving either
end a wrong hardware address for the other: packets leave, and vanish without a word, in both directions. That needs
neither a packet filter nor a queueing discipline, which many kernels in containers lack.

Namespaces end with the last process in them, so there is nothing to clean up. `Loopback` is what remains where they
cannot be had: addresses of 127/8, no cutting and no names.
"""

import asyncio
import os
import pathlib
import socket
import struct
import subprocess
import time

from process import Process, free_ports

NAME = "app.chaos.test"
#: Nobody has it.
NOWHERE = "02:00:00:00:00:99"


class Isolated:
    can_cut = True
    has_names = True
    port = 8080

    def __init__(self, directory, count):
        run("ip", "link", "set", "lo", "up")
        self.directory = directory
        self.holder = Process(["unshare", "--net", "sleep", "infinity"], directory / "network.log")
        self.wait_for_namespace()
        self.inside = ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net"]
        run(*self.inside, "ip", "link", "set", "lo", "up")
        for number in range(1, count + 1):
            run("ip", "link", "add", f"near{number}", "type", "veth", "peer", "name", f"far{number}")
            run("ip", "link", "set", f"far{number}", "netns", str(self.holder.pid))
            run("ip", "addr", "add", f"10.77.{number}.1/24", "dev", f"near{number}")
            run("ip", "link", "set", f"near{number}", "up")
            run(*self.inside, "ip", "addr", "add", f"10.77.{number}.2/24", "dev", f"far{number}")
            run(*self.inside, "ip", "link", "set", f"far{number}", "up")
        self.addresses = [f"10.77.{number}.2" for number in range(1, count + 1)]

    def wait_for_namespace(self):
        own, theirs = pathlib.Path("/proc/self/ns/net"), pathlib.Path(f"/proc/{self.holder.pid}/ns/net")
        until = time.monotonic() + 5
        while os.readlink(own) == os.readlink(theirs):
            if time.monotonic() > until:
                raise RuntimeError(f"no network namespace: {self.holder.said()}")
            time.sleep(0.01)

    def cut(self, number):
        run("ip", "neigh", "replace", f"10.77.{number}.2", "lladdr", NOWHERE, "nud", "permanent", "dev", f"near{number}")
        far = ["ip", "neigh", "replace", f"10.77.{number}.1", "lladdr", NOWHERE, "nud", "permanent", "dev", f"far{number}"]
        run(*self.inside, *far)

    def mend(self, number):
        run("ip", "neigh", "del", f"10.77.{number}.2", "dev", f"near{number}")
        run(*self.inside, "ip", "neigh", "del", f"10.77.{number}.1", "dev", f"far{number}")

    async def serve_names(self, addresses):
        """Answers for `NAME` on 127.0.0.1:53, which the resolver's configuration of this mount namespace names."""
        configuration = self.directory / "resolv.conf"
        configuration.write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:2\n")
        run("mount", "--bind", str(configuration), os.path.realpath("/etc/resolv.conf"))
        names = Names(addresses)
        await asyncio.get_running_loop().create_datagram_endpoint(lambda: names, local_addr=("127.0.0.1", 53))
        return names

    def stop(self):
        self.holder.stop()


class Loopback:
    can_cut = False
    has_names = False
    inside = []

    def __init__(self, lane, count):
        self.port = free_ports(1)[0]
        self.addresses = [f"127.77.{lane}.{number}" for number in range(1, count + 1)]

    def stop(self):
        pass


class Names(asyncio.DatagramProtocol):
    """A name server with one name, whose addresses live for one second."""

    def __init__(self, addresses):
        self.addresses = addresses

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, query, sender):
        labels, at = [], 12
        while at < len(query) and query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode("latin-1").lower())
            at += 1 + query[at]
        question = query[12 : at + 5]
        kind = struct.unpack(">H", query[at + 1 : at + 3])[0]
        known = ".".join(labels) == NAME
        answers = self.addresses if known and kind == 1 else []
        head = query[:2] + struct.pack(">HHHHH", 0x8580 | (0 if known else 3), 1, len(answers), 0, 0)
        records = b"".join(
            b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 1, 4) + socket.inet_aton(address) for address in answers
        )
        self.transport.sendto(head + question + records, sender)


def isolation():
    """The command that gives a lab its namespaces, or None where the machine does not let it."""
    command = ["unshare", "--fork", "--pid", "--kill-child", "--net", "--mount", "--mount-proc"]
    if os.geteuid() != 0:
        command.insert(1, "--map-root-user")
    probe = "ip link set lo up && ip link add near1 type veth peer name far1 && unshare --net true && mount --bind /dev/null /etc/resolv.conf"
    try:
        done = subprocess.run([*command, "sh", "-c", probe], capture_output=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return command if done.returncode == 0 else None


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
