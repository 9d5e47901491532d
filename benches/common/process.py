"""Processes that a bench starts, and ends by their id, with everything that they have started in turn."""

import os
import pathlib
import signal
import socket
import subprocess
import time

PROC = pathlib.Path("/proc")


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Process:
    """A process that was started here and is ended here, by its id."""

    def __init__(self, command, log, core=None):
        pinned = ["taskset", "-c", core] if core else []
        self.log = log
        self.started = time.monotonic()
        with open(log, "ab") as output:
            self.child = subprocess.Popen(
                [*pinned, *command], stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )
        self.pid = self.child.pid

    def signal(self, number):
        self.child.send_signal(number)

    def stop(self):
        members = family(self.pid)
        # The second one ends a proxy that would wait for its clients.
        for _ in range(2):
            if self.child.poll() is None:
                self.signal(signal.SIGTERM)
                try:
                    self.child.wait(1.0)
                except subprocess.TimeoutExpired:
                    pass
        if self.child.poll() is None:
            for member in members:
                try:
                    os.kill(member, signal.SIGKILL)
                except ProcessLookupError:
                    pass
            self.child.wait(10)

    def kill(self):
        """Ends it at once, for processes that hold nothing worth a farewell, or that are frozen and cannot say it."""
        if self.child.poll() is None:
            self.signal(signal.SIGKILL)
            self.child.wait(10)

    def alive(self):
        return self.child.poll() is None

    def said(self):
        return pathlib.Path(self.log).read_text(errors="replace")[-2000:]


def family(pid):
    """The process and all its descendants."""
    found = [pid]
    for parent in found:
        for task in tasks(parent):
            try:
                found += [int(child) for child in (task / "children").read_text().split()]
            except OSError:
                continue
    return found


def tasks(pid):
    try:
        return list((PROC / str(pid) / "task").iterdir())
    except OSError:
        return []
