"""Runs tests on a core that is watched: `python tools/sanitize.py asan|tsan|valgrind [PYTEST ARGUMENTS]`.

    asan        AddressSanitizer, LeakSanitizer and UndefinedBehaviorSanitizer
    tsan        ThreadSanitizer
    valgrind    the ordinary build, with the command under valgrind

Each builds a copy of the tree, with a virtual environment of its own, in build/sanitize/NAME. Its `python` is a small
program that holds the sanitizer's runtime: nothing is preloaded, so that other programs which tests start run as they
are, and each Python that a test starts, the command too, is the watched one. What a sanitizer has to say goes to files;
the run fails if one is a report, or if a test fails.

A Python that is itself built with ThreadSanitizer (`./configure --disable-gil --with-thread-sanitizer`), running this
file, makes tsan see also what threads without a lock do to the core's Python objects. That Python has races of its own:
what names no function of the core is left out, and TSAN_OPTIONS=suppressions=FILE can name the rest of them, such as
Tools/tsan/suppressions_free_threading.txt of its source.

The tests are the suite, then 1,000 schedules of tests/model, 1,000 checked conversations and 200 starts and stops under
load; valgrind: 50 schedules and 50 conversations, since all is fifty times slower there. Arguments that are options go
to pytest in addition (`-n2`), others say which tests to run instead. Left out of the suite are

- tests marked `timed`, as in CI: a watched core is slower, by up to ten times;
- tests that limit the address space, of which a sanitizer takes terabytes;
- tests/scale, ten thousand mixed connections and output that stands still, which compare memory over time: a sanitizer
  keeps aside what is freed;
- tests/faults/test_shim.py: its library takes the place of memory calls that the sanitizer makes to set itself up;
- asan: strace, since a leak check does not work in a traced process (the tests that need it skip), and hundreds of
  forks beside busy threads, of which a child may inherit a lock of the sanitizer's allocator that nobody opens again;
- tsan: three more tests that bound memory, of which it keeps several bytes for each one that is used, and one that
  looks for a worker where the sanitizer has a thread of its own; by a Python that is built with it also one that forks
  (the sanitizer ends the child when it starts threads) and one that lets the clock jump (such a Python waits by it);
- tests/model/test_mutants.py, which builds cores of its own, and tests/platforms, which is about no part of the core.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).parents[1]

FLAGS = {
    "asan": "-fsanitize=address,undefined -fno-omit-frame-pointer -g",
    "tsan": "-fsanitize=thread -fno-omit-frame-pointer -g",
    "valgrind": "-g",
}

INSTRUMENTED = "-fsanitize=thread" in str(sysconfig.get_config_var("CFLAGS"))
"""The Python that runs this has the sanitizer in it."""

PROGRAMS_LEFT_OUT = {"asan": {"strace"}}

TESTS_LEFT_OUT = (
    "not could_not_be_kept and not without_memory and not ten_thousand_mixed and not output_that_stands_still"
)
MORE_LEFT_OUT = {
    "asan": " and not many_forks",
    "tsan": " and not thousands_held and not memory_is_bounded and not narrow_way_out"
    " and not (calls_that_fail and epoll_wait)"
    + (" and not forked_child and not clock_that_jumps" if INSTRUMENTED else ""),
}

SUITE = ["tests/unit", "tests/integration", "tests/faults/test_strace.py"]
CAMPAIGNS = ["tests/faults/test_steady.py", "tests/model/test_schedules.py"]

RUNS = {
    "asan": [SUITE, [*CAMPAIGNS, "--rounds=10", "--schedules=1000"]],
    "tsan": [SUITE, [*CAMPAIGNS, "--rounds=10", "--schedules=1000"]],
    "valgrind": [[*CAMPAIGNS, "-k", "under_valgrind or direct_connection", "--schedules=50"]],
}
"""For each, the arguments of one run of pytest after the other."""

REPORT = re.compile(r"ERROR: |CHECK failed|WARNING: (?!unhandled)|runtime error|^==\d+==    at 0x", re.MULTILINE)
"""Not a mere remark: LeakSanitizer's on threads that a fork has not copied, valgrind's on new system calls."""

LAUNCHER = """
#define PY_SSIZE_T_CLEAN
#include <Python.h>
int main(int argc, char **argv) { return Py_BytesMain(argc, argv); }
"""


def main() -> int:
    name, *arguments = sys.argv[1:] or sys.exit(__doc__)
    if name not in FLAGS:
        sys.exit(__doc__)
    place = ROOT / "build" / "sanitize" / (f"{name}-python" if INSTRUMENTED else name)
    python = build(name, place)
    reports = place / "reports"
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir()
    environment = {**os.environ, **options(name, reports), "CFLAGS": FLAGS[name], "LDFLAGS": FLAGS[name]}
    if left_out := PROGRAMS_LEFT_OUT.get(name):
        environment["PATH"] = str(programs(place / "bin", left_out))
    options_only = all(argument.startswith("-") for argument in arguments)
    code = 0
    for tests in RUNS[name] if options_only else [[]]:
        selected = ["-m", "not timed", "-k", TESTS_LEFT_OUT + MORE_LEFT_OUT.get(name, ""), *tests, *arguments]
        command = [str(python), "-P", "-m", "pytest", "-p", "no:cacheprovider", "--timeout=600", *selected]
        code = subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode or code
    texts = {file: relevant(file.read_text(errors="replace")) for file in sorted(reports.iterdir())}
    found = {file: text for file, text in texts.items() if REPORT.search(text)}
    for file in list(found)[:20]:
        print(f"\n== {file}\n{found[file][:6000]}")
    print(f"{name}: {len(found)} reports")
    return 1 if found else code


def relevant(text: str) -> str:
    """What is said about the core, if Python too has been watched."""
    rule = f"{'=' * 18}\n"
    return rule.join(part for part in text.split(rule) if not INSTRUMENTED or "tcpproxy/_core/" in part)


def build(name: str, place: Path) -> Path:
    """The interpreter for this sanitizer, with tcpproxy built for it."""
    tree, environment = place / "tree", place / "venv"
    python = environment / "bin" / "python"
    if not environment.exists():
        venv.create(environment, with_pip=True, symlinks=True)
        run(environment / "bin" / "python3", "-m", "pip", "install", "-q", "setuptools>=77", "Cython>=3.1,<4")
    plain = environment / "bin" / "python3"
    if plain.is_symlink() and os.readlink(plain) == "python":  # the name that becomes the launcher's
        base = os.path.realpath(plain)
        plain.unlink()
        plain.symlink_to(base)
    left_out = shutil.ignore_patterns("build", ".git", ".venv", "*.so", "tests", "*.egg-info")
    shutil.copytree(ROOT, tree, ignore=left_out, dirs_exist_ok=True)  # with its times: what is old is not built again
    variables = {"CFLAGS": FLAGS[name], "LDFLAGS": FLAGS[name], "ASAN_OPTIONS": "detect_leaks=0"}
    # An older package that needs no compiler: hypothesis has begun to, and has no wheel for every Python.
    ways = ["--no-build-isolation", "--prefer-binary"]
    run(plain, "-m", "pip", "install", "-q", *ways, f"{tree}[test]", **variables)
    if name != "valgrind":
        modules = list(environment.glob("lib/*/site-packages/tcpproxy/_core/*.so"))
        assert modules
        assert all(f"__{name}_".encode() in module.read_bytes() for module in modules), "built without the sanitizer"
        if not INSTRUMENTED:
            python.unlink()
            compile_launcher(name, place, python)
    return python


def compile_launcher(name: str, place: Path, python: Path) -> None:
    source = place / "launcher.c"
    source.write_text(LAUNCHER)
    variable = sysconfig.get_config_var
    library = f"-lpython{variable('LDVERSION')}"
    where = variable("LIBDIR") if variable("Py_ENABLE_SHARED") else variable("LIBPL")
    link = [f"-L{where}", f"-Wl,-rpath,{where}", library, *str(variable("LIBS")).split(), "-lm", "-ldl"]
    compiler = str(variable("CC")).split()[0]
    include = f"-I{sysconfig.get_path('include')}"
    run(compiler, *FLAGS[name].split(), include, source, "-o", python, "-rdynamic", *link)


def options(name: str, reports: Path) -> dict[str, str]:
    common = f"log_path={reports}/report:exitcode=66"
    if name == "asan":
        # Tests that preload a library of theirs put it in front of the sanitizer's, which it calls.
        ours = "detect_leaks=1:allocator_may_return_null=1:malloc_context_size=2:verify_asan_link_order=0"
        return {
            "PYTHONMALLOC": "malloc",  # CPython's own allocator would hide what it hands out
            "ASAN_OPTIONS": f"{common}:{ours}",
            "LSAN_OPTIONS": f"suppressions={Path(__file__).with_name('suppressions')}/leaks.txt:print_suppressions=0",
            "UBSAN_OPTIONS": f"{common}:print_stacktrace=1",
        }
    if name == "tsan":
        # CPython is not instrumented: calls of its own, on objects that its lock guards, would be false alarms.
        ours = "history_size=4:ignore_noninstrumented_modules=1:die_after_fork=0"
        if INSTRUMENTED:
            ours += ":exitcode=0"  # a race that is Python's own does not fail a test
        return {"TSAN_OPTIONS": f"{common}:{ours}:{os.environ.get('TSAN_OPTIONS', '')}"}
    return {"PYTHONMALLOC": "malloc", "VALGRIND_REPORTS": str(reports)}


def programs(folder: Path, left_out: set[str]) -> Path:
    """A folder for PATH with all programs but those left out."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for place in os.get_exec_path():
        for file in Path(place).glob("*"):
            if file.name not in left_out and not (folder / file.name).is_symlink():
                (folder / file.name).symlink_to(file)
    return folder


def run(*command: object, **variables: str) -> None:
    subprocess.run([str(word) for word in command], check=True, env={**os.environ, **variables}, cwd=ROOT)


if __name__ == "__main__":
    sys.exit(main())
