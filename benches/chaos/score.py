"""From what the clients saw and the upstreams wrote down to one row of the scoreboard.

**Failed** is a request without a whole answer of 200. A POST is **executed though failed** when an upstream did the work
and the caller was told otherwise, and a **duplicate** when it arrived whole at upstreams more than once, executed or not:
the proxy cannot know, so it may not try.

**Detected** is when trouble ends: from the fault's beginning until the last trouble before the first quiet second, in which
at most `QUIET` requests are in trouble (a probe is no neglect). Trouble is a request that failed or took much longer than
before, or one that reached the bad host at all. Nothing to detect is 0: nobody noticed. What comes **later** counts too: a proxy
that puts a bad host back every few seconds has detected nothing for good.

**Recovered** is from the fault's end until the first request, sent since, that the host has executed; **full** until it gets
half of its fair share.
"""

import collections
import dataclasses
import pathlib
import statistics

#: Much longer than before: this much above the median of the warm-up.
HARMFUL_DELAY = 0.250
QUIET = 1
FULL_SHARE = 0.5
#: Trouble that is closer together belongs to one return; a single request is a probe, no return.
RETURN_GAP = 0.5


@dataclasses.dataclass
class Timeline:
    """On the clock that all processes share."""

    start: float
    began: float
    ended: float
    over: float


def score(fault, requests, logs, timeline, upstreams):
    begin, end = timeline.began - timeline.start, timeline.ended - timeline.start
    # One that is under way when the fault begins has its part in it.
    during = [request for request in requests if request.at < end and request.at + request.latency >= begin]
    before = [request for request in requests if request.at + request.latency < begin]
    after = [request for request in requests if request.at >= end]
    arrivals = {number: read(log) for number, log in logs.items()}
    counts = {what: tally(arrivals, what) for what in ("received", "executed")}
    posts = [request for request in requests if request.method == "POST"]
    usual = statistics.median(request.latency for request in before)
    fair = len(during) / max(end - begin, 1e-9) / upstreams

    trouble = troubles(fault, during, arrivals, timeline, usual)
    detected = first_quiet_second(trouble, timeline.ended - timeline.began)
    later = [moment for moment in trouble if detected is not None and moment > detected]
    served = served_after(fault, requests, arrivals, timeline)
    latencies = sorted(request.latency for request in during) or [0.0]
    return {
        "requests": {"get": count(during, "GET"), "post": count(during, "POST")},
        "failed": {
            "get": failures(during, "GET"),
            "post": failures(during, "POST"),
            "before": sum(request.failed for request in before),
            "after": sum(request.failed for request in after),
        },
        "outcomes": dict(collections.Counter(f"{r.method} {r.outcome}" for r in during if r.failed)),
        "outcomes_after": dict(collections.Counter(f"{r.method} {r.outcome}" for r in after if r.failed)),
        "executed_though_failed": sum(1 for r in posts if r.failed and counts["executed"][r.identity]),
        "duplicates": sum(1 for r in posts if counts["received"][r.identity] > 1),
        "detected": rounded(detected),
        "later": {"trouble": len(later), "returns": returns(later)},
        "last_failure": rounded(max((r.at - begin for r in during + after if r.failed), default=None)),
        "recovered": rounded(min(served, default=None)),
        "full": rounded(first_full_second(served, FULL_SHARE * fair * len(recovering(fault)), timeline)),
        "p50_ms": round(quantile(latencies, 0.5) * 1000, 1),
        "p99_ms": round(quantile(latencies, 0.99) * 1000, 1),
        "usual_ms": round(usual * 1000, 1),
        "lateness_p99_ms": round(quantile(sorted(r.late for r in requests), 0.99) * 1000, 1),
        "failures": [[round(r.at - begin, 3), r.method, r.outcome, r.upstream] for r in during + after if r.failed][:200],
        "trouble": [round(moment, 3) for moment in trouble][:1000],
    }


def read(log):
    """The events of an upstream: (when, what, id)."""
    events = []
    for line in pathlib.Path(log).read_text().splitlines():
        when, what, identity = line.split(" ")
        events.append((float(when), what, identity))
    return events


def tally(arrivals, what):
    return collections.Counter(
        identity for events in arrivals.values() for _, kind, identity in events if kind == what
    )


def troubles(fault, during, arrivals, timeline, usual):
    """When requests were let down, in seconds since the fault began: by when they were sent, or reached the bad host."""
    begin = timeline.began - timeline.start
    harmed = {r.identity: max(r.at - begin, 0.0) for r in during if r.failed or r.latency > usual + HARMFUL_DELAY}
    if not fault.serves_meanwhile:
        for number in fault.bad:
            for when, what, identity in arrivals[number]:
                if what == "received" and timeline.began <= when < timeline.ended:
                    harmed.setdefault(identity, when - timeline.began)
    return sorted(harmed.values())


def first_quiet_second(trouble, length):
    """The moment after which a second is quiet; None when there is none before the end."""
    for moment in [0.0, *trouble]:
        if moment + 1.0 > length:
            break
        if sum(1 for other in trouble if moment < other <= moment + 1.0) <= QUIET:
            return moment
    return None


def recovering(fault):
    """The upstreams that should get traffic once all is well; for a move that is where it went."""
    return (4,) if fault.needs_names else fault.bad


def served_after(fault, requests, arrivals, timeline):
    """When the recovered hosts executed requests that were sent after the fault, in seconds since its end.

    What had piled up in front of a frozen process is no sign of recovery, hence the look at when it was sent.
    """
    since = timeline.began if fault.needs_names else timeline.ended
    sent = {request.identity: timeline.start + request.at for request in requests}
    served = []
    for number in recovering(fault):
        served += [
            when - since
            for when, what, identity in arrivals.get(number, [])
            if what == "executed" and sent.get(identity, 0) >= since
        ]
    return sorted(served)


def first_full_second(served, wanted, timeline):
    for moment in served:
        if sum(1 for other in served if moment <= other < moment + 1.0) >= wanted:
            return moment
    return None


def returns(moments):
    """How often several requests in a row were in trouble again."""
    sizes, last = [], None
    for moment in moments:
        if last is None or moment - last > RETURN_GAP:
            sizes.append(0)
        sizes[-1] += 1
        last = moment
    return sum(1 for size in sizes if size > 1)


def count(requests, method):
    return sum(request.method == method for request in requests)


def failures(requests, method):
    return sum(request.failed for request in requests if request.method == method)


def quantile(ordered, share):
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def rounded(seconds):
    return None if seconds is None else round(seconds, 3)
