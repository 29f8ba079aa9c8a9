"""What a pool's interpreter says of itself, and whether it fits."""

from __future__ import annotations

import os
import sys
import venv
from pathlib import Path

import pytest

from funcmq.broker.errors import EnvironmentMismatch
from funcmq.endpoint import environment
from funcmq.endpoint.config import PoolConfig

HERE = {
    "python": "3.12.1",
    "funcmq": "0.3.0",
    "parsl": "2026.10.26",
    "cloudpickle": "3.1.1",
    "msgspec": "0.19.0",
    "msgpack": "1.1",
    "pyzmq": "27",
}


def pool(python: str = "/that/python", worker_init: str = "") -> PoolConfig:
    return PoolConfig("cpu", python=python, worker_init=worker_init)


def asked(config: PoolConfig, patience: float = 30.0) -> dict[str, str]:
    return environment.ask(config, dict(os.environ), patience)


def program(folder: Path, text: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_an_interpreter_is_asked_as_a_block_would_start_it() -> None:
    """Through worker_init, whatever that prints, it says the same as this process about itself."""
    config = pool(sys.executable, "echo loading modules; echo 'funcmq-environment nonsense'")
    assert asked(config) == asked(pool("")) == environment.own()
    assert environment.own().keys() == HERE.keys()


def test_what_fits_is_let_in() -> None:
    """Another Python and another cloudpickle do not matter."""
    environment.check(pool(), HERE, HERE)
    environment.check(pool(), HERE | {"python": "3.13.0", "cloudpickle": "3.9"}, HERE)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"parsl": "2026.1.5"}, r"has parsl 2026.1.5 \(this daemon has 2026.10.26\)"),
        ({"funcmq": "0.2.0", "parsl": "1"}, r"has funcmq 0.2.0 \(this daemon has 0.3.0\), parsl 1 "),
        ({"msgspec": ""}, "lacks msgspec"),
        ({"funcmq": "", "parsl": "", "pyzmq": ""}, "lacks funcmq, parsl, pyzmq"),
    ],
)
def test_what_does_not_fit_is_told_with_the_pip_line(change: dict[str, str], why: str) -> None:
    """The message says what is there and what is wanted, the hint is the line that mends it."""
    found = {name: version for name, version in (HERE | change).items() if version}
    with pytest.raises(EnvironmentMismatch, match=why) as refused:
        environment.check(pool("/opt/my env/python"), found, HERE)
    assert refused.value.hint == "'/opt/my env/python' -m pip install 'funcmq[worker]==0.3.0'"
    assert "\n" not in environment.said(refused.value)


def test_an_old_python_is_refused() -> None:
    """No pip line helps a Python that is too old."""
    with pytest.raises(EnvironmentMismatch, match=r"is Python 3\.9\.18; workers need 3\.11 or later") as refused:
        environment.check(pool(), HERE | {"python": "3.9.18"}, HERE)
    assert "endpoint.toml" in refused.value.hint


def test_a_bare_interpreter_lacks_everything(tmp_path: Path) -> None:
    """A virtual environment without packages answers, and is refused for what it lacks."""
    venv.create(tmp_path / "bare", symlinks=True)
    config = pool(str(tmp_path / "bare/bin/python"))
    environment_of = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with pytest.raises(EnvironmentMismatch, match="lacks funcmq, parsl, cloudpickle"):
        environment.check(config, environment.ask(config, environment_of), environment.own())


def test_who_does_not_answer_is_told_with_what_it_said(tmp_path: Path) -> None:
    """No such file, an error, garbage and a program that does not end: each is said, and nothing is left running."""
    with pytest.raises(EnvironmentMismatch, match="No such file"):
        asked(pool("/no/such/python"))
    with pytest.raises(EnvironmentMismatch, match="no license left"):
        asked(pool(program(tmp_path, "echo no license left >&2; exit 3")))
    with pytest.raises(EnvironmentMismatch, match="cannot be asked"):
        asked(pool(program(tmp_path, "echo 'funcmq-environment {'")))
    with pytest.raises(EnvironmentMismatch, match="does not answer within 0 s"):
        asked(pool(program(tmp_path, "sleep 600 & wait")), 0.2)
