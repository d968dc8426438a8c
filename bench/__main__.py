"""`make bench`, or `python -m bench [peers|store|soak|report]`."""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from bench import machine, report, soak, tools
from bench.lab import Lab
from bench.lineup import BY_NAME, PEERS
from bench.load import Broken, checks
from bench.results import Measured, Results, WorkResult, load
from bench.works import BY_NAME_OF_WORK, WORKS, DoesNotApply, Work

_RESULTS: Final = tools.WORK / "results.json"
_PAGE: Final = tools.HERE.parent / "docs" / "performance.md"
_FAILURES: Final = (Broken, machine.DidNotStart, OSError, subprocess.TimeoutExpired)


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 also where a peer was skipped, which the results then say."""
    options = _options(arguments)
    if options.list:
        print(_list())
        return 0
    missing = _prepare()
    if missing:
        print(f"bench: {missing}", file=sys.stderr)
        return 1
    results = load(_RESULTS)
    if options.mode != "report":
        results.environment, results.versions = machine.environment(), _versions()
        _run(options, results)
        results.commands = [*dict.fromkeys([*results.commands, _command(arguments)])]
        results.save(_RESULTS)
    if options.mode == "report" or (options.mode == "peers" and not options.peers and not options.work):
        _PAGE.write_text(report.render(results))
        print(f"written: {_PAGE.relative_to(_PAGE.parent.parent)}")
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench", description="Gatekeeper beside what people would pick instead."
    )
    parser.add_argument("mode", nargs="?", default="peers", choices=["peers", "store", "soak", "report"])
    parser.add_argument("--list", action="store_true", help="the peers and the works, and what is missing here")
    parser.add_argument("--peers", type=_names_in(BY_NAME), default=[], metavar="NAME,…")
    parser.add_argument("--work", type=_names_in(BY_NAME_OF_WORK), default=[], metavar="NAME,…")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--minutes", type=float, default=10.0, help="of a soak")
    parser.add_argument("--sessions", type=int, default=1_000_000, help="of the store's largest step")
    return parser.parse_args(arguments)


def _names_in(known: Collection[str]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        found = text.replace(",", " ").split()
        if unknown := [name for name in found if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: known are {', '.join(known)}")
        return found

    return names


def _list() -> str:
    lines = ["Peers:"]
    lines += [f"  {peer.name:12} {peer.title}{_in_brackets(peer.missing())}" for peer in PEERS]
    lines += ["Works:", *(f"  {work.name:12} {work.title}" for work in WORKS)]
    return "\n".join(lines)


def _in_brackets(text: str) -> str:
    return f"  [{text}]" if text else ""


def _prepare() -> str:
    """Names what prevents a complete measurement; empty if nothing does."""
    tools.install()
    limit = machine.raise_file_limit()
    if limit < 8192:
        return f"{limit} open files are too few: raise the hard limit to 8192 (ulimit -Hn)"
    # The backend of all peers, and the load.
    return tools.nginx_is_missing() or tools.wrk_is_missing()


def _command(arguments: Sequence[str] | None) -> str:
    return "python -m bench " + shlex.join(sys.argv[1:] if arguments is None else arguments)


def _versions() -> dict[str, str]:
    found = {peer.name: machine.version(*peer.version) for peer in PEERS if peer.version}
    return {name: text for name, text in found.items() if text}


def _run(options: argparse.Namespace, results: Results) -> None:
    with tempfile.TemporaryDirectory(prefix="gatekeeper-bench-") as directory:
        # nginx gives the folders of its workers to the user that its configuration names.
        Path(directory).chmod(0o755)
        with Lab(Path(directory) / "lab") as lab:
            if options.mode == "peers":
                _peers(lab, options, results)
            elif options.mode == "store":
                rounds, seconds = options.rounds, options.seconds
                measured = checks(lab.store_port, rounds=rounds, seconds=seconds, sessions=options.sessions)
                results.store = {"date": _now(), **measured}
                print("\n".join(report.store_table(results.store)))
            else:
                results.soak = {"date": _now(), **soak.run(lab, options.minutes)}
                print("\n".join(report.soak_table(results.soak)))


def _peers(lab: Lab, options: argparse.Namespace, results: Results) -> None:
    peers = options.peers or [peer.name for peer in PEERS]
    works = [BY_NAME_OF_WORK[name] for name in options.work] or list(WORKS)
    if any(work.needs_rate for work in works) and all(work.name != "small32" for work in works):
        works.insert(0, BY_NAME_OF_WORK["small32"])
    for work in sorted(works, key=WORKS.index):
        result = WorkResult(_now(), options.seconds)
        result.peers = {name: Measured(lacks=BY_NAME[name].missing()) for name in peers}
        results.works[work.name] = result
        if work.needs_rate:
            result.rate = _half_of_the_slowest(results, work, result)
        for number in range(options.rounds):
            for name, measured in result.peers.items():
                if not measured.lacks:
                    _measure(lab, work, name, result, measured, number + 1)
        print("\n".join(["", f"## {work.title}\n", *report.work_table(work, result)]), flush=True)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def _half_of_the_slowest(results: Results, work: Work, result: WorkResult) -> float:
    if work.name == "latency-busy" and "naive" in result.peers:
        result.peers["naive"].lacks = "left out"
    rates = [
        rate
        for name, measured in result.peers.items()
        if not measured.lacks and (rate := results.median("small32", name, "rate"))
    ]
    return round(min(rates) / 2, 1) if rates else 0.0


def _measure(lab: Lab, work: Work, name: str, result: WorkResult, measured: Measured, number: int) -> None:
    try:
        figures = work.run(lab, name, result.seconds, result.rate)
    except DoesNotApply as reason:
        measured.lacks = str(reason)
    except _FAILURES as failure:
        measured.lacks = f"failed: {str(failure).splitlines()[0][:160]}"
        print(f"{work.name} {name}: {failure}", file=sys.stderr)
    else:
        measured.rounds.append(figures)
        shown = " ".join(f"{key}={value:.6g}" for key, value in figures.items())
        print(f"{work.name} {name} {number}: {shown}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
