#!/usr/bin/env python3
"""Chaos with real processes: one fault at a time under steady load, and a scoreboard of what it cost.

    python3 benches/chaos/run.py                              # builds the dist binary; every fault; 6 minutes
    python3 benches/chaos/run.py --bellwether PATH --faults kill,gray --seconds 20
    python3 benches/chaos/run.py --compare                    # HAProxy, nginx and Envoy beside it; 16 minutes

Every proxy gets three upstreams of its own, the same schedule of requests and the same fault at the same moment. Each
such run is a lab: a process with network, mount and process namespaces of its own, so that packets can be dropped
and names be moved without touching the machine, and so that nothing can outlive it. As many labs run at a time as the
machine has processors. See benches/README.md for how to read the tables.
"""

import argparse
import concurrent.futures
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import threading

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "common")]

import faults  # noqa: E402
import network  # noqa: E402
import proxies  # noqa: E402
import report  # noqa: E402
import tools  # noqa: E402

SUBJECTS = ["bellwether", "bellwether-defaults"]
PEERS = ["haproxy", "nginx", "envoy"]
#: How to ask for the version, where it is not `--version`.
VERSION = {"haproxy": "-v", "nginx": "-v"}
WARM_UP = 3.5
RECOVERY = 7.5
#: Start, end and patience of a lab, on top of its timeline.
GRACE = 60.0


def main():
    arguments = parse()
    directory = pathlib.Path(tempfile.mkdtemp(prefix="bellwether-chaos-"))
    directory.chmod(0o755)
    try:
        results = run(arguments, directory)
    finally:
        if arguments.keep:
            tools.note(f"configurations and logs are in {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    pathlib.Path(arguments.json).write_text(json.dumps(results, indent=1) + "\n")
    table = report.markdown(results)
    pathlib.Path(arguments.markdown).write_text(table + "\n")
    print(report.tables(results))
    print(f"\nIn markdown ({arguments.markdown}; all figures in {arguments.json}):\n\n{table}")
    for note in results["notes"]:
        print(f"\nNote: {note}.")
    if missed := report.goals(results):
        print("\nGoals missed:\n" + "\n".join(f"- {line}" for line in missed))


def parse():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bellwether", help="the binary to test; without it the dist profile is built")
    parser.add_argument("--compare", action="store_true", help="the peers too: HAProxy, nginx, and Envoy if it can be had")
    parser.add_argument("--proxies", help=f"only these, of: {' '.join(SUBJECTS + PEERS)}")
    parser.add_argument("--faults", default=",".join(faults.ALL), help=f"only these, of: {' '.join(faults.ALL)}")
    parser.add_argument("--seconds", type=float, default=10.0, help="how long a fault lasts (10; gray failures twice that)")
    parser.add_argument("--rate", type=float, default=300.0, help="requests per second (300)")
    parser.add_argument("--seed", type=int, default=1, help="of the schedule (1)")
    parser.add_argument("--lanes", type=int, help="labs at a time (as many as processors)")
    parser.add_argument("--json", default="chaos.json", help="where the figures go (chaos.json)")
    parser.add_argument("--markdown", default="chaos.md", help="where the table for the README goes (chaos.md)")
    parser.add_argument("--keep", action="store_true", help="keep configurations and logs")
    arguments = parser.parse_args()
    arguments.faults = listed(parser, "fault", arguments.faults, faults.ALL)
    default = SUBJECTS + (PEERS if arguments.compare else [])
    arguments.proxies = listed(parser, "proxy", arguments.proxies or ",".join(default), proxies.ALL)
    if not 3 <= arguments.seconds <= 300:
        parser.error("--seconds is between 3 and 300: less shows nothing, more is a soak test")
    return arguments


def listed(parser, what, text, known):
    names = text.split(",")
    if unknown := [name for name in names if name not in known]:
        parser.error(f"no {what} {', '.join(unknown)}; there are {' '.join(known)}")
    return names


def run(arguments, directory):
    tools.ensure(["ip", "unshare", "nsenter"])
    binaries, notes = found(arguments)
    namespaces = network.isolation()
    if namespaces is None:
        notes.append("no namespaces here (root or unprivileged user namespaces are needed): all on loopback addresses")
    units = []
    for fault in arguments.faults:
        kind = faults.ALL[fault]
        if namespaces is None and (kind.needs_cut or kind.needs_names):
            notes.append(f'"{kind.title}" left out: it needs namespaces')
            continue
        units += [(fault, proxy) for proxy in arguments.proxies if proxies.ALL[proxy].binary_name in binaries]
    lanes = arguments.lanes or max(1, tools.machine()["cpus"])
    rows = Labs(arguments, directory, namespaces, binaries, lanes).run(units)
    notes += sorted({f"{row['proxy']}: {row['lacks']}" for row in rows if row.get("lacks")})
    return {
        "machine": tools.machine(),
        "versions": {name: tools.version(path, [VERSION.get(name, "--version")]) for name, path in binaries.items()},
        "rate": arguments.rate,
        "seconds": arguments.seconds,
        "seed": arguments.seed,
        "lanes": lanes,
        "notes": notes,
        "rows": rows,
    }


def found(arguments):
    """The binaries that are there, and a note about each that is not."""
    wanted = {proxies.ALL[proxy].binary_name for proxy in arguments.proxies}
    binaries, notes = {}, []
    if "bellwether" in wanted:
        path = arguments.bellwether or tools.build(HERE.parent.parent)
        if not pathlib.Path(path).is_file():
            raise tools.Missing(f"no file {path}; build it, or leave --bellwether out")
        binaries["bellwether"] = str(pathlib.Path(path).resolve())
    if debian := [name for name in ("haproxy", "nginx") if name in wanted]:
        tools.ensure(debian)
        binaries.update({name: tools.find(name) for name in debian})
    if "envoy" in wanted:
        if envoy := tools.envoy(pathlib.Path.home() / ".cache" / "bellwether-compare"):
            binaries["envoy"] = envoy
        else:
            notes.append("Envoy left out: it could not be installed")
    return binaries, notes


class Labs:
    """Runs labs, some at a time, and ends them all when this process is told to end."""

    def __init__(self, arguments, directory, namespaces, binaries, lanes):
        self.arguments, self.directory, self.namespaces, self.binaries = arguments, directory, namespaces, binaries
        self.free = list(range(1, lanes + 1))
        self.lock = threading.Lock()
        self.children = set()
        self.ending = False

    def run(self, units):
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("chaos: told to end"))
        with concurrent.futures.ThreadPoolExecutor(len(self.free)) as pool:
            try:
                return list(pool.map(self.lab, units))
            except BaseException:
                self.end()
                raise

    def lab(self, unit):
        fault, proxy = unit
        kind, arguments = faults.ALL[fault], self.arguments
        with self.lock:
            lane = self.free.pop()
        home = self.directory / f"{fault}-{proxy}"
        home.mkdir(mode=0o755)
        seconds = arguments.seconds * kind.factor
        plan = {
            "proxy": proxy,
            "fault": fault,
            "binary": self.binaries[proxies.ALL[proxy].binary_name],
            "directory": str(home),
            "lane": lane,
            "isolated": self.namespaces is not None,
            "seed": arguments.seed,
            "rate": arguments.rate,
            "warm_up": WARM_UP,
            "seconds": seconds,
            "recovery": RECOVERY,
        }
        (home / "unit.json").write_text(json.dumps(plan))
        try:
            problem = self.execute(home, WARM_UP + seconds + RECOVERY + GRACE)
        finally:
            with self.lock:
                self.free.append(lane)
        result = home / "unit.result"
        if not result.exists():
            tools.note(f"{fault}, {proxy}: {problem}")
            return {"proxy": proxy, "fault": fault, "problem": problem or "no result"}
        row = json.loads(result.read_text())
        tools.note(f"{fault}, {proxy}: {', '.join(f'{head} {cell}' for head, cell in zip(report.HEADS, report.cells(row)))}")
        return row

    def execute(self, home, limit):
        """Runs one lab to its end; what it said if that was a bad one."""
        command = [*(self.namespaces or []), sys.executable, str(HERE / "lab.py"), str(home / "unit.json")]
        with open(home / "lab.log", "wb") as log:
            with self.lock:
                if self.ending:
                    return "not run"
                child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
                self.children.add(child)
            try:
                child.wait(limit)
            except subprocess.TimeoutExpired:
                return f"did not end within {limit:.0f} s"
            finally:
                self.finish(child)
        return (home / "lab.log").read_text(errors="replace").strip()

    def finish(self, child):
        # The first process of the process namespace dies with this one, and all others with that.
        if child.poll() is None:
            child.kill()
            child.wait(10)
        with self.lock:
            self.children.discard(child)

    def end(self):
        with self.lock:
            self.ending = True
            children = list(self.children)
        for child in children:
            self.finish(child)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit("chaos: interrupted")
    except (tools.Missing, RuntimeError) as problem:
        sys.exit(f"chaos: {problem}")
