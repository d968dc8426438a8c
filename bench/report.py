"""Renders the results of the bench as `docs/performance.md`, which only `make bench` writes."""

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

Written by `make bench`. Compare the ratios: the absolute figures depend on this machine.

Every peer is one process (or one worker) on one core of its own. The load generator, the backend and the store share
the other core. Each measurement starts a fresh process, which first responds to one request for each token. The peers
are measured in turn, round by round, and the tables show medians. There are 1,000 sessions with one token each, used in
turn.

- **requests/s**: `wrk` in a closed loop; small responses are 73 bytes of JSON. A run with one refused request or one
  broken connection does not count.
- **µs a request**: processor time of the peer's processes, system calls included, divided by the number of requests. It
  is what a request costs where several programs share a machine.
- **busy**: the share of its core that the peer used. Well below 100 %, the load generator, the backend or the store was
  the limit, and the peer could have done more.
- **latency**: at a constant rate, measured from the time at which a request was due, so that a stall counts for all
  requests that it delayed.
- **interpreter**: CPython with profile-guided optimisation, as in distributions and in the official images. Without it,
  as pyenv builds by default, a request costs Gatekeeper a sixth more.
- **heads**: response heads of a backend are mostly the same within a second, and Gatekeeper caches those that it has
  read. A table of its own shows the cost where every head is different.
- **memory**: proportional set size of all processes of a peer, after each connection has received one response.
"""


def render(results: Results) -> str:
    """Return the complete page in Markdown."""
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
    """Yield the table of one work: every peer, and Gatekeeper's ratio to it."""
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
        "Load generator, backend, store and workers share all cores here, so with few cores the rate cannot double: "
        f"it is {_number(measured.median('ratio'))} × that of one worker. By the cost of a request, two workers with a "
        f"core each would reach {_number(measured.median('ratio_by_cpu'))} × one worker.\n"
    )


def store_table(store: dict[str, Any]) -> Iterator[str]:
    """Yield the tables of the session check alone."""
    yield (
        f"One Python process calls `SessionStore.check` from {CALLERS} tasks, each of which waits for its result. The "
        f"ceiling is the same commands, recorded and sent again in pipelines of {PIPELINE}, {IN_FLIGHT} in flight, by "
        "a program that does not parse the replies.\n"
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
            [
                f"{row['sessions']:,}",
                _whole(row["checks"]),
                _number(row["checks"] / first),
                f"{row['store_us']:.1f}",
                _number(row["store_us"] / store["growth"][0]["store_us"]),
                _whole(row["bytes"]),
            ]
            for row in store["growth"]
        ]
        titles = ["checks/s", "to the first", "µs of the store's processor a check", "to the first", "bytes a session"]
        yield from _table(["sessions in the store", *titles], rows)
    yield f"On {store['date']}.\n"


def soak_table(soak: dict[str, Any]) -> Iterator[str]:
    """Yield the table of memory under mixed load."""
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
