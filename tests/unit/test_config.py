"""What the command line and a program may say, and the one sentence for everything else."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import pytest

import tcpproxy
from tcpproxy import UsageError
from tcpproxy._core import worker
from tcpproxy.config.config import Config
from tcpproxy.config.endpoints import Endpoint, parse_bind, parse_endpoint
from tcpproxy.config.groups import Clients, Listening, Memory, Operating, Output, Seeing, Speed, Timeouts, every_row
from tcpproxy.config.options import Option
from tcpproxy.network.limits import connection_limit
from tcpproxy.values import parse_busy_poll, parse_duration, parse_number, parse_size

# --- remote ---


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost:80", "localhost", 80),
        ("example.org:1", "example.org", 1),
        ("example.org.:443", "example.org.", 443),
        ("_service._tcp.example.org:443", "_service._tcp.example.org", 443),
        ("xn--bcher-kva.example:65535", "xn--bcher-kva.example", 65535),
        ("b\u00fccher.example:80", "b\u00fccher.example", 80),
        ("127.0.0.1:080", "127.0.0.1", 80),
        ("127.1:80", "127.1", 80),
        ("[::1]:80", "::1", 80),
        ("[2001:db8::1]:80", "2001:db8::1", 80),
        ("[::ffff:192.0.2.1]:80", "::ffff:192.0.2.1", 80),
        ("[fe80::1%eth0]:80", "fe80::1%eth0", 80),
        ("[fe80::1%3]:80", "fe80::1%3", 80),
        ("a" * 63 + ":80", "a" * 63, 80),
    ],
)
def test_remote(text: str, host: str, port: int) -> None:
    """Row 94."""
    assert parse_endpoint(text) == Endpoint(host, port)


@pytest.mark.parametrize("text", ["[::1]:80", "localhost:80", "127.0.0.1:1", "[fe80::1%eth0]:65535"])
def test_remote_as_it_was_written(text: str) -> None:
    """Row 94."""
    assert str(parse_endpoint(text)) == text


BAD_REMOTES = {
    "": "is empty",
    "localhost": "has no port",
    "127.0.0.1": "has no port",
    "localhost:": "has an empty port",
    "[::1]:": "has an empty port",
    ":": "has an empty host",
    "localhost:http": "is not a whole number from 1 to 65535",
    "localhost:80x": "is not a whole number from 1 to 65535",
    "localhost:0": "is not a whole number from 1 to 65535",
    "localhost:65536": "is not a whole number from 1 to 65535",
    "localhost:-1": "is not a whole number from 1 to 65535",
    "localhost:+80": "is not a whole number from 1 to 65535",
    "localhost:8_0": "is not a whole number from 1 to 65535",
    "localhost:80.0": "is not a whole number from 1 to 65535",
    "localhost:0x50": "is not a whole number from 1 to 65535",
    "localhost:\u0668\u0660": "is not a whole number from 1 to 65535",
    "localhost:99999999999999999999": "is not a whole number from 1 to 65535",
    "::1": "is an IPv6 address without brackets",
    "::1:80": "is an IPv6 address without brackets",
    "2001:db8::1:80": "is an IPv6 address without brackets",
    "fe80::1%eth0:80": "is an IPv6 address without brackets",
    "localhost:80:x": "has more than one ':'",
    "user@localhost:80": "cannot be a host name",
    "localhost/path:80": "cannot be a host name",
    "[::1": "has a '[' without a ']'",
    "[::1]": "has no port behind the ']'",
    "[::1]80": "has no port behind the ']'",
    "[::1]x:80": "has no port behind the ']'",
    "[]:80": "in brackets, which are for IPv6 addresses",
    "[localhost]:80": "in brackets, which are for IPv6 addresses",
    "[127.0.0.1]:80": "in brackets, which are for IPv6 addresses",
    "[::g]:80": "which is not an IPv6 address",
    "[1:2:3]:80": "which is not an IPv6 address",
    "[:::1]:80": "which is not an IPv6 address",
    "[fe80::1%]:80": "which is not an IPv6 address",
    "[fe80::1%a b]:80": "which is not an IPv6 address",
    "[%eth0:]:80": "which is not an IPv6 address",
    "::1]:80": "has more than one ':'",
    "local host:80": "cannot be a host name",
    " localhost:80": "cannot be a host name",
    "local\nhost:80": "cannot be a host name",
    "local\x1bhost:80": "cannot be a host name",
    "a..b:80": "cannot be a host name",
    ".a:80": "cannot be a host name",
    ".:80": "cannot be a host name",
    "a" * 64 + ":80": "cannot be a host name",
    ".".join(["a" * 49] * 6) + ":80": "cannot be a host name",
    "1.2.3.999:80": "which is not an IPv4 address",
    "256.0.0.1:80": "which is not an IPv4 address",
    "010.0.0.1:80": "which is not an IPv4 address",
    "1.2.3.4.5:80": "which is not an IPv4 address",
    "1.2.3.4.:80": "which is not an IPv4 address",
    # what IDNA makes of it is longer than a label may be
    "\u00fc" * 60 + ":80": "cannot be a host name",
    # a byte that is no UTF-8, as the command line hands it over
    "local\udcffhost:80": "cannot be a host name",
}


def one_sentence(error: UsageError, value: str) -> str:
    text = str(error)
    assert repr(value) in text, "the sentence does not name the value"
    assert text.isprintable(), "control characters reach the terminal"
    return text


@pytest.mark.parametrize("text", BAD_REMOTES)
def test_bad_remote(text: str) -> None:
    """Row 95."""
    with pytest.raises(UsageError) as caught:
        parse_endpoint(text)
    sentence = str(caught.value)
    assert BAD_REMOTES[text] in sentence
    assert sentence.isprintable(), "control characters reach the terminal"
    if "whole number" in sentence:
        assert repr(text) in sentence
        assert repr(text.rpartition(":")[2]) in sentence
    else:
        v6 = text.startswith("[") or "IPv6" in BAD_REMOTES[text]
        expected = "[IPv6]:PORT" if v6 else "HOST:PORT"
        if not text or "which are for IPv6" in sentence:
            expected = "HOST:PORT, [IPv6]:PORT or /PATH"
        assert one_sentence(caught.value, text).endswith(f"expected {expected}")


# --- bind ---


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("localhost", "localhost"),
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "0.0.0.0"),
        ("::", "::"),
        ("[::]", "::"),
        ("::1", "::1"),
        ("[fe80::1%eth0]", "fe80::1%eth0"),
        ("fe80::1%eth0", "fe80::1%eth0"),
    ],
)
def test_bind(text: str, host: str) -> None:
    """Rows 93, 94."""
    assert parse_bind("bind", text) == host


BAD_BINDS = {
    "": "is empty",
    "localhost:http": "has a port, which is an option of its own",
    "[::1": "is not an IPv6 address in brackets",
    "::1]": "is not an IPv6 address in brackets",
    "[127.0.0.1]": "is not an IPv6 address in brackets",
    "[localhost]": "is not an IPv6 address in brackets",
    "[]": "is not an IPv6 address in brackets",
    "[": "is not an IPv6 address in brackets",
    "fe80::1%": "is not an IPv6 address",
    "1:2:3": "is not an IPv6 address",
    "local host": "cannot be a host name",
    "a..b": "cannot be a host name",
    "a" * 64: "cannot be a host name",
    "a/b": "cannot be a host name",
    "a\x1bb": "cannot be a host name",
    "1.2.3.999": "is not an IPv4 address",
}


@pytest.mark.parametrize("text", BAD_BINDS)
def test_bad_bind(text: str) -> None:
    """Row 95."""
    with pytest.raises(UsageError) as caught:
        parse_bind("bind", text)
    assert BAD_BINDS[text] in one_sentence(caught.value, text)
    assert str(caught.value).endswith("expected a name, an IP address or /PATH")


# --- numbers, durations, sizes ---


@pytest.mark.parametrize("value", [10**5000, -(10**5000), "9" * 5000], ids=["huge", "hugely negative", "long"])
def test_number_that_python_does_not_write_out(value: int | str) -> None:
    """Row 95: beyond 4,300 digits Python itself raises, also when a message repeats the number."""
    for parse in (
        lambda: parse_number("workers", value, 1, 100),
        lambda: parse_size("buffer-size", value, 1024, 16 << 20),
        lambda: parse_duration("grace", value),
        lambda: parse_busy_poll("busy-poll", value),
        lambda: Config.make("localhost:80", port=value),
    ):
        with pytest.raises(UsageError) as caught:
            parse()
        assert len(str(caught.value)) < 250
    with pytest.raises(UsageError):
        parse_endpoint(f"localhost:{'9' * 5000}")


@pytest.mark.parametrize(("value", "number"), [(1, 1), ("1", 1), ("007", 7), (100, 100), ("100", 100)])
def test_number(value: int | str, number: int) -> None:
    """Row 95."""
    assert parse_number("workers", value, 1, 100) == number


@pytest.mark.parametrize("value", ["", "-1", "+1", "1.0", "1e1", "x", "0", "101", 0, 101, -1, 1.0, None, True, b"1"])
def test_bad_number(value: object) -> None:
    """Row 95."""
    with pytest.raises(UsageError, match=r"^workers .* is not a whole number from 1 to 100$"):
        parse_number("workers", value, 1, 100)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("0s", 0),
        ("1", 1),
        ("1s", 1),
        ("250ms", 0.25),
        ("1.5s", 1.5),
        (".5", 0.5),
        ("5.", 5),
        ("5m", 300),
        ("2h", 7200),
        ("10 s", 10),
        (" 10s ", 10),
        (10, 10),
        (0.25, 0.25),
        (0, 0),
        ("8760h", 31536000),
        ("1d", 86400),
        ("365d", 31536000),
    ],
)
def test_duration(value: float | str, seconds: float) -> None:
    """Row 95."""
    assert parse_duration("grace", value) == pytest.approx(seconds)


@pytest.mark.parametrize("value", ["off", None, 0, "0", 0.0, "0ms"])
def test_duration_that_is_off(value: float | str | None) -> None:
    """Row 95."""
    assert parse_duration("idle-timeout", value, least=1, off=True) == 0


@pytest.mark.parametrize(
    "value",
    [
        *("", " ", "s", "ms", "ten", "10x", "10sec", "10S", "1m30s", "10s10", "-1", "-1s", "+1", "1e3", "1,5", "0x10"),
        *(".", "nan", "inf", "infinity", "off", "\u0661s", None, True, [], b"1"),
    ],
)
def test_no_duration(value: object) -> None:
    """Row 95."""
    with pytest.raises(UsageError) as caught:
        parse_duration("grace", value)  # type: ignore[arg-type]
    assert str(caught.value) == (
        f"grace {value!r} is not a duration, expected seconds or a number with ms, s, m, h or d, like 250ms or 10s"
    )


@pytest.mark.parametrize(
    "value",
    [
        *(-1, -0.001, float("nan"), float("inf"), "8761h", "366d", 1e300),
        pytest.param("9" * 400 + "h", id="400 digits"),
        pytest.param(10**400, id="10**400"),
    ],
)
def test_duration_out_of_range(value: float | str) -> None:
    """Row 95."""
    with pytest.raises(UsageError) as caught:
        parse_duration("grace", value)
    assert str(caught.value).startswith(f"grace {value!r} is out of range, expected 0s to ")


def test_range_in_words_for_people() -> None:
    """Row 95: no exponent in the sentence."""
    with pytest.raises(UsageError, match="is out of range, expected ") as caught:
        parse_duration("grace", "8761h")
    assert "e+" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (4096, 4096),
        ("4096", 4096),
        ("4096B", 4096),
        ("64KiB", 65536),
        ("64K", 65536),
        ("64kB", 64000),
        ("64KB", 64000),
        ("64k", 65536),
        ("64 k", 65536),
        ("1m", 1 << 20),
        ("1MiB", 1 << 20),
        ("1M", 1 << 20),
        ("1MB", 10**6),
        ("64 KiB", 65536),
        (" 64KiB ", 65536),
        ("1KiB", 1024),
        ("16MiB", 16 << 20),
    ],
)
def test_size(value: int | str, size: int) -> None:
    """Row 95."""
    assert parse_size("buffer-size", value, 1024, 16 << 20) == size


@pytest.mark.parametrize(("value", "size"), [("1g", 1 << 30), ("1G", 1 << 30), ("1GiB", 1 << 30), ("1GB", 10**9)])
def test_size_in_gigabytes(value: str, size: int) -> None:
    """Row 95."""
    assert parse_size("socket-buffer", value, 4096, 1 << 30) == size


@pytest.mark.parametrize(
    "value",
    [
        *(
            "",
            "KiB",
            "64kib",
            "64k b",
            "64gib",
            "64gB",
            "64T",
            "1.5K",
            "-1",
            "-64KiB",
            "+64K",
            "64K64",
            "x",
            "0x1000",
            "\u0664K",
        ),
        *("9" * 13, None, True, 1.5, b"1"),
    ],
)
def test_no_size(value: object) -> None:
    """Row 95: BLKSIZE_INT_OVERFL among them."""
    with pytest.raises(UsageError, match=r"^buffer-size .* is not a size, expected bytes or a number with KiB or MiB"):
        parse_size("buffer-size", value, 1024, 16 << 20)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, 1023, "0", "1023B", "16385KiB", "17M", "64GiB", "999999999999M", (16 << 20) + 1])
def test_size_out_of_range(value: int | str) -> None:
    """Row 95."""
    with pytest.raises(UsageError, match=r"^buffer-size .* is out of range, expected 1024 to 16777216 bytes$"):
        parse_size("buffer-size", value, 1024, 16 << 20)


def test_defaults() -> None:
    """Row 95: what the documentation says."""
    config = Config.make("localhost:80")
    assert config.listening == Listening(bind="127.0.0.1", port=0, forwards=(), unix_mode=0o600)
    assert config.clients == Clients(max_connections=None, max_connections_per_source=0, allow=None, deny=None)
    assert config.timeouts == Timeouts(connect_timeout=10, half_close_timeout=60, idle_timeout=0, keepalive=60, grace=0)
    assert config.memory == Memory(buffer_size=65536, socket_buffer=0)
    assert config.operating == Operating(workers=1, sandbox="auto", metrics=None)
    assert config.speed == Speed(zero_copy="auto", busy_poll=-1)


def accepts(row: Option, value: object) -> bool:
    try:
        row.parse(row.name, value)
    except UsageError:
        return False
    return True


def test_off_and_zero() -> None:
    """Where `off` is accepted 0 is the same; elsewhere 0 has a meaning of its own, or is an error: docs/options.md."""
    rows = [row for row in every_row() if row.unit or row.metavar in ("N", "PORT", "auto|N")]
    off = [row for row in rows if accepts(row, "off")]
    names = ["idle_timeout", "keepalive", "socket_buffer", "dump_limit", "capture_rotate", "busy_poll"]
    assert [row.name for row in off] == names
    for row in off:
        assert [row.parse(row.name, value) for value in ("off", "0", 0)] == [0, 0, 0]
        assert accepts(row, None) == (row.name != "busy_poll")
    zero = {row.name for row in rows if accepts(row, 0) and row not in off}
    assert zero == {row.name for row in rows if accepts(row, "0") and row not in off}
    assert zero == {"port", "half_close_timeout", "grace", "seed"}


def test_a_warning_names_the_option_as_it_was_given() -> None:
    """With dashes in the command, by its argument in a program."""
    resource = pytest.importorskip("resource")
    most = worker.LIMITS["connections"]
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if soft == resource.RLIM_INFINITY or soft > 2 * most:
        pytest.skip("the limit of open files allows any number of connections")
    for config, name in (
        (Config.make("localhost:80", max_connections=most), "max_connections"),
        (Config.for_command("localhost:80", {"max_connections": str(most)}), "--max-connections"),
    ):
        limit, warning = connection_limit(config)
        assert limit == most
        assert warning.startswith(f"{name} {most} is more than the limit of ")


def test_defaults_of_the_command() -> None:
    """Row 95: the same but for two."""
    program, command = Config.make("localhost:80"), Config.for_command("localhost:80", {})
    assert command.timeouts == dataclasses.replace(program.timeouts, grace=5)
    assert command.operating == dataclasses.replace(program.operating, workers=min(64, usable_cpus()))
    assert command.output == Output(debug=False, quiet=False, log_format="text")
    shown = {"top": False, "hex": False, "text": False, "dump_limit": 4096, "color": "auto"}
    assert command.seeing == Seeing(**shown, capture=None, capture_rotate=0, capture_files=0)
    for name in "listening", "clients", "memory", "speed":
        assert getattr(command, name) == getattr(program, name)


def test_what_to_see() -> None:
    """In hex or as text, as much as there is of it or less."""
    given = {"hex": True, "dump_limit": "off", "color": "never"}
    seeing = Config.for_command("localhost:80", given).seeing
    assert (seeing.hex, seeing.text, seeing.dump_limit, seeing.color) == (True, False, 0, "never")
    with pytest.raises(UsageError, match=r"^-x and -A are both given, expected one of them$"):
        Config.for_command("localhost:80", {"hex": True, "text": True})
    with pytest.raises(UsageError, match=r"^--dump-limit '2MiB' is out of range, expected 1 to 1048576 bytes or off$"):
        Config.for_command("localhost:80", {"dump_limit": "2MiB"})
    with pytest.raises(UsageError, match=r"^--dump-limit 'all' is not a size, expected .*, like 64KiB, or off$"):
        Config.for_command("localhost:80", {"dump_limit": "all"})


@pytest.mark.parametrize("limit", ["off", "100", "64KiB"])
def test_a_limit_of_what_is_not_printed(limit: str) -> None:
    with pytest.raises(UsageError, match=r"^--dump-limit needs -x or -A$"):
        Config.for_command("localhost:80", {"dump_limit": limit})


def usable_cpus() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def test_workers_auto() -> None:
    """The default of the command by its name, in a program too."""
    assert Config.make("localhost:80", workers="auto").operating.workers == min(64, usable_cpus())


def test_none_is_off() -> None:
    """In a program, of an option that may be off or without a limit."""
    config = Config.make("localhost:80", idle_timeout=None, keepalive=None, socket_buffer=None, max_connections=None)
    assert config == Config.make("localhost:80", idle_timeout="off", keepalive="off")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("idle_timout", ", did you mean 'idle_timeout'?"),
        ("local_port", ", which is 'port' in a program"),
        ("debug", ", which is an option of the command only"),
        ("log_format", ", which is an option of the command only"),
        ("fault", ", which is 'faults' in a program"),
        ("preset", ", which is faults=tcpproxy.faults.preset(NAME) in a program"),
        ("records", ", did you mean 'record'?"),
        ("nonsense", ""),
    ],
)
def test_unknown_argument(name: str, hint: str) -> None:
    """As Python says it, and what was meant."""
    with pytest.raises(TypeError) as caught:
        tcpproxy.Proxy("localhost:80", **{name: 1})  # type: ignore[arg-type]
    assert str(caught.value) == f"Proxy() got an unexpected keyword argument {name!r}{hint}"


def test_the_argument_is_named_as_it_is_written() -> None:
    """An underscore in a program, a dash on the command line."""
    with pytest.raises(UsageError, match=r"^idle_timeout '5 sec' is not a duration"):
        tcpproxy.Proxy("localhost:80", idle_timeout="5 sec")
    with pytest.raises(UsageError, match=r"^--idle-timeout '5 sec' is not a duration"):
        Config.for_command("localhost:80", {"idle_timeout": "5 sec"})
    with pytest.raises(UsageError, match=r"^port 'http' is not a whole number"):
        tcpproxy.Proxy("localhost:80", port="http")


def test_keepalive_in_whole_seconds() -> None:
    """Row 24: the system knows no others; never less than was asked for."""
    assert Config.make("localhost:80", keepalive="1500ms").timeouts.keepalive == 2
    assert Config.make("localhost:80", keepalive="off").timeouts.keepalive == 0
    assert Config.make("localhost:80", keepalive=None).timeouts.keepalive == 0


# --- through the command ---

GUARDED = """
import os, sys

def guard(event, arguments):
    if event in ("socket.bind", "socket.connect", "socket.getaddrinfo"):
        os._exit(99)

sys.addaudithook(guard)
from tcpproxy.command.cli import main
main()
"""
"""The command, which ends with 99 when it is about to listen, connect, or look up a name."""


def run(*args: str) -> subprocess.CompletedProcess[str]:
    # Away from the source tree, so that the installed package runs.
    argv = [sys.executable, "-X", "utf8", "-c", GUARDED, *args]
    return subprocess.run(argv, capture_output=True, encoding="utf-8", cwd="/", timeout=30)


def test_guard() -> None:
    """The control of the next tests: a command line without a mistake gets as far as listening."""
    assert run("127.0.0.1:9").returncode == 99
    assert run("localhost:9").returncode == 99


GOOD = "127.0.0.1:9"


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ([""], "remote '' is empty, expected HOST:PORT, [IPv6]:PORT or /PATH"),
        (["localhost"], "remote 'localhost' has no port, expected HOST:PORT"),
        (["localhost:http"], "port of remote 'localhost:http': 'http' is not a whole number from 1 to 65535"),
        (["local\x1b[31mhost:80"], "remote 'local\\x1b[31mhost:80' has 'local\\x1b[31mhost', which cannot be a host"),
        (["\u00fc" * 60 + ":80"], f"remote '{chr(0xFC) * 60}:80' has "),
        (["a" * 300 + ":80"], f"remote '{'a' * 300}:80' has "),
        (["-b", "", GOOD], "--bind '' is empty, "),
        (["-b", "127.0.0.1:80", GOOD], "--bind '127.0.0.1:80' has "),
        (["-l", "", GOOD], "--local-port '' is not a whole number from 0 to 65535"),
        (["-l", "http", GOOD], "--local-port 'http' is not a whole number from 0 to 65535"),
        (["-l", "65536", GOOD], "--local-port '65536' is not a whole number from 0 to 65535"),
        (["-l", "-1", GOOD], "--local-port '-1' is not a whole number from 0 to 65535"),
        (["--workers", "", GOOD], "--workers '' is not a whole number from 1 to 64 or auto"),
        (["--workers", "0", GOOD], "--workers '0' is not a whole number from 1 to 64"),
        (["--workers", "65", GOOD], "--workers '65' is not a whole number from 1 to 64"),
        (["--workers", "two", GOOD], "--workers 'two' is not a whole number from 1 to 64"),
        (["--max-connections", "0", GOOD], "--max-connections '0' is not a whole number from 1 to 1000000"),
        (
            ["--max-connections", "10k", GOOD],
            "--max-connections '10k' is not a whole number from 1 to 1000000; in digits: 10000\n",
        ),
        (["--max-connections", "2M", GOOD], "--max-connections '2M' is not a whole number from 1 to 1000000\n"),
        (["--max-connections", "", GOOD], "--max-connections '' is not a whole number from 1 to 1000000"),
        (["--connect-timeout", "soon", GOOD], "--connect-timeout 'soon' is not a duration, expected "),
        (["--connect-timeout", "", GOOD], "--connect-timeout '' is not a duration, expected "),
        (["--connect-timeout", "0", GOOD], "--connect-timeout '0' is out of range, expected 0.001s to "),
        (["--connect-timeout", "off", GOOD], "--connect-timeout 'off' is not a duration, expected "),
        (["--connect-timeout", "-1s", GOOD], "--connect-timeout '-1s' is not a duration, expected "),
        (["--half-close-timeout", "1w", GOOD], "--half-close-timeout '1w' is not a duration, expected "),
        (["--idle-timeout", "never", GOOD], "--idle-timeout 'never' is not a duration, expected "),
        (["--keepalive", "500ms", GOOD], "--keepalive '500ms' is out of range, expected 1s to 32767s or off"),
        (["--keepalive", "10h", GOOD], "--keepalive '10h' is out of range, expected 1s to 32767s or off"),
        (["--grace", "10 apples", GOOD], "--grace '10 apples' is not a duration, expected "),
        (["--buffer-size", "64GiB", GOOD], "--buffer-size '64GiB' is out of range, expected "),
        (["--buffer-size", "99999999999999999999", GOOD], "--buffer-size '99999999999999999999' is not a size, "),
        (
            ["--socket-buffer", "no", GOOD],
            "--socket-buffer 'no' is not a size, expected bytes or a number with KiB or MiB, ",
        ),
        (
            ["--socket-buffer", "1KiB", GOOD],
            "--socket-buffer '1KiB' is out of range, expected 4096 to 1073741824 bytes or ",
        ),
        (["1.2.3.999:80"], "remote '1.2.3.999:80' has '1.2.3.999', which is not an IPv4 address, expected "),
        (["--workers", "9" * 5000, GOOD], "--workers '" + "9" * 79 + "... (5002 characters) is not a whole number "),
        (["--log-format", "xml", GOOD], "--log-format 'xml' is unknown, expected text or json"),
        (["--sandbox", "on", GOOD], "--sandbox 'on' is unknown, expected auto, off or require"),
        (["--zero-copy", "on", GOOD], "--zero-copy 'on' is unknown, expected auto or off"),
        (
            ["--busy-poll", "1001", GOOD],
            "--busy-poll '1001' is unknown, expected auto, off or microseconds from 1 to 1000",
        ),
        (["--busy-poll", "on", GOOD], "--busy-poll 'on' is unknown, expected auto, off or microseconds from 1 to 1000"),
        (["--buffer-size", "1", GOOD], "--buffer-size '1' is out of range, expected 1024 to 16777216 bytes"),
    ],
)
def test_one_sentence_and_exit_2(args: list[str], sentence: str) -> None:
    """Row 95: before anything listens, and before any name is looked up."""
    done = run(*args)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith(f"tcpproxy: {sentence}")
    assert done.stderr.count("\n") == 1
    assert done.stderr.removesuffix("\n").isprintable()


TRY = "Try 'tcpproxy --help'."
UNKNOWN = {
    "--nonsense": "",
    "--idle-timout": "--idle-timeout",
    "--idle-timout=3": "--idle-timeout",
    "--worker": "--workers",
    "--keep-alive": "--keepalive",
    "--quite": "--quiet",
    **dict.fromkeys(("--port", "--listen", "-p"), "-l 3"),
    "--timeout": "--proxy-header-timeout or --connect-timeout or --half-close-timeout or --idle-timeout",
    "--max": "--max-connections or --max-connections-per-source or --max-rate or --max-rate-per-connection",
    "--rate": "--max-rate",
    "--ver": "--version",
    **dict.fromkeys(("-v", "--verbose"), "-d"),
    **dict.fromkeys(("-X", "--hexdump"), "-x"),
    **dict.fromkeys(("--dump", "--print"), "-x or -A"),
    **dict.fromkeys(("-w", "--write", "--pcap", "--record"), "--capture"),
    **dict.fromkeys(("-j", "--json"), "--log-format json"),
    "--dump-limt": "--dump-limit",
    "--send-proxy-v1": "--send-proxy v1",
    "--send-proxy-v2": "--send-proxy v2",
    "--proxy-protocol": "--send-proxy v1|v2 or --accept-proxy NETWORK",
    "--accept-proxy-protocol": "--accept-proxy NETWORK",
    "--maxconn": "--max-connections",
    "--bind-address": "-l 3",
    **dict.fromkeys(("--trace", "--once", "--range"), ""),
    **dict.fromkeys(("-y", "--x"), ""),
}


@pytest.mark.parametrize("typed", UNKNOWN)
def test_unknown_option(typed: str) -> None:
    """Row 95: one is suggested only if it is close."""
    hint = f", did you mean {UNKNOWN[typed]}?" if UNKNOWN[typed] else ""
    done = run(typed, "3", GOOD)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"tcpproxy: option {typed.split('=')[0]!r} is unknown{hint}\n{TRY}\n"


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ([], "REMOTE is missing, expected HOST:PORT, [IPv6]:PORT or /PATH"),
        (
            ["-l", "8080:db:5432"],
            "REMOTE is missing, expected HOST:PORT, [IPv6]:PORT or /PATH; "
            "to listen on port 8080 and forward to db:5432: tcpproxy -l 8080 db:5432",
        ),
        (
            ["8080", "db:5432"],
            "argument 'db:5432' is one too many, expected one REMOTE; "
            "to listen on port 8080 and forward to db:5432: tcpproxy -l 8080 db:5432",
        ),
        (
            ["db", "5432"],
            "argument '5432' is one too many, expected one REMOTE; to forward to db:5432: tcpproxy db:5432",
        ),
        (["-d"], "REMOTE is missing, expected HOST:PORT, [IPv6]:PORT or /PATH"),
        (["-l", "8080"], "REMOTE is missing, expected HOST:PORT, [IPv6]:PORT or /PATH"),
        (
            ["-x", "--capture", "db:5432"],
            "REMOTE is missing, expected HOST:PORT, [IPv6]:PORT or /PATH; 'db:5432' is the value of --capture",
        ),
        (
            ["TCP-LISTEN:8080,fork,bind=0.0.0.0", "TCP:db:5432"],
            "argument 'TCP:db:5432' is one too many, expected one REMOTE; "
            "to listen on 0.0.0.0 port 8080 and forward to db:5432: tcpproxy -b 0.0.0.0 -l 8080 db:5432",
        ),
        (
            ["unix-listen:x.sock,fork", "tcp4-connect:[::1]:5432,nodelay"],
            "argument 'tcp4-connect:[::1]:5432,nodelay' is one too many, expected one REMOTE; "
            "to listen on ./x.sock and forward to [::1]:5432: tcpproxy -b ./x.sock '[::1]:5432'",
        ),
        (
            ["TCP-L:8080", "UNIX-CONNECT:/run/x"],
            "argument 'UNIX-CONNECT:/run/x' is one too many, expected one REMOTE; "
            "to listen on port 8080 and forward to /run/x: tcpproxy -l 8080 /run/x",
        ),
        (["TCP-LISTEN:8080", "EXEC:cat"], "argument 'EXEC:cat' is one too many, expected one REMOTE"),
        (
            ["--allow", "10.0.0.0/8", "2001:db8::/32", GOOD],
            f"argument {GOOD!r} is one too many, expected one REMOTE; "
            "networks have commas between them: --allow 10.0.0.0/8,2001:db8::/32",
        ),
        (
            ["db1:5432", "db2:5432"],
            "argument 'db2:5432' is one too many, expected one REMOTE; "
            "to use db2:5432 while db1:5432 cannot be reached: tcpproxy db1:5432,db2:5432",
        ),
        (
            ["127.0.0.1:8080", "db:5432"],
            "argument 'db:5432' is one too many, expected one REMOTE; "
            "to listen on 127.0.0.1 port 8080 and forward to db:5432: tcpproxy -b 127.0.0.1 -l 8080 db:5432",
        ),
        (
            ["port-forward", "pod/web", "8080:80"],
            "argument 'pod/web' is one too many, expected one REMOTE; "
            "'pod/web' is a name of kubectl's: `kubectl port-forward` reaches it, and tcpproxy reaches HOST:PORT",
        ),
        (["-NL", "8080:db:5432"], "option '-N' is unknown: ssh needs it to run no command, this runs none"),
        (["--proxy-protocol", "v2", GOOD], "option '--proxy-protocol' is unknown, did you mean --send-proxy v2?"),
        (["--bind-address", "0.0.0.0", GOOD], "option '--bind-address' is unknown, did you mean -b 0.0.0.0?"),
        (["--listen", "/run/x", GOOD], "option '--listen' is unknown, did you mean -b /run/x?"),
        (
            ["-c", "x.conf"],
            "option '-c' is unknown: there is no configuration file, all options are on the command line",
        ),
        (
            ["--config", "x.conf"],
            "option '--config' is unknown: there is no configuration file, all options are on the command line",
        ),
        (
            ["--daemon", GOOD],
            "option '--daemon' is unknown: in the background it goes on with systemd-run --user tcpproxy ..., "
            "or with tcpproxy ... &",
        ),
        (
            ["--accept-proxy", "db:5432"],
            "REMOTE is missing, expected HOST:PORT, [IPv6]:PORT or /PATH; 'db:5432' is the value of --accept-proxy",
        ),
        (
            ["db1:1,", "db2:1"],
            "argument 'db2:1' is one too many, expected one REMOTE; "
            "several targets have commas alone between them: tcpproxy db1:1,db2:1",
        ),
        (
            ["10.0.0.1:1", ",", "[::1]:1"],
            "argument ',' is one too many, expected one REMOTE; "
            "several targets have commas alone between them: tcpproxy '10.0.0.1:1,[::1]:1'",
        ),
        (["-R", "8080:db:5432"], "option '-R' is unknown: there is no SSH server that could listen, expected -L"),
        ([GOOD, "too-much"], "argument 'too-much' is one too many, expected one REMOTE"),
        ([GOOD, "too\x1b[31m-much"], "argument 'too\\x1b[31m-much' is one too many, expected one REMOTE"),
        (["--non\nsense", GOOD], "option '--non\\nsense' is unknown"),
        ([GOOD, "-l"], "option --local-port has no value, expected PORT"),
        ([GOOD, "--idle-timeout"], "option --idle-timeout has no value, expected TIME"),
        (["--debug=1", GOOD], "option --debug takes no value"),
        (["--help=1", GOOD], "option --help takes no value"),
        (["-l", "1", "--local-port=2", GOOD], "option --local-port is given 2 times, expected once"),
        (["--grace", "1"] * 3 + [GOOD], "option --grace is given 3 times, expected once"),
    ],
)
def test_usage_and_exit_2(args: list[str], sentence: str) -> None:
    """Row 95: what the parser of options finds, in the same style."""
    done = run(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"tcpproxy: {sentence}\n{TRY}\n"


def test_a_flag_may_be_repeated() -> None:
    """No value gets lost."""
    assert run("-d", "-d", "--debug", GOOD).returncode == 99


def test_help_and_version() -> None:
    """Neither needs a remote, nor listens."""
    for flag in "-h", "--help":
        done = run(flag)
        assert done.returncode == 0
        assert done.stderr == ""
        assert done.stdout.startswith("Usage: tcpproxy [OPTIONS] REMOTE\n")
    for flag in "-V", "--version":
        done = run(flag)
        assert done.returncode == 0
        assert done.stderr == ""
        assert done.stdout == f"tcpproxy {tcpproxy.__version__} ({', '.join([worker.POLLER, *worker.FEATURES])})\n"


@pytest.mark.parametrize(
    ("args", "code", "text"),
    [
        (["18080"], 2, "remote '18080' has no host, expected HOST:PORT; "),
        (["--grace", "soon", GOOD], 2, "--grace 'soon' is not a duration, "),
        (["--shout", GOOD], 2, "option '--shout' is unknown"),
        ([], 2, "REMOTE is missing, "),
        ([GOOD, GOOD, GOOD], 2, "argument "),
    ],
)
def test_errors_as_json(args: list[str], code: int, text: str) -> None:
    """The one that ends the command is an object, too, in the one stream of records."""
    done = run("--log-format", "json", *args)
    assert (done.returncode, done.stderr) == (code, "")
    (line,) = done.stdout.splitlines()
    fields = json.loads(line)
    assert fields.pop("time").endswith("Z")
    assert fields.pop("text").startswith(text)
    assert fields == {"level": "error", "kind": "fatal", "exit_code": code}
