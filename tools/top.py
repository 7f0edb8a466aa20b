"""Draws docs/top.svg: the live view (`tcpproxy --top`) of connections that are made up.

python tools/top.py
"""

from __future__ import annotations

import io
import math
from pathlib import Path

from rich.console import Console

from tcpproxy import Connection, Event, Stats
from tcpproxy.command.picture import Picture
from tcpproxy.command.top import frame

COLUMNS, LINES = 112, 24
PAGE = Path(__file__).parents[1] / "docs/top.svg"
KIB, MIB = 1024, 1024**2

ROWS = (
    # number, client, state, age, idle, rates up and down, bytes up and down, waiting for the client
    (17, "10.0.3.21:52714", "relaying", 7980, 0.01, 2 * KIB, 12.3 * MIB, 9 * MIB, 17_800 * MIB, 65_536),
    (1188, "10.0.3.40:41022", "relaying", 412, 0.02, 1.1 * MIB, 310 * KIB, 388 * MIB, 104 * MIB, 0),
    (1201, "10.0.7.5:60120", "relaying", 65, 0.25, 840, 21 * KIB, 44 * KIB, 1.2 * MIB, 0),
    (1196, "10.0.7.5:60098", "relaying", 118, 1.4, 120, 95, 12 * KIB, 9 * KIB, 0),
    (612, "10.0.3.22:38844", "relaying", 5102, 312, 0, 0, 71 * KIB, 3.3 * MIB, 0),
    (1206, "10.0.7.9:51300", "connecting", 0.41, 0.41, 0, 0, 0, 0, 0),
)
STATS = {"accepted": 1206, "active": len(ROWS), "failed": 3}


def picture() -> Picture:
    connections = [
        Connection(
            id=number,
            client=client,
            upstream="" if state == "connecting" else "10.0.0.5:5432",
            state=state,  # type: ignore[arg-type]
            to_upstream=int(up),
            to_client=int(down),
            age=age,
            connect_time=0.002,
            idle=idle,
            waiting_for_upstream=0,
            waiting_for_client=waiting,
            outgoing="",
        )
        for number, client, state, age, idle, _, _, up, down, waiting in ROWS
    ]
    rates = {row[0]: (float(row[5]), float(row[6])) for row in ROWS}
    total = (sum(up for up, _ in rates.values()), sum(down for _, down in rates.values()))
    swing = [0.55 + 0.4 * math.sin(second / 7) + 0.05 * math.cos(second * 2) for second in range(60)]
    return Picture(
        ("127.0.0.1:5432", "db.example:5432"),
        Stats(**{**dict.fromkeys(Stats.__slots__[:-1], 0), **STATS}, accepted_by_worker=(1206,)),
        up=7984.0,
        rate=total,
        history=[(total[0] * abs(math.sin(second / 4)), total[1] * part) for second, part in enumerate(swing)],
        connections=connections,
        rates=rates,
        ended=[
            Event("failed", "connect-timeout", client="10.0.7.9:51288", id=1204, duration=10.0),
            Event("end", "client-eof", 0, "10.0.7.5:60116", "10.0.0.5:5432", 210, 4096, 0.032, id=1205),
        ],
        lines=[
            ("New connection from 10.0.7.5:60116", False),
            (
                "Error establishing upstream connection: Connection timed out (os error 110) (10.0.0.5:5432 for client "
                "10.0.7.9:51288)",
                True,
            ),
            ("New connection from 10.0.7.9:51300", False),
        ],
    )


def main() -> None:
    console = Console(
        record=True, width=COLUMNS, height=LINES, file=io.StringIO(), force_terminal=True, highlight=False
    )
    console.print(frame(picture(), COLUMNS, LINES))
    PAGE.write_text(console.export_svg(title="tcpproxy --top -l 5432 db.example:5432", unique_id="top"), "utf-8")
    print(f"{PAGE.name}: {PAGE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
