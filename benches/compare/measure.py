"""What a proxy has used, read from the kernel: processor time, system calls, memory; and instructions from valgrind.

Processor time per request is the figure of the comparison. Throughput and latency say more about the machine's other
guests than about a proxy; the time that a pinned process has run is the same on a busy machine, but for the caches.
It is summed over all threads of the process and of its children, in nanoseconds where the kernel counts them.
"""

import os
import pathlib
import re
import signal
import subprocess
import time

from process import PROC, family, tasks

TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid):
    """User and system time of the whole family so far."""
    return sum(thread_seconds(task) for member in family(pid) for task in tasks(member))


def thread_seconds(task):
    try:
        return int((task / "schedstat").read_text().split()[0]) / 1e9
    except (OSError, IndexError):
        pass
    try:
        # After the name, which may hold spaces: state is field 3, utime 14, stime 15.
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS
    except (OSError, IndexError):
        return 0.0


def resident_kib(pid):
    """Resident memory of the whole family."""
    total = 0
    for member in family(pid):
        status = (PROC / str(member) / "status").read_text()
        total += int(re.search(r"VmRSS:\s+(\d+)", status).group(1))
    return total


def count_system_calls(pid, load):
    """Runs `load` and returns its result with the number of system calls that the family made meanwhile.

    The kernel's own trace point counts without slowing the process, which matters: a slowed proxy finds more to do at
    each wake-up and needs fewer calls per request. Where it cannot be had, strace counts.
    """
    pids = ",".join(str(member) for member in family(pid))
    for command, pattern in (
        (["perf", "stat", "-x", ";", "-e", "raw_syscalls:sys_enter", "-p", pids], r"(\d+);[^\n]*raw_syscalls"),
        (["strace", "-f", "-c", *(f"-p{member}" for member in family(pid))], r"\s(\d+)\s+(?:\d+\s+)?total"),
    ):
        try:
            counter = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        except OSError:
            continue
        time.sleep(0.5)
        if counter.poll() is not None:
            counter.communicate()
            continue
        result = load()
        counter.send_signal(signal.SIGINT)
        _, said = counter.communicate(timeout=30)
        if found := re.search(pattern, said):
            return result, int(found.group(1))
    return None


def callgrind(command, directory):
    """The command that runs `command` under callgrind, counting nothing until it is asked to."""
    return [
        "valgrind",
        "--tool=callgrind",
        f"--callgrind-out-file={directory}/callgrind.%p",
        "--log-file=" + str(directory) + "/valgrind.%p",
        *command,
    ]


def instructions_since_last(pid, directory):
    """The user instructions executed since the last call, of a process that runs under `callgrind`."""
    before = set(pathlib.Path(directory).glob("callgrind.*"))
    subprocess.run(
        ["callgrind_control", "--dump", str(pid)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True
    )
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        for dump in set(pathlib.Path(directory).glob("callgrind.*")) - before:
            if found := re.search(r"^totals: (\d+)", dump.read_text(), re.MULTILINE):
                return int(found.group(1))
        time.sleep(0.1)
    raise TimeoutError("callgrind has written no dump")
