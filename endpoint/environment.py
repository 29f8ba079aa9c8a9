"""What the interpreter of a pool is, and whether it can work for this daemon.

It is asked as a block would start it, after `worker_init`, by a script that imports next to nothing.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shlex
import signal
import subprocess
import sys
from importlib.metadata import PackageNotFoundError

from funcmq.broker.environment import minor
from funcmq.broker.errors import EnvironmentMismatch
from funcmq.endpoint.config import PoolConfig

ASK_S = 60.0
"""How long an interpreter may take to answer: on a shared file system under load the first start is slow."""
OLDEST = (3, 11)
PACKAGES = ("funcmq", "parsl", "cloudpickle", "msgspec", "msgpack", "pyzmq")
"""What a worker is made of."""
SAME = ("funcmq", "parsl")
"""Of these it needs the versions of the daemon, because the two sides speak with each other in their words."""
_MARK = "funcmq-environment "
_SCRIPT = f"""
import json, platform
try:
    from importlib.metadata import version
except ImportError:
    version = None
found = dict(python=platform.python_version())
for name in {PACKAGES!r}:
    try:
        found[name] = version(name)
    except Exception:
        pass
print({_MARK!r} + json.dumps(found))
"""
_TAIL = 300
"""Characters of what an interpreter says instead of an answer."""


def interpreter(config: PoolConfig) -> str:
    """The Python of a pool's workers."""
    return config.python or sys.executable


def own() -> dict[str, str]:
    """Versions of this process."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except PackageNotFoundError:
            continue
    return found


def ask(config: PoolConfig, environment: dict[str, str], patience: float = ASK_S) -> dict[str, str]:
    """Versions of Python and of what workers need, as the pool's interpreter says.  Blocks for as long as that takes.

    :param environment: variables for the script, without secrets.
    :raises EnvironmentMismatch: it does not answer; says what it said instead.
    """
    if not config.worker_init and interpreter(config) == sys.executable:
        return own()
    python = interpreter(config)
    script = f"{config.worker_init}\nexec {shlex.quote(python)} -c {shlex.quote(_SCRIPT)}"
    answer = _run(["/bin/bash", "-c", script], environment, python, patience)
    line = next((line for line in reversed(answer.splitlines()) if line.startswith(_MARK)), "")
    try:
        found = json.loads(line.removeprefix(_MARK))
    except ValueError:
        raise _silent(python, answer) from None
    return {str(name): str(version) for name, version in found.items()}


def _run(command: list[str], environment: dict[str, str], python: str, patience: float) -> str:
    """Stdout and stderr; a process that does not end is ended with all that it has started."""
    try:
        process = subprocess.Popen(  # noqa: S603 (what the owner of the endpoint has configured)
            command,
            cwd="/",
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    except OSError as missing:
        raise _silent(python, str(missing)) from None
    with process:
        try:
            said, _ = process.communicate(timeout=patience)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            said, _ = process.communicate()
            raise EnvironmentMismatch(
                f"{python} does not answer within {patience:.0f} s.", hint="Does worker_init wait for something?"
            ) from None
    return said.decode("utf-8", "replace")


def _silent(python: str, said: str) -> EnvironmentMismatch:
    return EnvironmentMismatch(
        f"{python} cannot be asked for its versions: {said.strip()[-_TAIL:] or 'it says nothing'}",
        hint="Correct `python` or `worker_init` of this pool in endpoint.toml; workers need Python 3.11 or later.",
    )


def check(config: PoolConfig, found: dict[str, str], here: dict[str, str]) -> None:
    """:raises EnvironmentMismatch: this interpreter cannot work for a daemon with these versions; the hint is the line that mends it."""
    python = interpreter(config)
    version = found.get("python", "0")
    if _numbers(version) < OLDEST:
        raise EnvironmentMismatch(
            f"{python} is Python {version}; workers need {OLDEST[0]}.{OLDEST[1]} or later.",
            hint="Name another one as `python` of this pool in endpoint.toml.",
        )
    lacking = [name for name in PACKAGES if name not in found]
    other = [f"{name} {found[name]} (this daemon has {here.get(name)})" for name in SAME if name in found and found[name] != here.get(name)]
    if lacking or other:
        wrong = " and ".join([f"lacks {', '.join(lacking)}"] * bool(lacking) + [f"has {', '.join(other)}"] * bool(other))
        raise EnvironmentMismatch(f"{python} (Python {version}) {wrong}.", hint=pip_line(python, here["funcmq"]))


def pip_line(python: str, release: str) -> str:
    """What makes an interpreter fit for workers of this release."""
    return f"{shlex.quote(python)} -m pip install 'funcmq[worker]=={release}'"


def said(error: EnvironmentMismatch) -> str:
    """Why a pool does not run, with what to do, on one line."""
    return f"{error.message} {error.hint}"


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", minor(version)))
