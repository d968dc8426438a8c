"""Results as a page: `docs/performance.md` is made by `make bench` and by nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from bench.checks import CALLERS, IN_FLIGHT, PIPELINE
from bench.lineup import BY_NAME
from bench.results import Results, WorkResult
from bench.works import WORKS, Work

_OURS: Final = "gatekeeper"
Shown = Callable[[float | None], str]

# Goal, what is measured, and by which factor it is to be reached at least (`most`: at most).
_GOALS: Final = (
    ("small JSON, against the naive stack", "small32", "naive", "rate", 40.0, False),
    ("small JSON, against fastify", "small32", "fastify", "rate", 2.0, False),
    ("small JSON, against Envoy, which knows no sessions", "small32", "envoy", "rate", 1.0, False),
    ("small JSON, against nginx with Lua", "small32", "nginx", "rate", 0.6, False),
    ("100 kB down, against fastify", "download", "fastify", "rate", 0.8, False),
    ("100 kB up, against fastify", "upload", "fastify", "rate", 0.8, False),
    ("p99 at half load, against nginx with Lua", "latency-busy", "nginx", "p99_us", 2.0, True),
)

_INTRODUCTION: Final = """# Performance

Made by `make bench`. Ratios are what counts: absolute figures are those of this machine, on this day.

Every peer is one process (or one worker) on one core; the load, the backend, and the store of those that have one share
the other. Each measurement has a fresh process that has answered every token once. Rounds go through the peers in turn,
and the tables show medians. There are 1,000 sessions with a token each, which take turns.

- **requests/s**: `wrk`, closed loop; small answers are 73 bytes of JSON. A run with a single refusal or broken
  connection does not count.
- **µs a request**: the time that the peer's processes had the processor, system calls included, by the number of
  requests. It says what a request costs where others share the machine.
- **busy**: the share of its core that the peer used. Well below 100 % the load, the backend or the store was the limit,
  and the peer could have done more.
- **latency**: at a constant rate, timed from when a request was due, so that a stall counts for all that it delayed.
- **interpreter**: CPython as distributions and the official images build it, with profile-guided optimisation. One
  without it, as pyenv builds by default, takes a sixth more time for a request of Gatekeeper's.
- **heads**: a backend's heads are mostly alike within a second, and Gatekeeper reads one that it knows in no time. What
  it costs where no head is like another stands in a table of its own.
- **memory**: proportional set size of all processes of a peer, after each connection has had one answer.
"""


def render(results: Results) -> str:
    """The whole page, in Markdown."""
    parts = [_INTRODUCTION, *_machine(results), *_goals(results)]
    for work in WORKS:
        if work.name in results.works:
            parts += [f"## {work.title}\n", *work_table(work, results.works[work.name])]
    if results.store:
        parts += ["## The store alone\n", *store_table(results.store)]
    if results.soak:
        parts += ["## Soak\n", *soak_table(results.soak)]
    return "\n".join(parts).rstrip() + "\n"


def _machine(results: Results) -> Iterator[str]:
    yield "## Machine and versions\n"
    yield from _table(["", ""], [[name, value] for name, value in {**results.environment, **results.versions}.items()])
    yield "Commands:\n"
    yield '```bash not-run="measures for an hour"'
    yield from results.commands
    yield "```\n"


def _goals(results: Results) -> Iterator[str]:
    rows = []
    for title, work, peer, figure, factor, is_most in _GOALS:
        ratio = results.ratio(work, _OURS, peer, figure)
        met = ratio is not None and (ratio <= factor if is_most else ratio >= factor)
        rows.append([title, f"{'≤' if is_most else '≥'} {factor:g}", _number(ratio), _word(ratio, met)])
    workers = results.median("workers", _OURS, "ratio_by_cpu")
    rows.append(
        [
            "two workers, against one, by processor time",
            "≥ 1.7",
            _number(workers),
            _word(workers, bool(workers and workers >= 1.7)),
        ]
    )
    if results.store:
        share = results.store["ratio"]
        rows.append(["checks, against the store's own ceiling", "≥ 0.5", _number(share), _word(share, share >= 0.5)])
    yield "## Goals\n"
    yield from _table(["Gatekeeper", "goal", "measured", ""], rows)


def _word(ratio: float | None, met: bool) -> str:
    return "not measured" if ratio is None else "met" if met else "**missed**"


def work_table(work: Work, result: WorkResult) -> Iterator[str]:
    """One work: every peer, and Gatekeeper's ratio to it."""
    if work.needs_rate:
        yield f"At {result.rate:,.0f} requests/s over 64 connections.\n"
    if work.name == "workers":
        yield from _workers(result)
        return
    ours = result.peers[_OURS].median(work.figure) if _OURS in result.peers else None
    rows = []
    for name, measured in result.peers.items():
        value = measured.median(work.figure)
        if value is None:
            rows.append([BY_NAME[name].title, BY_NAME[name].checks, measured.lacks, *[""] * (1 + len(_details(work)))])
            continue
        ratio = ours / value if ours is not None else None
        extra = [shown(measured.median(figure)) for _, figure, shown in _details(work)]
        rows.append([BY_NAME[name].title, BY_NAME[name].checks, f"{value:,.0f}", _number(ratio), *extra])
    better = "less is better" if work.less_is_better else "more is better"
    heads = ["", "checks", work.unit, "Gatekeeper : it", *[title for title, _, _ in _details(work)]]
    yield from _table(heads, rows)
    rounds = max((len(measured.rounds) for measured in result.peers.values()), default=0)
    yield f"{rounds} rounds of {result.seconds:g} s on {result.date}; {better}.\n"


def _details(work: Work) -> list[tuple[str, str, Shown]]:
    if work.name == "idle":
        return [("at the start", "start_mib", _number), ("KiB a connection", "kib_a_connection", _number)]
    if work.needs_rate:
        return [("p50", "p50_us", _whole), ("longest", "max_us", _whole)]
    return [("µs a request", "cpu_us", _number), ("busy", "busy", _percent)]


def _workers(result: WorkResult) -> Iterator[str]:
    measured = result.peers.get(_OURS)
    if measured is None or not measured.rounds:
        yield f"Not measured: {measured.lacks if measured else 'Gatekeeper was not run'}.\n"
        return
    rows = [
        [str(workers), _whole(measured.median(f"rate_{workers}")), _number(measured.median(f"cpu_us_{workers}"))]
        for workers in (1, 2)
    ]
    yield from _table(["workers", "requests/s", "µs a request"], rows)
    yield (
        "Here load, backend, store and workers share all cores, so with few cores the rate cannot double: it became "
        f"{_number(measured.median('ratio'))} × that of one. What two workers would do on two cores of their own "
        f"follows from what a request costs each: {_number(measured.median('ratio_by_cpu'))} × one worker.\n"
    )


def store_table(store: dict[str, Any]) -> Iterator[str]:
    """The check alone."""
    yield (
        f"One Python process calls `SessionStore.check` from {CALLERS} tasks that wait for their answers. The ceiling "
        f"is the same commands, recorded and sent again in pipelines of {PIPELINE}, {IN_FLIGHT} in flight, with nobody "
        "to read what the answers say.\n"
    )
    rows = [
        ["checks by Gatekeeper's client", _whole(store["checks"])],
        ["the store's ceiling", _whole(store["ceiling"])],
        ["ratio", _number(store["ratio"])],
    ]
    yield from _table(["", "checks/s"], rows)
    if store.get("growth"):
        first = store["growth"][0]["checks"]
        rows = [
            [f"{row['sessions']:,}", _whole(row["checks"]), _number(row["checks"] / first), _whole(row["bytes"])]
            for row in store["growth"]
        ]
        yield from _table(["sessions in the store", "checks/s", "to the first", "bytes a session"], rows)
    yield f"On {store['date']}.\n"


def soak_table(soak: dict[str, Any]) -> Iterator[str]:
    """Memory under mixed load."""
    rows = [[f"{sample['minute']:.1f}", _number(sample["mib"])] for sample in soak["samples"]]
    yield f"Mixed load (small answers, downloads, uploads, WebSocket messages) for {soak['minutes']:g} minutes.\n"
    yield from _table(["minute", "MiB"], rows)
    yield f"Slope over the second half: {soak['kib_a_minute']:+.1f} KiB a minute.\n"
    yield f"{soak['requests']:,} requests, on {soak['date']}.\n"


def _table(heads: list[str], rows: list[list[str]]) -> Iterator[str]:
    yield "| " + " | ".join(heads) + " |"
    yield "|" + " --- |" * len(heads)
    yield from ("| " + " | ".join(row) + " |" for row in rows)
    yield ""


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _whole(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.0%}"
