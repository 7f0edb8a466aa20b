"""The live view on a terminal: what is on it, keys, signals, sizes, and what is left of it after each kind of end."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from networks import Closed
from support.command import SUMMARY, Command
from support.machine import allow_descriptors, cpu_while_asleep, needs
from support.peers import Echo, Upstream, connect, free_port, name_of
from support.streams import echoes
from support.waiting import TIMEOUT, at_best, eventually

from tcpproxy.command.picture import MANY

if sys.platform == "win32":
    pytest.skip("no live view here", allow_module_level=True)
pytest.importorskip("rich", reason="needs rich")

COMMAND = (sys.executable, "-m", "tcpproxy", "--top")


class Tmux:
    """A terminal in a tmux server of its own, with a shell in it."""

    def __init__(self, folder: Path, columns: int, lines: int) -> None:
        needs("tmux", "bash")
        self._tmux = ("tmux", "-S", str(folder / "tmux"))
        self._pid = folder / "pid"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("TMUX")}
        shell = "env PS1=@ BASH_SILENCE_DEPRECATION_WARNING=1 bash --norc --noprofile -i"
        subprocess.run(
            [*self._tmux, "-f", os.devnull, "new-session", "-d", "-x", str(columns), "-y", str(lines), shell],
            check=True,
            env={**environment, "LC_ALL": "C.UTF-8"},
            cwd="/",
        )
        eventually(lambda: self.text.startswith("@"), TIMEOUT)

    def _ask(self, *args: str) -> str:
        return subprocess.run([*self._tmux, *args], check=True, capture_output=True, text=True).stdout

    @property
    def text(self) -> str:
        """What is on the screen."""
        return self._ask("capture-pane", "-p")

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    def type(self, *keys: str) -> None:
        self._ask("send-keys", *keys)

    def start(self, *argv: str) -> None:
        """Runs a program; its exit code and the terminal's modes are printed behind it."""
        words = shlex.join(["sh", "-c", 'echo $$ >"$0"; exec "$@"', str(self._pid), *argv])
        self.type("-l", f"clear; {words}; echo code=$?; stty -a | grep -ow -e '-*echo' -e '-*icanon'\n")

    @property
    def pid(self) -> int:
        eventually(lambda: self._pid.exists() and self._pid.read_text().endswith("\n"), TIMEOUT)
        return int(self._pid.read_text())

    def resize(self, columns: int, lines: int) -> None:
        self._ask("resize-window", "-x", str(columns), "-y", str(lines))

    @property
    def state(self) -> str:
        """`1 0`: the other screen, without a cursor; `0 1`: as usual."""
        return self._ask("display", "-p", "#{alternate_on} #{cursor_flag}").strip()

    def see(self, *patterns: str) -> None:
        """Waits until all of them are on the screen."""
        try:
            eventually(lambda: all(re.search(each, self.text) for each in patterns), TIMEOUT)
        except AssertionError:
            pytest.fail(f"{patterns} not on the screen:\n{self.text}")

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], check=False, capture_output=True)


@pytest.fixture
def tmux(tmp_path: Path, stack: contextlib.ExitStack) -> Callable[..., Tmux]:
    def make(columns: int = 80, lines: int = 24) -> Tmux:
        return stack.enter_context(contextlib.closing(Tmux(tmp_path, columns, lines)))

    return make


def started(terminal: Tmux, target: str, *options: str) -> int:
    """Starts the view. Returns the port that it listens on."""
    port = free_port()
    terminal.start(*COMMAND, "-l", str(port), *options, target)
    terminal.see(rf"tcpproxy  127.0.0.1:{port} → {target}", r"q stop")
    assert terminal.state == "1 0"
    return port


def restored(terminal: Tmux, code: int = 0) -> str:
    """The terminal is as before, and the program has ended so. Returns what is on the screen."""
    terminal.see(rf"code={code}\nicanon\necho\n@")
    assert terminal.state == "0 1"
    assert "q stop" not in terminal.text
    return terminal.text


@pytest.mark.parametrize(("columns", "lines"), [(60, 20), (80, 24), (120, 40)])
def test_sizes(tmux: Callable[..., Tmux], echo: Echo, columns: int, lines: int) -> None:
    """Connections that live and one that has ended; the log and the keys at the foot."""
    terminal = tmux(columns, lines)
    port = started(terminal, echo.name)
    with connect(("127.0.0.1", port)) as client:
        assert echoes(client, b"hello")
        with connect(("127.0.0.1", port)) as other:
            assert echoes(other, b"hello")
            ended = name_of(other)
        terminal.see(rf"#1 {name_of(client)} .*relaying", rf"#2 {ended} .*client-eof", r"1 open  2 accepted")
        text = terminal.lines
        assert len(text) == lines
        assert text[-1].startswith("q stop")
        assert f"New connection from {ended} #2" in text
        (heading,) = (line.split() for line in text if line.lstrip().startswith("#  ") or " # client" in line)
        assert ("idle" in heading) == (columns >= 100)
        assert ("upstream" in heading) == (columns >= 70)
        terminal.see(r"0 open  |1 open  2 accepted", rf"#1 {name_of(client)}")
        eventually(lambda: "client-eof" not in terminal.text, TIMEOUT)
    terminal.type("q")
    assert re.search(r"2 connections; 10 B to upstream, 10 B to clients\ncode=0", restored(terminal))


def test_resizing(tmux: Callable[..., Tmux], echo: Echo) -> None:
    """The picture follows at once."""
    terminal = tmux(120, 40)
    port = started(terminal, echo.name)
    with connect(("127.0.0.1", port)) as client:
        assert echoes(client)
        terminal.see(r" idle ", r"#1 ")
        terminal.type("Space")
        terminal.see(r"paused")
        terminal.resize(60, 20)
        eventually(lambda: len(terminal.lines) == 20 and terminal.lines[-1].startswith("q stop"), TIMEOUT)
        assert " idle " not in terminal.text
        assert " upstream " not in terminal.lines[5]
        terminal.resize(120, 30)
        terminal.see(r" idle ")
        eventually(lambda: len(terminal.lines) == 30 and terminal.lines[-1].startswith("q stop"), TIMEOUT)
    terminal.type("q")
    restored(terminal)


def test_keys(tmux: Callable[..., Tmux], echo: Echo, stack: contextlib.ExitStack) -> None:
    """Pause, order, scrolling, help."""
    terminal = tmux(80, 24)
    port = started(terminal, echo.name)
    for _ in range(30):
        assert echoes(stack.enter_context(connect(("127.0.0.1", port))))
    terminal.see(r"30 open", r"sort: rate  ", r"1-\d+ of 30")
    terminal.type("s")
    terminal.see(r"sort: #  ", r"\n +#1 ")
    terminal.type("S")
    terminal.see(r"sort: # reversed", r"\n +#30 ")
    terminal.type("S")
    terminal.type("Down")
    terminal.see(r"2-\d+ of 30")
    terminal.type("NPage")
    terminal.see(r"1[0-9]-\d+ of 30")
    terminal.type("End")
    terminal.see(r"-30 of 30", r"#30 ")
    terminal.type("PPage", "Home")
    terminal.see(r"\n +#1 ", r" 1-\d+ of 30")
    terminal.type("?")
    terminal.see(r"sort by the next column")
    terminal.type("?")
    terminal.see(r"\n +#1 ")
    terminal.type("Space")
    terminal.see(r"paused", r"space go on")
    with connect(("127.0.0.1", port)) as another:
        assert echoes(another)
        assert "31 open" not in terminal.text
        terminal.type("Space")
        terminal.see(r"31 open")
    stack.close()  # the clients; and the terminal, which ends the program


@pytest.mark.parametrize("end", ["q", "C-c", signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_ends(tmux: Callable[..., Tmux], echo: Echo, end: str | signal.Signals) -> None:
    """The usual screen, cursor and modes are back, and the last line is on it."""
    terminal = tmux()
    port = started(terminal, echo.name)
    with connect(("127.0.0.1", port)) as client:
        assert echoes(client)
    terminal.see("0 open  1 accepted")
    if isinstance(end, str):
        terminal.type(end)
    else:
        os.kill(terminal.pid, end)
    assert SUMMARY.search(restored(terminal))


def test_ctrl_backslash(tmux: Callable[..., Tmux], echo: Echo) -> None:
    """It ends the program as any other, and the terminal is as before."""
    terminal = tmux()
    started(terminal, echo.name)
    terminal.type("C-\\")
    restored(terminal, 128 + signal.SIGQUIT)


def test_an_end_in_two_steps(tmux: Callable[..., Tmux], echo: Echo) -> None:
    """The first q lets connections end, and the foot says so; the second one resets them."""
    terminal = tmux()
    port = started(terminal, echo.name, "--grace", "60")
    with connect(("127.0.0.1", port)) as client:
        assert echoes(client)
        terminal.type("q")
        terminal.see(r"Stopping: waiting up to 60 s for 1 connection to end; Ctrl-C again stops at once")
        assert echoes(client)
        terminal.type("q")
        restored(terminal)
        with pytest.raises(ConnectionResetError):
            client.recv(1)


def test_a_start_that_fails(tmux: Callable[..., Tmux], echo: Echo) -> None:
    terminal = tmux()
    terminal.start(*COMMAND, "-l", str(echo.port), "127.0.0.1:1")
    assert "tcpproxy: cannot listen on" in restored(terminal, 1)


def test_a_worker_that_fails(tmux: Callable[..., Tmux], echo: Echo, stack: contextlib.ExitStack) -> None:
    """The reason is on the usual screen."""
    needs("strace")
    terminal = tmux()
    port = started(terminal, echo.name, "--workers", "1")
    worker = sorted(map(int, os.listdir(f"/proc/{terminal.pid}/task")))[2]  # after the main one, and the one that stops
    calls = "epoll_wait,epoll_pwait,epoll_pwait2,poll,ppoll"
    strace = subprocess.Popen(
        ["strace", "-qq", "-o", os.devnull, "-e", f"inject={calls}:error=EBADF", "-p", str(worker)],
        stderr=subprocess.DEVNULL,
    )
    stack.callback(strace.wait, TIMEOUT)
    stack.callback(strace.kill)
    status = Path(f"/proc/{worker}/status")
    eventually(lambda: not status.exists() or "TracerPid:\t0\n" not in status.read_text(), TIMEOUT)
    with contextlib.suppress(ConnectionError):
        connect(("127.0.0.1", port)).close()
    assert "tcpproxy: the relay has stopped: Bad file descriptor" in restored(terminal, 1)


BROKEN = """if True:
    from tcpproxy.command import top
    from tcpproxy.__main__ import main
    real, calls = top.frame, []
    def frame(*args):
        calls.append(1)
        return real(*args) if len(calls) < 3 else 1 / 0
    top.frame = frame
    main()"""


def test_a_mistake_in_the_view(tmux: Callable[..., Tmux], echo: Echo) -> None:
    """It ends the program, and its traceback can be read."""
    terminal = tmux()
    terminal.start(sys.executable, "-c", BROKEN, *COMMAND[3:], echo.name)
    assert "ZeroDivisionError" in restored(terminal, 1)


def test_trouble_is_repeated(tmux: Callable[..., Tmux], closed: Closed) -> None:
    """What was seen in the view only is on the usual screen once, after it."""
    terminal = tmux(120, 30)
    port = started(terminal, closed.name)
    with contextlib.suppress(ConnectionResetError), connect(("127.0.0.1", port)) as client:
        client.recv(1)
    terminal.see(r"Error establishing upstream connection", r"#1 .*connect-refused", r"1 failed")
    terminal.type("q")
    text = restored(terminal)
    assert text.count("Error establishing upstream connection") == 1
    assert "New connection from" not in text


def test_ctrl_z(tmux: Callable[..., Tmux], echo: Echo) -> None:
    """The shell has the terminal as it was. In the background the relay goes on, unseen; fg brings the view back."""
    terminal = tmux()
    port = started(terminal, echo.name)
    terminal.type("C-z")
    terminal.see(r"Stopped")
    assert terminal.state == "0 1"
    terminal.type("-l", "stty -a | grep -ow -e '-*echo' -e '-*icanon'\n")
    terminal.see(r"icanon\necho\n@")
    terminal.type("-l", "bg\n")
    terminal.see(r"\d &\n@")
    with connect(("127.0.0.1", port)) as client:
        assert echoes(client)
        terminal.type("-l", "echo still $((20+22))\n")
        terminal.see(r"still 42")
        assert terminal.state == "0 1"
        terminal.type("-l", "fg\n")
        terminal.see(r"1 open  1 accepted", "q stop")
        assert terminal.state == "1 0"
    terminal.type("q")
    terminal.see(SUMMARY.pattern)
    assert terminal.state == "0 1"


def test_a_terminal_that_takes_nothing(tmux: Callable[..., Tmux], echo: Echo) -> None:
    """Stopped by Ctrl-S it holds up neither the relay nor the end."""
    terminal = tmux()
    port = started(terminal, echo.name)
    terminal.type("C-s")
    with connect(("127.0.0.1", port)) as client:
        assert echoes(client)
    os.kill(terminal.pid, signal.SIGTERM)
    assert SUMMARY.search(restored(terminal))


@pytest.mark.timed
def test_cost(tmux: Callable[..., Tmux], upstream: Upstream, stack: contextlib.ExitStack) -> None:
    """With 2,000 connections, of which each picture looks at all, less than 3 % of a CPU."""
    allow_descriptors(5000)
    terminal = tmux(120, 40)
    port = started(terminal, upstream.name, "-q")
    for _ in range(MANY):
        stack.enter_context(connect(("127.0.0.1", port)))
        stack.enter_context(upstream.accept())
    terminal.see(r"2,000 open")
    at_best(lambda: cpu_while_asleep(terminal.pid, 3) / 3, 0.03)


def test_more_than_many(tmux: Callable[..., Tmux], upstream: Upstream, stack: contextlib.ExitStack) -> None:
    """It says that it is drawn less often."""
    allow_descriptors(5000)
    terminal = tmux(80, 24)
    port = started(terminal, upstream.name, "-q")
    for _ in range(MANY + 1):
        stack.enter_context(connect(("127.0.0.1", port)))
        stack.enter_context(upstream.accept())
    terminal.see(r"2,001 open  2,001 accepted", r"\nover 2,000 connections: drawn every 5 s\n", r"of 2,001")
    terminal.type("q", "q")
    restored(terminal)


# --- where there is no view ---


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            (),
            "--top needs a terminal to draw on, and stdout is none; --log-format json is for programs, and the signal "
            "SIGUSR1 shows the live connections once",
        ),
        (("--log-format", "text"), "--top needs a terminal"),
    ],
)
def test_no_terminal(command: Callable[..., Command], options: tuple[str, ...], text: str) -> None:
    process = command("--top", *options, "127.0.0.1:1")
    assert process.wait() == 2
    assert process.stdout == []
    assert len(process.stderr) == 1
    assert process.stderr[0].startswith(f"tcpproxy: {text}")


@pytest.mark.parametrize("other", ["--log-format json", "-x", "-A"])
def test_either_or(command: Callable[..., Command], other: str) -> None:
    """What else would write to the screen."""
    process = command("--top", *other.split(), "127.0.0.1:1")
    assert process.wait() == 2
    (line,) = process.stdout + process.stderr
    assert f"--top and {other} are both given, expected one of them" in line


@pytest.fixture
def pseudo_terminal() -> Iterator[int]:
    leader, end = os.openpty()
    yield end
    os.close(end)
    os.close(leader)


def test_dumb_terminal(command: Callable[..., Command], pseudo_terminal: int) -> None:
    process = command("--top", "127.0.0.1:1", stdout=pseudo_terminal, env={**os.environ, "TERM": "dumb"})
    assert process.wait() == 2
    assert process.stderr[0].startswith("tcpproxy: --top needs a terminal to draw on, and TERM says 'dumb'; ")


def test_without_rich(command: Callable[..., Command], pseudo_terminal: int, tmp_path: Path) -> None:
    """One sentence that says how to get it."""
    (tmp_path / "rich").mkdir()
    (tmp_path / "rich" / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'rich'\", name='rich')")
    environment = {**os.environ, "TERM": "xterm", "PYTHONPATH": str(tmp_path)}
    process = command("--top", "127.0.0.1:1", stdout=pseudo_terminal, env=environment)
    assert process.wait() == 2
    assert process.stderr == ["tcpproxy: --top needs rich, which is not installed: pip install 'tcpproxy[top]'"]


def test_not_loaded_without_being_asked_for() -> None:
    code = "import sys, tcpproxy.command.cli; print([name for name in sys.modules if name.startswith('rich')])"
    assert subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True).stdout == "[]\n"


def test_no_keyboard(tmux: Callable[..., Tmux], echo: Echo) -> None:
    """Stdin is no terminal: there are no keys, and the foot says what stops it."""
    terminal = tmux()
    port = free_port()
    words = shlex.join([*COMMAND, "-l", str(port), echo.name])
    terminal.start("sh", "-c", f"exec {words} </dev/null")
    terminal.see(r"tcpproxy  127.0.0.1", r"Ctrl-C stops")
    with socket.create_connection(("127.0.0.1", port)) as client:
        assert echoes(client)
    terminal.type("C-c")
    restored(terminal)
