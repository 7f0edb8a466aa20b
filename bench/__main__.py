"""`python -m bench`: tcpproxy beside its peers, in one run, in interleaved rounds. Arguments and order."""

from __future__ import annotations

import argparse
import compileall
import contextlib
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import tcpproxy
from bench import getting, links, off, report, seeing, toxiproxy
from bench.all_cases import CASES
from bench.base import Bench, BenchError
from bench.machine import describe
from bench.peers import Peer
from bench.programs import find
from bench.targets import Case, medians

RESULTS = Path(__file__).with_name("results")
ROUNDS = 5
TOOLS = {
    "iperf3": ("bulk1", "bulk1-down", "bulk8", "bulk-bidir", "seeing-bulk", *links.BULK),
    "strace": ("syscalls",),
}
MOST_CONNECTIONS = 9000


def arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Compare tcpproxy with its peers.")
    parser.add_argument("--quick", action="store_true", help="one short round: is it about right?")
    parser.add_argument("--case", action="append", choices=case_names(), metavar="NAME", help="a case or a group")
    parser.add_argument("commit", nargs="?", metavar="COMMIT", help="with `--case off`: what to count beside")
    parser.add_argument("--peer", action="append", metavar="NAME", help="only this peer, beside ours; may be repeated")
    parser.add_argument("--rounds", type=int, metavar="N", help=f"rounds of each case (default {ROUNDS}, quick 1)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    parser.add_argument("--get", action="store_true", help="get the peers that can be had into build/peers, and end")
    parser.add_argument("--list", action="store_true", help="list the cases and the peers found, and end")
    options = parser.parse_args()
    if options.commit and options.case != ["off"]:
        parser.error(f"COMMIT is for --case off alone, not {options.commit!r}")
    if "off" in (options.case or []) and len(options.case) > 1:
        parser.error("--case off runs alone")
    return options


def case_names() -> list[str]:
    """Returns what --case takes: the names of cases, of their groups, and off, which compares with no peer."""
    return sorted({"off"} | {name for case in CASES for name in case.names()})


def say(text: str) -> None:
    """Show progress."""
    print(text, file=sys.stderr, flush=True)


def compile_programs(scratch: Path) -> None:
    """Compile the programs of C; they are never installed."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if not compiler:
        raise BenchError("needs a C compiler for its load generator (apt-get install gcc)")
    for name in ("load", "bare"):
        source = Path(__file__).with_name(f"{name}.c")
        subprocess.run([compiler, "-O2", "-pthread", str(source), "-o", str(scratch / name)], check=True)


def connection_limit() -> int:
    """Raise the soft limit of open files to the hard one, and return how many connections a proxy can hold under it.

    A proxy needs two descriptors a connection and some for itself; all that the bench starts inherit the limit.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = 1 << 20 if hard == resource.RLIM_INFINITY else hard
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    return min(MOST_CONNECTIONS, (limit - 300) // 2)


def chosen_cases(names: list[str] | None, skipped: dict[str, str]) -> list[Case]:
    """Returns the cases asked for, without those whose tool is missing."""
    single = {case.name for case in CASES}
    cases = [case for case in CASES if not names or any(case.called(name, name in single) for name in names)]
    for tool, users in TOOLS.items():
        if not shutil.which(tool) and any(case.name in users for case in cases):
            skipped[", ".join(users)] = f"apt-get install {tool}"
            cases = [case for case in cases if case.name not in users]
    return cases


def run_case(bench: Bench, case: Case, peers: list[Peer], rounds: int) -> dict[str, Any]:
    """Measures every peer once a round; each round begins with another one, so that none is always first."""
    taking = [peer for peer in peers if case.takes(peer.name, peer.special)]
    done: list[dict[str, Any]] = []
    failed: list[str] = []
    for number in range(rounds):
        shift = number % max(len(taking), 1)
        for peer in taking[shift:] + taking[:shift]:
            try:
                figures = case.measure(bench, peer)
            except (BenchError, OSError, subprocess.SubprocessError, ValueError) as error:
                failed.append(f"{peer.name}, round {number + 1}: {error}")
                say(f"{case.name:21} {number + 1}/{rounds} {peer.name:15} FAILED: {error}")
                continue
            done.append({"round": number + 1, "peer": peer.name, "figures": figures})
            shown = "  ".join(f"{m.label} {figures[m.key]:.{m.digits}f}" for m in case.metrics if m.key in figures)
            say(f"{case.name:21} {number + 1}/{rounds} {peer.name:15} {shown}")
    results = medians(done)
    ordered = {peer.name: results[peer.name] for peer in taking if peer.name in results}
    return {"rounds": done, "medians": ordered, "failed": failed}


@contextlib.contextmanager
def workplace() -> Iterator[Path]:
    """Yields a directory for the length of the run; SIGTERM becomes an exception, which ends everything on its way."""

    def stop(number: int, frame: object) -> NoReturn:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    with tempfile.TemporaryDirectory(prefix="tcpproxy-bench-") as directory:
        Path(directory).chmod(0o755)  # nginx's workers are another user
        yield Path(directory)


def run(options: argparse.Namespace) -> int:
    """Runs what was asked for, and reports."""
    if options.get:
        print(*getting.get(), sep="\n")
        return 0
    if options.case == ["off"]:
        with workplace() as scratch:
            off.run(Bench(scratch, scratch, options.quick, connection_limit()), options.commit, options.json)
        return 0
    peers, skipped = find()
    peers += seeing.variants(skipped) + toxiproxy.find(skipped)
    names = [peer.name for peer in peers]
    if unknown := [name for name in options.peer or [] if name not in names]:
        raise BenchError(f"no such peer here: {', '.join(unknown)}; found: {', '.join(names)}")
    if options.peer:
        peers = [peer for peer in peers if peer.name.partition("-")[0] == "ours" or peer.name in options.peer]
    cases = chosen_cases(options.case, skipped)
    for name, how in skipped.items():
        say(f"skipped {name}; to get it: {how}")
    if options.list:
        print("cases:", *(f"\n  {case.name:21} {case.title}" for case in CASES))
        print("peers:", *(f"\n  {peer.name:21} {peer.version}" for peer in peers))
        return 0
    rounds = options.rounds or (1 if options.quick else ROUNDS)
    begun = time.monotonic()
    with workplace() as scratch:
        compile_programs(scratch)
        compileall.compile_dir(Path(tcpproxy.__file__).parent, quiet=1)  # else `start` measures the compiler
        bench = Bench(scratch, scratch, options.quick, connection_limit())
        result = describe(peers, skipped) | {"quick": options.quick, "rounds": rounds, "cases": {}}
        for case in cases:
            since = time.monotonic()
            result["cases"][case.name] = run_case(bench, case, peers, rounds)
            result["cases"][case.name]["seconds"] = round(time.monotonic() - since, 1)
    result["seconds"] = round(time.monotonic() - begun)
    report.judge_all(result)
    print(report.markdown(result))
    if options.json:
        report.write_json(result, options.json)
    if not options.case and not options.peer:
        for path in report.write_all(result, RESULTS, "quick" if options.quick else "latest"):
            say(f"wrote {path}")
    return 0


def main() -> int:
    """Runs, and turns what went wrong into one line."""
    try:
        return run(arguments())
    except KeyboardInterrupt:
        say("stopped; nothing was written")
        return 130
    except (BenchError, subprocess.CalledProcessError) as error:
        say(f"bench: {error}")
        return 1


if __name__ == "__main__":
    sys.exit(main())
