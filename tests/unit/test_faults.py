"""Faults: how they are written and kept, and the error for each invalid text."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
from datetime import timedelta
from ipaddress import IPv4Network, IPv6Network

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tcpproxy import UsageError
from tcpproxy.faults import (
    PRESETS,
    Fault,
    bandwidth,
    blackhole,
    close,
    connect_delay,
    hang,
    latency,
    limit_data,
    preset,
    refuse,
    reset_peer,
    slicer,
    slow_close,
    stall,
    timeout,
)
from tcpproxy.rules import named
from tcpproxy.values import Rate, format_time, parse_rate, parse_time

MS = timedelta(milliseconds=1)


@pytest.mark.parametrize(
    ("text", "fault", "shown"),
    [
        ("latency=100ms", latency("100ms"), "latency=100ms"),
        ("latency=100ms,jitter=20ms", latency("100ms", "20ms"), "latency=100ms,jitter=20ms"),
        ("latency=0.1s,distribution=normal", latency(100 * MS, distribution="normal"), None),
        ("latency=1500ms", latency("1.5s"), "latency=1.5s"),
        ("down:latency=2m", latency(timedelta(minutes=2)), "latency=120s"),
        ("latency,latency=100ms", latency("100ms"), "latency=100ms"),
        ("up:bandwidth=64kB/s", bandwidth("64kB/s", stream="up"), "to_upstream:bandwidth=64kB/s"),
        ("upstream:bandwidth=512kbit/s", bandwidth("64kB/s", stream="upstream"), "to_upstream:bandwidth=64kB/s"),
        ("bandwidth=1MiB/s,burst=8KiB,scope=proxy", bandwidth("1MiB/s", 8192, scope="proxy"), None),
        ("slow_close=2s", slow_close("2s"), "slow_close=2s"),
        ("timeout=0", timeout(0), "timeout=0"),
        ("timeout=1s,end=reset,idle=true", timeout("1s", "reset", True), "timeout=1s,end=reset,idle=true"),
        ("reset_peer", reset_peer(), "reset_peer"),
        ("reset_peer=500ms", reset_peer("500ms"), "reset_peer=500ms"),
        ("reset_peer=0", reset_peer(), "reset_peer"),
        ("reset_peer,after_bytes=4kB,toxicity=10%", reset_peer(after_bytes=4000, toxicity=0.1), None),
        (
            "down:reset_peer,after_bytes=0,times=1",
            reset_peer(after_bytes=0, times=1),
            "reset_peer,after_bytes=0,times=1",
        ),
        ("reset_peer,first=2", reset_peer(first=2), "reset_peer,first=2"),
        ("close,nth=3,every=2,connection=7", close(nth=3, every=2, connection=7), None),
        ("close,after=2s,client=10.0.0.0/8,live=false", close(after="2s", client="10.0.0.0/8", live=False), None),
        ("limit_data=5kB,end=stall", limit_data(5000, "stall"), "limit_data=5000,end=stall"),
        ("slicer=64,size_variation=32,delay=10us", slicer(64, 32, "10us"), "slicer=64,size_variation=32,delay=10us"),
        ("both:stall,start=10s,for=5s,repeat=60s", stall(stream="both", start="10s", for_="5s", repeat="60s"), None),
        ("stall,stream=up", stall(stream="up"), "to_upstream:stall"),
        ("stall,name=cable.out-1,seed=18446744073709551615", stall(name="cable.out-1", seed=2**64 - 1), None),
        ("refuse,for=1s", refuse(for_="1s"), "refuse,for=1s"),
        ("hang,start=1s", hang(start="1s"), "hang,start=1s"),
        ("blackhole,every=2", blackhole(every=2), "blackhole,every=2"),
        ("connect_delay=1s,client=fe80::/10", connect_delay("1s", client="fe80::/10"), None),
        (" latency=1s, jitter = 5ms ", latency("1s", "5ms"), "latency=1s,jitter=5ms"),
    ],
)
def test_what_people_write(text: str, fault: Fault, shown: str | None) -> None:
    """`shown` None: the text of the fault is the one that was written."""
    assert Fault.parse(text) == fault
    assert Fault.parse(str(fault)) == fault
    assert repr(fault) == f"<fault {str(fault)!r}>"
    if shown:
        assert str(fault) == shown


NO_UNIT = "has no unit, expected "
NO_PAIR = "is no KEY=VALUE of "


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "expected [DIRECTION:]KIND[=VALUE][,KEY=VALUE]..., like latency=100ms,jitter=20ms"),
        ("=1", "expected [DIRECTION:]"),
        ("up:down:stall", "expected [DIRECTION:]"),
        ("lattency=1s", "there is no lattency, did you mean latency?"),
        ("loss=1%", "there is no loss, because TCP sends again what is lost: programs see latency"),
        ("down", "there is no down, refuse is what makes connecting fail"),
        ("down:down", "there is no down, refuse"),
        ("reset=1s", "there is no reset, did you mean reset_peer?"),
        ("packet_loss=1%", "there is no packet_loss, because TCP sends again what is lost"),
        ("drop", "there is no drop, did you mean limit_data, timeout or blackhole?"),
        ("LATENCY=1s", "there is no LATENCY, did you mean latency?"),
        (
            "3g",
            "there is no 3g, it is a preset, another option; in a program tcpproxy.faults.preset('3g')",
        ),
        ("toxicity=1%", "there is no toxicity, it is a key of a kind, like latency=100ms,toxicity=VALUE"),
        ("scope=proxy", "there is no scope, it is a key of a kind, like limit_data=64KiB,scope=VALUE"),
        ("for=1s", "there is no for, it is a key of a kind, like latency=100ms,for=VALUE"),
        ("end=reset", "there is no end, it is a key of a kind, like limit_data=64KiB,end=VALUE"),
        ("idle=true", "there is no idle, it is a key of a kind, like timeout=2s,idle=VALUE"),
        ("burst=1", "there is no burst, it is a key of a kind, like bandwidth=100kB/s,burst=VALUE"),
        ("size_variation=1", "there is no size_variation, it is a key of a kind, like slicer=64,size_variation=VALUE"),
        ("stall,toxicity=0.7%x", "toxicity '0.7%x' is not a share"),
        (
            "xyz",
            "there is no xyz, expected one of limit_data, reset_peer, close, timeout, latency, slow_close, bandwidth",
        ),
        ("latency=100", f"latency '100' {NO_UNIT}'100ms' or '100s'"),
        ("latency=1s,jitter=.5", f"jitter '.5' {NO_UNIT}'.5ms' or '.5s'"),
        ("slicer=8,delay=10", f"delay '10' {NO_UNIT}'10us' or '10s'"),
        ("bandwidth=1000", f"rate '1000' {NO_UNIT}'1000B/s' or '1000bit/s'"),
        ("bandwidth=1M", f"rate '1M' {NO_UNIT}'1MB/s' or '1Mbit/s'"),
        ("bandwidth=500K", f"rate '500K' {NO_UNIT}'500kB/s' or '500kbit/s'"),
        ("bandwidth=0", "rate '0' lets nothing pass: stall does that"),
        ("bandwidth=0kB/s", "rate '0kB/s' is out of range, expected 1B/s to 1000GB/s"),
        ("bandwidth=9999GB/s", "rate '9999GB/s' is out of range, expected 1B/s to 1000GB/s"),
        ("bandwidth=10bit/s", "rate '10bit/s' is no whole number of bytes per second"),
        ("bandwidth=10fps", "rate '10fps' is not a rate, expected a number with B/s or bit/s, like 100kB/s"),
        ("bandwidth=10mbps", "rate '10mbps' is not a rate, expected '10MB/s' or '10Mbit/s'"),
        ("bandwidth=10mb/s", "rate '10mb/s' is not a rate, expected '10MB/s' or '10Mbit/s'"),
        ("bandwidth=10MB", "rate '10MB' is not a rate, expected '10MB/s'"),
        ("bandwidth=10MiB", "rate '10MiB' is not a rate, expected '10MiB/s'"),
        ("bandwidth=1g", f"rate '1g' {NO_UNIT}'1GB/s' or '1Gbit/s'"),
        ("bandwidth=1gbit", "rate '1gbit' is not a rate, expected '1Gbit/s'"),
        ("bandwidth=1mbit/s", "rate '1mbit/s' is not a rate, expected '1Mbit/s'"),
        ("bandwidth=100Mbps", "rate '100Mbps' is not a rate, expected '100Mbit/s'"),
        ("bandwidth=1001", f"rate '1001' {NO_UNIT}'1001B/s'"),
        ("latency=ten", "latency 'ten' is not a time, expected a number with us, ms, s, m or h, like 250ms"),
        ("latency=-1s", "latency '-1s' is not a time, expected "),
        ("latency=", "latency '' is not a time, expected "),
        ("latency=0.1us", "latency '0.1us' is no whole number of microseconds"),
        ("latency=9000h", "latency '9000h' is out of range, expected 0s to 31536000s"),
        ("latency", "latency is missing, expected something like latency=100ms"),
        ("slicer", "average_size is missing, expected something like slicer=64"),
        ("limit_data", "bytes is missing, expected something like limit_data=64KiB"),
        ("limit_data=ten", "bytes 'ten' is not a size, expected bytes or a number with KiB or MiB, like 64KiB"),
        ("limit_data=5,end=fin", "end 'fin' is unknown, expected close, reset or stall"),
        ("timeout=1s,end=stall", "end 'stall' is unknown, expected close or reset"),
        ("timeout=1s,idle=yes", "idle 'yes' is unknown, expected true or false"),
        (
            "slicer=5,size_variation=5",
            "average_size 5 and size_variation 5 make empty pieces, expected a variation below",
        ),
        ("slicer=0", "average_size 0 and size_variation 0 make empty pieces"),
        ("stall=2", "stall has no value, but '2' is given"),
        ("stall=", "stall has no value, but '' is given"),
        ("latency=1s,jiter=2s", f"'jiter=2s' {NO_PAIR}latency, did you mean jitter?"),
        ("latency=1s,jitter", f"'jitter' {NO_PAIR}latency, did you mean jitter?"),
        ("latency=1s,", f"'' {NO_PAIR}latency, expected one of latency, jitter, distribution, stream, toxicity"),
        ("latency=1s,latency=2s", "latency is given twice"),
        ("up:stall,stream=up", "stream is given twice"),
        ("left:stall", "stream 'left' is unknown, expected to_upstream, to_client or both"),
        ("stall,toxicity=2", "toxicity '2' is not a share, expected 0 to 1 or 0% to 100%"),
        ("stall,toxicity=101%", "toxicity '101%' is not a share"),
        ("stall,toxicity=nan", "toxicity 'nan' is not a share"),
        ("stall,first=0", "first '0' is not a whole number from 1 to 1000000000"),
        ("stall,seed=-1", "seed '-1' is not a whole number from 0 to 18446744073709551615"),
        ("stall,name=a b", "name 'a b' is no name, expected up to 64 letters, digits, and any of _ . # -"),
        ("stall,client=10.0.0.1/8", "client '10.0.0.1/8' has bits set behind its prefix, expected one like 10.0.0.0/8"),
        ("stall,client=db.example", "client 'db.example' is no network, expected one like 10.0.0.0/8"),
        ("stall,scope=proxy", "stall has no scope"),
        ("bandwidth=1MB/s,burst=20GB", "burst '20GB' is out of range, expected 1 to 1000000000 bytes"),
        ("bandwidth=1MB/s,burst=0", "burst '0' is out of range, expected 1 to 1000000000 bytes"),
        ("bandwidth=1MB/s,scope=all", "scope 'all' is unknown, expected connection or proxy"),
        ("limit_data=5,after_bytes=5", "limit_data has no after_bytes"),
        ("close,after=1s,after_bytes=1", "after and after_bytes are two beginnings, expected one of them"),
        ("stall,repeat=1s", "repeat needs a for that is shorter, like for=5s,repeat=60s"),
        ("stall,for=1s,repeat=1s", "repeat needs a for that is shorter"),
        ("stall,for=1us,repeat=9999us", "repeat 9.999ms is too short, expected 10ms or more"),
        ("refuse,first=2", "refuse has no first, because the system refuses all connections or none; reset_peer takes"),
        ("refuse,toxicity=10%", "refuse has no toxicity, because the system refuses all connections or none"),
        ("up:refuse", "refuse has no stream, because "),
        ("hang,first=2", "hang has no first, because the system lets all clients hang or none; blackhole"),
        ("up:blackhole", "blackhole has no stream"),
        ("connect_delay=1s,after=1s", "connect_delay has no after"),
    ],
)
def test_what_cannot_be_meant(text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        Fault.parse(text)
    assert str(caught.value).startswith(f"fault {text!r}: {sentence}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: latency(100), f"fault latency: latency 100 {NO_UNIT}'100ms' or '100s'"),
        (lambda: latency(0.1), f"fault latency: latency 0.1 {NO_UNIT}'0.1ms' or '0.1s'"),  # type: ignore[arg-type]
        (lambda: latency(timedelta(-1)), "fault latency: latency datetime.timedelta(days=-1) is out of range"),
        (lambda: latency(True), "fault latency: latency True is not a time, expected "),
        (lambda: latency(None), "fault latency: latency None is not a time, expected "),  # type: ignore[arg-type]
        (lambda: bandwidth(1000), f"fault bandwidth: rate 1000 {NO_UNIT}'1000B/s' or '1000bit/s'"),  # type: ignore[arg-type]
        (lambda: bandwidth(0), "fault bandwidth: rate 0 lets nothing pass: stall does that"),  # type: ignore[arg-type]
        (lambda: stall(toxicity=1.5), "fault stall: toxicity 1.5 is not a share"),
        (lambda: stall(live=1), "fault stall: live 1 is unknown, expected true or false"),  # type: ignore[arg-type]
        (lambda: stall(scope="proxy"), "fault stall: stall has no scope"),
        (lambda: Fault(), "Fault has no kind, expected one of limit_data, "),
        (lambda: preset("5g"), "there is no preset '5g', expected one of 2g, edge, 3gslow, 3g, "),
        (lambda: Fault.parse(5), "fault 5: expected [DIRECTION:]KIND"),  # type: ignore[arg-type]
        (lambda: named(["stall,name=a", "close,name=a"]), "fault 'close,name=a': another one has this name"),
        (lambda: named(["slicer=5", "both:slicer=6"]), "fault 'both:slicer=6': another slicer has this direction"),
        (lambda: dataclasses.replace(latency("1s"), jitter=5), f"fault latency: jitter 5 {NO_UNIT}'5ms' or '5s'"),
    ],
)
def test_what_a_program_cannot_mean(make: object, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        make()  # type: ignore[operator]
    assert str(caught.value).startswith(sentence)


def test_values_are_kept_in_one_form() -> None:
    fault = latency("1.5s", jitter=5 * MS, stream="up", toxicity="25%")
    assert (fault.latency, fault.jitter, fault.stream, fault.toxicity) == (1500 * MS, 5 * MS, "to_upstream", 0.25)
    assert fault == latency("1500ms", "5ms", stream="upstream", toxicity=0.25)
    assert hash(fault) == hash(dataclasses.replace(fault))
    assert fault != latency("1.5s")
    assert bandwidth("800kbit/s").rate == Rate(100_000)
    assert limit_data("4KiB").bytes == 4096
    with pytest.raises(dataclasses.FrozenInstanceError):
        fault.stream = "both"  # type: ignore[misc]


def test_names() -> None:
    """A further fault does not change the names of those before it, and so not their random numbers."""
    faults = named(["latency=1s", "up:latency=1s", latency("2s"), "refuse", "stall,name=x", latency("3s"), "slicer=1"])
    assert list(faults) == [
        *("latency_to_client", "latency_to_upstream", "latency_to_client#2", "refuse", "x", "latency_to_client#3"),
        "slicer_to_client",
    ]
    assert faults["latency_to_client#3"] == latency("3s")


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name: str) -> None:
    """Half of the round trip each way, and both rates."""
    down, up, round_trip = PRESETS[name]
    faults = preset(name, toxicity=0.5)
    assert [fault.toxicity for fault in faults] == [0.5] * 3
    assert [Fault.parse(str(fault)) for fault in faults] == list(faults)
    assert named(faults) == {
        "latency_both": latency(round_trip * MS / 2, stream="both", toxicity=0.5),
        "bandwidth_to_client": bandwidth(f"{down}kbit/s", toxicity=0.5),
        "bandwidth_to_upstream": bandwidth(f"{up}kbit/s", stream="up", toxicity=0.5),
    }


# --- any fault ---

times = st.timedeltas(timedelta(0), timedelta(days=365))
lengths = st.timedeltas(timedelta(microseconds=1), timedelta(days=360))
sizes = st.integers(0, 999_999_999_999)
counts = st.none() | st.integers(1, 10**9)
common = {
    "name": st.none() | st.from_regex(r"[A-Za-z0-9_.#-]{1,64}", fullmatch=True),
    "start": times,
    "for_": st.none() | times,
}
which = {
    **dict.fromkeys(("first", "nth", "every", "connection", "times"), counts),
    "toxicity": st.floats(0, 1),
    "seed": st.none() | st.integers(0, 2**64 - 1),
    "client": st.none() | st.ip_addresses().map(lambda ip: str((IPv4Network if ip.version == 4 else IPv6Network)(ip))),
}
stream = {
    "stream": st.sampled_from(["to_upstream", "to_client", "both", "up", "down", "upstream", "downstream"]),
    "live": st.booleans(),
}
when = st.sampled_from(["after", "after_bytes", None])
rates = st.integers(1, 10**12).map(Rate)


def kind(make: object, *common_ones: dict[str, st.SearchStrategy[object]], **own: object) -> st.SearchStrategy[Fault]:
    return st.builds(make, **common, **{key: it for each in common_ones for key, it in each.items()}, **own)  # type: ignore[arg-type]


scope = st.sampled_from(["connection", "proxy"])
any_fault = st.one_of(
    kind(latency, which, stream, latency=times, jitter=times, distribution=st.sampled_from(["uniform", "normal"])),
    kind(latency, which, stream, latency=times, after=times),
    kind(latency, which, stream, latency=times, after_bytes=sizes),
    kind(bandwidth, which, stream, rate=rates, burst=st.none() | st.integers(1, 10**9), scope=scope),
    kind(slow_close, which, stream, delay=times),
    kind(timeout, which, stream, timeout=times, end=st.sampled_from(["close", "reset"]), idle=st.booleans()),
    kind(reset_peer, which, stream, timeout=times, after_bytes=st.none() | sizes),
    kind(close, which, stream, timeout=times, after=st.none() | times),
    kind(limit_data, which, stream, bytes=sizes, end=st.sampled_from(["close", "reset", "stall"]), scope=scope),
    kind(slicer, which, stream, average_size=st.integers(1000, 10**9), size_variation=st.integers(0, 999), delay=times),
    kind(stall, which, stream),
    kind(refuse),
    kind(hang),
    kind(blackhole, which),
    kind(connect_delay, which, delay=times),
    lengths.map(lambda length: stall(for_=length, repeat=length + 10 * MS)),
)


@settings(deadline=None)  # a busy machine
@given(any_fault)
def test_text_and_fault_are_inverse(fault: Fault) -> None:
    again = Fault.parse(str(fault))
    assert again == fault
    assert str(again) == str(fault)
    assert dataclasses.replace(fault) == fault


@given(st.text(st.sampled_from("=,:latency1msup%.#") | st.characters(), max_size=40))
def test_any_text_is_a_fault_or_a_usage_error(text: str) -> None:
    with contextlib.suppress(UsageError):
        fault = Fault.parse(text)
        assert Fault.parse(str(fault)) == fault


@given(times)
def test_times_in_text(time: timedelta) -> None:
    assert parse_time("a", format_time(time)) == time


@given(rates)
def test_rates_in_text(rate: Rate) -> None:
    assert parse_rate("a", str(rate)) == rate


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("1B/s", 1),
        ("8bit/s", 1),
        ("1.5Mbit/s", 187_500),
        ("100 kB/s", 100_000),
        ("100KB/s", 100_000),
        ("1KiB/s", 1024),
        ("1MiB/s", 1 << 20),
        ("10MB/s", 10**7),
        (".5GiB/s", 1 << 29),
        ("1GB/s", 10**9),
        ("10Gbit/s", 125 * 10**7),
    ],
)
def test_rates(text: str, rate: int) -> None:
    assert parse_rate("rate", text) == rate
    assert repr(Rate(1500)) == "Rate('1.5kB/s')"


def test_import_is_light() -> None:
    """Neither the core nor what only an error or a network needs."""
    code = "import sys, tcpproxy.faults; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=True).stdout
    assert not {"click", "decimal", "ipaddress", "difflib", "tcpproxy._core", "tcpproxy.proxy"} & set(loaded.split())


def test_values_do_not_slow_the_command_down() -> None:
    code = "import sys, tcpproxy.values; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd="/", check=True).stdout
    assert not {"datetime", "decimal", "fractions"} & set(loaded.split())
