"""From figures to the table of the README.

A cell is the median over the rounds. The ratio is the median of the rounds' ratios with the least and the greatest
beside it: where that spread reaches the goal, the answer is "about equal", not a win.
"""

import statistics

NAMES = {"haproxy": "HAProxy", "nginx": "nginx", "envoy": "Envoy"}
SUBJECT = "bellwether"


def row(scenario, values):
    """What one scenario found, ready for JSON."""
    found = {
        "key": scenario.key,
        "title": scenario.title,
        "unit": scenario.unit,
        "digits": scenario.digits,
        "values": {label: [round(figure, 4) for figure in figures] for label, figures in values.items()},
        "goal": scenario.goal,
        "goal_ratio": scenario.goal_ratio,
        "against": scenario.against,
        "failed": scenario.failed,
    }
    return {**found, **verdict(found)}


def subject(found):
    """The label that the goal speaks of: a variant of bellwether where the row has one."""
    labels = [label for label in found["values"] if label.startswith(SUBJECT)]
    return next((label for label in labels if label != SUBJECT), labels[0] if labels else None)


def verdict(found):
    label, values = subject(found), found["values"]
    other = values.get(found["against"])
    ratios = []
    if label and other and other is not values[label] and len(other) == len(values[label]):
        ratios = [mine / theirs for mine, theirs in zip(values[label], other) if theirs]
    met = None
    if label and found["goal"] is not None:
        met = statistics.median(values[label]) <= found["goal"]
    elif ratios and found["goal_ratio"] is not None:
        met = statistics.median(ratios) <= found["goal_ratio"]
    return {"ratios": [round(ratio, 3) for ratio in ratios], "met": met}


def markdown(results):
    labels = []
    for found in results["rows"]:
        labels += [label for label in found["values"] if label not in labels and label in (SUBJECT, *NAMES)]
    versions = results["versions"]
    heads = [f"{NAMES.get(label, label)} {versions.get(label, '')}".strip() for label in labels]
    lines = [
        "| | " + " | ".join(heads) + " | ratio to HAProxy | goal |",
        "|---|" + "---:|" * len(heads) + "---|---|",
    ]
    for found in results["rows"]:
        cells = [cell(found, column(found, label)) for label in labels]
        lines.append(f"| {found['title']} | " + " | ".join(cells) + f" | {ratio(found)} | {goal(found)} |")
    facts = results["machine"]
    lines += [
        "",
        f"{facts['processor']}, {facts['cpus']} CPUs, Linux {facts['kernel']}, load {facts['load_at_start']} at the "
        f"start; {results['rounds']} rounds; one proxy thread on one core, load and upstream on the other.",
    ]
    for found in results["rows"]:
        if bad := {label: count for label, count in found["failed"].items() if count}:
            lines.append(f"Failed requests in \"{found['title']}\": {bad}.")
    for found in results["rows"]:
        lines += variants(found)
    return "\n".join(lines)


def variants(found):
    """A table of its own for a row about many variants of bellwether."""
    of = {label: statistics.median(figures) for label, figures in found["values"].items() if figures}
    if SUBJECT not in of or len(of) < 4 or any(label in NAMES for label in of if label != SUBJECT):
        return []
    plain = of.pop(SUBJECT)
    return [
        "",
        f"| {found['title']} | figure | difference |",
        "|---|---:|---:|",
        f"| defaults | {plain:,.0f} | |",
        *(f"| {label} | {figure:,.0f} | {figure - plain:+,.0f} |" for label, figure in of.items()),
    ]


def column(found, label):
    """A row about a variant of bellwether shows the variant in bellwether's column."""
    return subject(found) if label == SUBJECT and subject(found) else label


def cell(found, label):
    figures = found["values"].get(label)
    if not figures:
        return "-"
    return f"{statistics.median(figures):,.{found['digits']}f} {found['unit']}".strip()


def ratio(found):
    ratios = found["ratios"]
    if not ratios or found["unit"] in ("MiB", "KiB", "ms"):
        return ""
    text = f"{statistics.median(ratios):.2f}"
    if len(ratios) > 1:
        text += f" ({min(ratios):.2f}-{max(ratios):.2f})"
    return text if found["against"] != SUBJECT else f"{text} to itself"


def goal(found):
    mark = {True: " met", False: " **missed**", None: ""}[found["met"]]
    if found["goal"] is not None:
        return f"<= {found['goal']:,} {found['unit']}".strip() + mark
    if found["goal_ratio"] is not None:
        return f"<= {found['goal_ratio']} x" + mark
    return ""
