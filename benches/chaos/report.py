"""The scoreboard: a table per group of faults for the terminal, one in markdown for the README, and the goals that were missed."""

from faults import ALL as FAULTS, GROUPS
from proxies import ALL as PROXIES

SUBJECT = "bellwether"
#: Faults in which no proxy can save a GET: its answer had begun.
LOST_ANSWERS = {"reset"}
RECOVERY = 2.0
#: Which requests are under way when a fault begins is chance; differences up to these say nothing.
CHANCE_POSTS = 2
CHANCE_SECONDS = 0.1
HEADS = ("GETs failed", "POSTs failed", "executed", "twice", "detected", "later", "recovered", "full", "p50", "p99")


def tables(results):
    """One table per group."""
    blocks = []
    for group, title in GROUPS.items():
        rows = [row for row in results["rows"] if FAULTS[row["fault"]].group == group]
        if not rows:
            continue
        lines = [["fault", "proxy", *HEADS]]
        last = None
        for row in rows:
            name = FAULTS[row["fault"]].title if row["fault"] != last else ""
            last = row["fault"]
            lines.append([name, PROXIES[row["proxy"]].title, *cells(row)])
        blocks.append(f"{title}\n\n{aligned(lines)}")
    return "\n\n".join(blocks)


def cells(row):
    if problem := row.get("problem"):
        return [problem.splitlines()[-1][:60]] + ["-"] * (len(HEADS) - 1)
    later = row["later"]
    return [
        share(row, "get"),
        share(row, "post"),
        str(row["executed_though_failed"]),
        str(row["duplicates"]),
        moment(row["detected"], "never"),
        f"{later['trouble']}, {later['returns']} returns" if later["returns"] else str(later["trouble"]),
        moment(row["recovered"], "not yet"),
        moment(row["full"], "not yet"),
        f"{row['p50_ms']:.0f} ms",
        f"{row['p99_ms']:.0f} ms",
    ]


def share(row, method):
    failed, asked = row["failed"][method], row["requests"][method]
    percent = 100 * failed / max(asked, 1)
    return f"{percent:.1f} %" if percent >= 0.1 else f"{percent:.2f} %" if failed else "0"


def moment(seconds, otherwise):
    if seconds is None:
        return otherwise
    return f"{seconds:.1f} s" if seconds >= 0.1 else f"{seconds * 1000:.0f} ms" if seconds else "0"


def aligned(lines):
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    texts = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    return "\n".join([texts[0], "-" * len(texts[0]), *texts[1:]])


def markdown(results):
    """Faults down, proxies across: GETs failed / POSTs failed, detected, recovered."""
    proxies = list(dict.fromkeys(row["proxy"] for row in results["rows"]))
    found = {(row["fault"], row["proxy"]): row for row in results["rows"]}
    heads = [f"{PROXIES[proxy].title} {results['versions'].get(PROXIES[proxy].binary_name, '')}".strip() for proxy in proxies]
    lines = ["| fault, on one of three | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
    for fault in dict.fromkeys(row["fault"] for row in results["rows"]):
        texts = [brief(found.get((fault, proxy))) for proxy in proxies]
        lines.append(f"| {FAULTS[fault].title} | " + " | ".join(texts) + " |")
    facts = results["machine"]
    lines += [
        "",
        "GETs failed / POSTs failed while the fault lasted; detected after; recovered after. "
        f"POSTs that arrived twice: {duplicates(results, proxies)}. "
        f"{results['rate']:.0f} requests/s, a fifth POSTs, open loop, faults of {results['seconds']:.0f} s. "
        f"{facts['processor']}, {facts['cpus']} CPUs, Linux {facts['kernel']}.",
    ]
    return "\n".join(lines)


def brief(row):
    if row is None or row.get("problem"):
        return "-"
    return (
        f"{share(row, 'get')} / {share(row, 'post')}; {moment(row['detected'], 'never')}; "
        f"{moment(row['recovered'], 'not yet')}"
    )


def duplicates(results, proxies):
    counts = {proxy: 0 for proxy in proxies}
    for row in results["rows"]:
        counts[row["proxy"]] += row.get("duplicates", 0)
    return ", ".join(f"{PROXIES[proxy].title} {count}" for proxy, count in counts.items())


def goals(results):
    """What bellwether should have reached and did not, in words."""
    missed = []
    for row in results["rows"]:
        if row["proxy"] != SUBJECT or row.get("problem"):
            continue
        peers = [
            other
            for other in results["rows"]
            if other["fault"] == row["fault"] and not other["proxy"].startswith(SUBJECT) and not other.get("problem")
        ]
        missed += [f"{FAULTS[row['fault']].title}: {text}" for text in shortfalls(row, peers)]
    return missed


def shortfalls(row, peers):
    fault = row["fault"]
    if row["failed"]["get"] and fault not in LOST_ANSWERS:
        yield f"{row['failed']['get']} GETs failed; goal 0 ({row['outcomes']})"
    if row["failed"]["before"] or row["failed"]["after"]:
        yield f"{row['failed']['before']} failed before the fault and {row['failed']['after']} after it"
    if fault == "reset" and (row["detected"] is None or row["detected"] > 1.0):
        yield f"detected after {moment(row['detected'], 'never')}; goal 1 s"
    if fault == "slow" and not any(event["kind"] == "ejection" for event in row["evidence"].get("events", [])):
        yield "the slow host was not ejected"
    if fault.startswith("gray") and row["later"]["returns"] > 1:
        yield f"it came back {row['later']['returns']} times; goal 1"
    if row["duplicates"]:
        yield f"{row['duplicates']} POSTs arrived twice; goal 0"
    if row["recovered"] is None or row["recovered"] > RECOVERY:
        yield f"recovered after {moment(row['recovered'], 'not yet')}; goal {RECOVERY:.0f} s"
    if not peers:
        return
    best = min(peer["failed"]["post"] for peer in peers)
    if row["failed"]["post"] > best:
        chance = ", a difference of chance" if row["failed"]["post"] <= best + CHANCE_POSTS else ""
        yield f"{row['failed']['post']} POSTs failed; the best peer has {best}{chance}"
    best = min(forever(peer["detected"]) for peer in peers)
    if forever(row["detected"]) > best + CHANCE_SECONDS:
        yield f"detected after {moment(row['detected'], 'never')}; the best peer after {moment(best, 'never')}"


def forever(seconds):
    return float("inf") if seconds is None else seconds
