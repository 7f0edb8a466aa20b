"""What deploy/ has for containers: it is valid, it agrees with the command, and it works as far as that shows here."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.command import Command
from support.machine import needs
from support.peers import Echo, free_port, relays
from support.waiting import TIMEOUT, eventually

DEPLOY = Path(__file__).parents[2] / "deploy"
NOBODY = 65532
"""The user of distroless images."""

Start = Callable[..., Command]


@pytest.fixture
def pod() -> Any:
    deployment = next(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    return deployment["spec"]["template"]["spec"]


def test_the_manifest_agrees_with_the_command(pod: Any, command: Start, echo: Echo) -> None:
    """Its arguments start a relay, its probes are answered there, and nobody is killed before the grace is over."""
    container = pod["containers"][0]
    options = dict(argument.removeprefix("--").split("=", 1) for argument in container["args"][:-1])
    ports = {each["name"]: each["containerPort"] for each in container["ports"]}
    assert options["local-port"] == str(ports["relay"])
    assert options["metrics"].rpartition(":")[2] == str(ports["metrics"])
    until_stop = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= until_stop + int(options["grace"].removesuffix("s")) + 5
    assert pod["securityContext"]["runAsUser"] == NOBODY
    port, metrics = free_port(), free_port()
    changed = {"local-port": str(port), "metrics": f"[::]:{metrics}", "bind": "::"}
    process = command(*(f"--{name}={value}" for name, value in {**options, **changed}.items()), echo.name)
    eventually(lambda: "listening" in [json.loads(line)["kind"] for line in process.stdout])
    assert relays(("127.0.0.1", port))
    for probe in "readinessProbe", "livenessProbe":
        asked = container[probe]["httpGet"]
        assert asked["port"] == "metrics"
        with urllib.request.urlopen(f"http://127.0.0.1:{metrics}{asked['path']}", timeout=TIMEOUT) as answer:
            assert answer.status == 200


@pytest.fixture
def image() -> Iterator[tuple[Path, dict[str, str], list[str]]]:
    """What the last stage of the Dockerfile has: a directory in place of /app, the environment, and the command."""
    needs("unshare")
    needs("setpriv")
    lines = re.sub(r"\\\n", "", (DEPLOY / "Dockerfile").read_text()).splitlines()
    steps = [line.split(" ", 1) for line in lines if line and not line.startswith("#")]
    python = os.path.realpath(sys.executable)
    # Not below pytest's own, which other users cannot enter.
    root = Path(tempfile.mkdtemp(prefix="tcpproxy-image-"))
    root.chmod(0o755)
    app = root / "app"
    environment = dict(os.environ, PACKAGE=f"{DEPLOY.parent}[metrics]")
    run = [text for what, text in steps if what == "RUN"]
    assert len(run) == 2
    try:
        for text in run:
            step = text.replace("/app", str(app)).replace("pip ", f"{sys.executable} -m pip ", 1)
            step = re.sub(r"^python ", f"{python} ", step)
            subprocess.run(["sh", "-ec", step], env=environment, check=True, timeout=600)
        given = " ".join(text for what, text in steps if what == "ENV").replace("/app", str(app))
        entry = json.loads(next(text for what, text in steps if what == "ENTRYPOINT"))
        assert entry[0] == "/usr/bin/python3"
        yield app, dict(word.split("=", 1) for word in shlex.split(given)), [python, *entry[1:]]
    finally:
        shutil.rmtree(root)


@pytest.mark.timeout(600)  # it compiles the core
@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs root, to become somebody else")
def test_the_image(image: tuple[Path, dict[str, str], list[str]], command: Start, echo: Echo) -> None:
    """It runs as a user without any rights, on a root directory that may only be read, with the strictest sandbox.

    Nothing is left to compile: what cannot be written would be compiled again by each start.
    """
    app, environment, entry = image
    assert environment == {"PYTHONPATH": str(app), "PYTHONDONTWRITEBYTECODE": "1"}
    sources = list(app.rglob("*.py"))
    assert len(sources) > 50
    assert [each for each in sources if not Path(importlib.util.cache_from_source(str(each))).exists()] == []
    words = shlex.join(["env", "-i", *(f"{name}={value}" for name, value in environment.items()), *entry])
    # Some interpreters are in a folder of root's own.
    user = NOBODY if all(each.stat().st_mode & 0o001 for each in [Path(entry[0]), *Path(entry[0]).parents]) else 0
    become = f"setpriv --reuid {user} --regid {user} --clear-groups --no-new-privs --bounding-set=-all"
    read_only = "mount -o remount,bind,ro / 2>/dev/null || { mount --bind / / && mount -o remount,bind,ro /; }"
    # The command's own Python and its two arguments are not those of the image.
    script = f'{read_only}; cd /; ! touch /tcpproxy-test 2>/dev/null || exit 99; shift 3; exec {become} {words} "$@"'
    port, metrics = free_port(), free_port()
    options = ("-l", str(port), "--metrics", str(metrics), "--sandbox", "require")
    process = command(*options, echo.name, wrapper=("unshare", "-m", "sh", "-ec", script, "sh"))
    assert relays(process.address)
    status = Path(f"/proc/{process.process.pid}/status").read_text()
    assert re.search(rf"^Uid:(\t{user}){{4}}$", status, re.MULTILINE)
    assert re.search(r"^CapEff:\t0+$", status, re.MULTILINE)
    with urllib.request.urlopen(f"http://127.0.0.1:{metrics}/metrics", timeout=TIMEOUT) as answer:
        assert b"tcpproxy_connections_accepted_total" in answer.read()
    assert process.complaints == []
    process.process.terminate()
    assert process.wait() == 0
