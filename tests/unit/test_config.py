"""What the command line and a program may say, and the one sentence for everything else."""

from __future__ import annotations

import subprocess
import sys

import pytest

import tcpproxy
from tcpproxy import UsageError
from tcpproxy._core import worker
from tcpproxy.config.config import Config
from tcpproxy.config.endpoints import Endpoint, parse_bind, parse_endpoint
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
    ":80": "has an empty host",
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
    "::1": "has more than one ':'",
    "::1:80": "has more than one ':'",
    "2001:db8::1:80": "has more than one ':'",
    "localhost:80:81": "has more than one ':'",
    "http://localhost:80": "has more than one ':'",
    "http://localhost": "is not a whole number from 1 to 65535",
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
        assert one_sentence(caught.value, text).endswith(
            ("expected HOST:PORT or [IPv6]:PORT", "expected HOST:PORT or [IPv6]:PORT (an IPv6 address needs brackets)")
        )


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
    assert parse_bind(text) == host


BAD_BINDS = {
    "": "is empty",
    "127.0.0.1:80": "which is not an IPv6 address",
    "localhost:80": "which is not an IPv6 address",
    "[::1]:80": "is not an IPv6 address in brackets",
    "[::1": "is not an IPv6 address in brackets",
    "::1]": "is not an IPv6 address in brackets",
    "[127.0.0.1]": "is not an IPv6 address in brackets",
    "[localhost]": "is not an IPv6 address in brackets",
    "[]": "is not an IPv6 address in brackets",
    "[": "is not an IPv6 address in brackets",
    "fe80::1%": "which is not an IPv6 address",
    "1:2:3": "which is not an IPv6 address",
    "local host": "cannot be a host name",
    "a..b": "cannot be a host name",
    "a" * 64: "cannot be a host name",
    "a/b": "cannot be a host name",
    "a\x1bb": "cannot be a host name",
    "1.2.3.999": "which is not an IPv4 address",
}


@pytest.mark.parametrize("text", BAD_BINDS)
def test_bad_bind(text: str) -> None:
    """Row 95."""
    with pytest.raises(UsageError) as caught:
        parse_bind(text)
    assert BAD_BINDS[text] in one_sentence(caught.value, text)
    assert str(caught.value).endswith("expected a name, an IPv4 address or an IPv6 address")


# --- numbers, durations, sizes ---


@pytest.mark.parametrize("value", [10**5000, -(10**5000), "9" * 5000], ids=["huge", "hugely negative", "long"])
def test_number_that_python_does_not_write_out(value: int | str) -> None:
    """Row 95: beyond 4,300 digits Python itself raises, also when a message repeats the number."""
    for parse in (
        lambda: parse_number("workers", value, 1, 100),
        lambda: parse_size("buffer-size", value, 1024, 16 << 20),
        lambda: parse_duration("grace", value),
        lambda: parse_busy_poll(value),
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
        f"grace {value!r} is not a duration, expected seconds or a number with ms, s, m or h, like 250ms or 10s"
    )


@pytest.mark.parametrize(
    "value",
    [
        *(-1, -0.001, float("nan"), float("inf"), "8761h", 1e300),
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


@pytest.mark.parametrize(
    "value",
    [
        *("", "KiB", "64kib", "64 k", "64GiB", "1.5K", "-1", "-64KiB", "+64K", "64K64", "x", "0x1000", "\u0664K"),
        *("9" * 13, None, True, 1.5, b"1"),
    ],
)
def test_no_size(value: object) -> None:
    """Row 95: BLKSIZE_INT_OVERFL among them."""
    with pytest.raises(UsageError, match=r"^buffer-size .* is not a size, expected bytes or a number with KiB or MiB"):
        parse_size("buffer-size", value, 1024, 16 << 20)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, 1023, "0", "1023B", "16385KiB", "17M", "999999999999M", (16 << 20) + 1])
def test_size_out_of_range(value: int | str) -> None:
    """Row 95."""
    with pytest.raises(UsageError, match=r"^buffer-size .* is out of range, expected 1024 to 16777216 bytes$"):
        parse_size("buffer-size", value, 1024, 16 << 20)


def test_defaults() -> None:
    """Row 95: what the documentation says."""
    config = Config.make("localhost:80")
    assert (config.bind, config.port, config.workers) == ("127.0.0.1", 0, 1)
    assert (config.connect_timeout, config.half_close_timeout, config.idle_timeout) == (10, 60, 0)
    assert (config.keepalive, config.grace, config.max_connections, config.buffer_size) == (60, 0, None, 65536)


def test_keepalive_in_whole_seconds() -> None:
    """Row 24: the system knows no others; never less than was asked for."""
    assert Config.make("localhost:80", keepalive="1500ms").keepalive == 2
    assert Config.make("localhost:80", keepalive="off").keepalive == 0
    assert Config.make("localhost:80", keepalive=None).keepalive == 0


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
        ([""], "remote '' is empty, expected HOST:PORT or [IPv6]:PORT"),
        (["localhost"], "remote 'localhost' has no port, expected HOST:PORT or [IPv6]:PORT"),
        (["localhost:http"], "port of remote 'localhost:http': 'http' is not a whole number from 1 to 65535"),
        (["local\x1b[31mhost:80"], "remote 'local\\x1b[31mhost:80' has 'local\\x1b[31mhost', which cannot be a host"),
        (["\u00fc" * 60 + ":80"], f"remote '{chr(0xFC) * 60}:80' has "),
        (["a" * 300 + ":80"], f"remote '{'a' * 300}:80' has "),
        (["-b", "", GOOD], "bind '' is empty, "),
        (["-b", "127.0.0.1:80", GOOD], "bind '127.0.0.1:80' has "),
        (["-l", "", GOOD], "local-port '' is not a whole number from 0 to 65535"),
        (["-l", "http", GOOD], "local-port 'http' is not a whole number from 0 to 65535"),
        (["-l", "65536", GOOD], "local-port '65536' is not a whole number from 0 to 65535"),
        (["-l", "-1", GOOD], "local-port '-1' is not a whole number from 0 to 65535"),
        (["--workers", "", GOOD], "workers '' is not a whole number from 1 to 64"),
        (["--workers", "0", GOOD], "workers '0' is not a whole number from 1 to 64"),
        (["--workers", "65", GOOD], "workers '65' is not a whole number from 1 to 64"),
        (["--workers", "two", GOOD], "workers 'two' is not a whole number from 1 to 64"),
        (["--max-connections", "0", GOOD], "max-connections '0' is not a whole number from 1 to 1000000"),
        (["--max-connections", "", GOOD], "max-connections '' is not a whole number from 1 to 1000000"),
        (["--connect-timeout", "soon", GOOD], "connect-timeout 'soon' is not a duration, expected "),
        (["--connect-timeout", "", GOOD], "connect-timeout '' is not a duration, expected "),
        (["--connect-timeout", "0", GOOD], "connect-timeout '0' is out of range, expected 0.001s to "),
        (["--connect-timeout", "off", GOOD], "connect-timeout 'off' is not a duration, expected "),
        (["--connect-timeout", "-1s", GOOD], "connect-timeout '-1s' is not a duration, expected "),
        (["--half-close-timeout", "1d", GOOD], "half-close-timeout '1d' is not a duration, expected "),
        (["--idle-timeout", "never", GOOD], "idle-timeout 'never' is not a duration, expected "),
        (["--keepalive", "500ms", GOOD], "keepalive '500ms' is out of range, expected 1s to 32767s or off"),
        (["--keepalive", "10h", GOOD], "keepalive '10h' is out of range, expected 1s to 32767s or off"),
        (["--grace", "10 apples", GOOD], "grace '10 apples' is not a duration, expected "),
        (["--buffer-size", "64GiB", GOOD], "buffer-size '64GiB' is not a size, expected "),
        (["--buffer-size", "99999999999999999999", GOOD], "buffer-size '99999999999999999999' is not a size, "),
        (
            ["--socket-buffer", "no", GOOD],
            "socket-buffer 'no' is not a size, expected bytes or a number with KiB or MiB, ",
        ),
        (
            ["--socket-buffer", "1KiB", GOOD],
            "socket-buffer '1KiB' is out of range, expected 4096 to 1073741824 bytes or ",
        ),
        (["1.2.3.999:80"], "remote '1.2.3.999:80' has '1.2.3.999', which is not an IPv4 address, expected "),
        (["--workers", "9" * 5000, GOOD], "workers '" + "9" * 79 + "... (5002 characters) is not a whole number "),
        (["--buffer-size", "1", GOOD], "buffer-size '1' is out of range, expected 1024 to 16777216 bytes"),
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


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ([], "Missing argument 'REMOTE'"),
        ([GOOD, "too-much"], "unexpected extra argument"),
        (["--nonsense", GOOD], "No such option"),
        (["--log-format", "xml", GOOD], "'xml' is not one of 'text', 'json'"),
        ([GOOD, "-l"], "requires an argument"),
    ],
)
def test_usage_and_exit_2(args: list[str], sentence: str) -> None:
    """Row 95: what the parser of options finds."""
    done = run(*args)
    assert done.returncode == 2
    assert done.stdout == ""
    last = done.stderr.splitlines()[-1]
    assert last.startswith("Error: ")
    assert sentence in last


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
