"""What an option that does not exist may mean: one of another program, or one that is misspelt."""

from __future__ import annotations

import re

from ..config import habits
from ..config.groups import every_row
from ..config.paths import path_in

LISTENING = "-p -P --port --listen --listen-port --local --publish"
BINDING = "--address --host --listen-address --bind-address --bind-addr --bind-host --interface"
TARGET = "-r -t -c --target --remote --upstream --to --connect --dest --destination --remote-host --backend"
"""Options of other programs for the place to listen on, for its address alone, and for the place to connect to."""

PROXY_PROTOCOL = "--proxy-protocol --proxyprotocol --proxy --pp"
"""Those for the PROXY protocol that do not say in which direction."""

_BACKGROUND = ": in the background it goes on with systemd-run --user tcpproxy ..., or with tcpproxy ... &"
_NO_FILE = ": there is no configuration file, all options are on the command line"

ABSENT = {
    **dict.fromkeys(("-N", "-T"), ": ssh needs it to run no command, this runs none"),
    **dict.fromkeys(("-f", "--daemon", "--daemonize", "--background", "--fork"), _BACKGROUND),
    **dict.fromkeys(("-c", "--config", "--config-file", "--conf"), _NO_FILE),
    "-g": ": others may connect with -b '*', or -L '*:PORT:REMOTE'",
    "-R": ": there is no SSH server that could listen, expected -L",
    "-D": ": there is no SOCKS, expected -L [ADDR:]PORT:REMOTE",
}
"""What the error adds about options of other programs, mostly of ssh, for what is not done here."""

ELSEWHERE = {
    "--send-proxy v1": "--send-proxy-v1 --haproxy-protocol",
    "--send-proxy v2": "--send-proxy-v2",
    "--send-proxy v1 or --send-proxy v2": "--send-proxy-protocol",
    "--accept-proxy NETWORK": "--accept-proxy-protocol --trusted-proxies --trusted-proxy --set-real-ip-from",
    "--send-proxy v1|v2 or --accept-proxy NETWORK": PROXY_PROTOCOL,
    "--max-connections": "--maxconn --maxconns --maxclients --max-clients --connection-limit",
    "-x": "-X --hexdump --hex-dump --xxd",
    "-A": "-a --ascii",
    "-x or -A": "--dump --print --show --bytes --data",
    "--capture": "-w --write --pcap --pcapng --dump-file --record",
    "--log-format json": "-j --json",
    "-d": "-v --verbose",
}
"""By what they are here: those for the PROXY protocol, for limits, for what passes, and for the log."""


def meant(typed: str, value: str) -> list[str]:
    """What the option of another program, with its value, is here; empty: it is not known."""
    if typed in TARGET.split():
        there = habits.forward(value)
        return [there.in_command()] if there and there.target == value else []
    if typed not in f"{LISTENING} {BINDING}".split():
        version = re.fullmatch(r"v?([12])", value) if typed in PROXY_PROTOCOL.split() else None
        if version:
            return [f"--send-proxy v{version[1]}"]
        return [ours for ours, theirs in ELSEWHERE.items() if typed in theirs.split()]
    there = habits.forward(value) if re.match(r"[^:]+:", value) else None
    if not there or not there.port:
        there = habits.listen_at(value)
    if not there and (path := path_in(value) or habits.other_path(value)):
        there = habits.Spelling(bind=path)
    is_host = typed in BINDING.split() and re.fullmatch(r"[A-Za-z][\w-]*", value)
    if not there and (is_host or (re.search(r"[.:*]|localhost", value) and "/" not in value)):
        there = habits.Spelling(bind=habits.listen_address(value))
    if there:
        return [there.in_command()]
    return ["-b"] if typed in BINDING.split() else ["-b", "-l"] if re.match(r"[A-Za-z]", value) else ["-l"]


def similar(typed: str) -> list[str]:
    """Options that someone who typed an unknown one may have meant: misspelt, cut short, or one of its words."""
    if not typed.startswith("--"):
        return []
    from difflib import SequenceMatcher  # only an error needs it

    name = typed.removeprefix("--")
    known = [row.long.removeprefix("--") for row in every_row()] + ["version", "help"]
    close = {each: SequenceMatcher(None, name, each).ratio() for each in known if each[0] == name[:1]}
    best = max(close, key=lambda each: close[each], default="")
    if best and close[best] >= 0.75:
        return [f"--{best}"]
    begin = [each for each in known if len(name) >= 3 and each.startswith(name)]
    part = [each for each in known if name in each.split("-") and len(name) >= 0.3 * len(each)]
    return [f"--{each}" for each in begin or part]
