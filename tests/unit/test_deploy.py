"""deploy/systemd and deploy/compose: their ports, names and variables are the code's."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from funcmq.broker.errors import ConfigurationError
from funcmq.cli import COMMANDS
from funcmq.dev.brokers import AUTH_PORT, MANAGEMENT_PORT
from funcmq.dev.rabbitmq import QUESTIONS
from funcmq.forwarder.settings import NAMES, ServeSettings, load

DEPLOY = Path(__file__).parents[2] / "deploy"
SYSTEMD, COMPOSE = DEPLOY / "systemd", DEPLOY / "compose"
UNITS = ("funcmq-serve.service", "funcmq-endpoint@.service")
FENCED = 76


def _compose() -> dict[str, Any]:
    content = yaml.safe_load((COMPOSE / "compose.yaml").read_text())
    assert isinstance(content, dict)
    return content


def _environment() -> dict[str, str]:
    """Of `serve`, with the passwords filled in."""
    said: dict[str, str] = _compose()["services"]["serve"]["environment"]
    return {name: re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", re.sub(r"\$\{\w+\}", "abc", str(value))) for name, value in said.items()}


def _serve_settings() -> ServeSettings:
    return load({}, _environment())


def _unit(name: str) -> dict[str, str]:
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(SYSTEMD / name)
    return dict(parser["Service"])


@pytest.mark.parametrize("name", UNITS)
def test_units_are_valid(name: str, tmp_path: Path) -> None:
    """systemd finds nothing to say about the units, but for programs that are not installed here."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd is not on this machine")
    text = re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", (SYSTEMD / name).read_text(), flags=re.MULTILINE)
    unit = tmp_path / name.replace("@", "@example")
    unit.write_text(text)
    done = subprocess.run([analyze, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False)
    ours = [line for line in done.stderr.splitlines() if "funcmq" in line]
    assert (done.returncode, ours) == (0, []), done.stderr


@pytest.mark.parametrize("name", UNITS)
def test_units_run_our_commands(name: str) -> None:
    """A unit runs a command that exists, starts it again unless it said that this is of no use, and lets it end in order."""
    service = _unit(name)
    words = service["ExecStart"].split()
    assert Path(words[0]).name == "funcmq"
    assert words[1] in COMMANDS
    assert {str(FENCED), str(ConfigurationError.exit)} == set(service["RestartPreventExitStatus"].split())
    assert service["Restart"] == "on-failure"
    assert service["KillMode"] == "mixed"


def test_front_door_unit_keeps_the_password() -> None:
    """The front door's configuration comes as a credential, in no environment and no command line; the example sets what exists."""
    service = _unit("funcmq-serve.service")
    source = service["LoadCredential"].partition(":")[0]
    assert service["ExecStart"].endswith(f"--config %d/{source}")
    assert "PASSWORD" not in (SYSTEMD / "funcmq-serve.service").read_text()
    example = (SYSTEMD / "serve.toml").read_text()
    settings = load({}, {}, SYSTEMD / "serve.toml")
    assert (settings.broker.user, settings.port) == ("funcmq", 8600)
    commented = tomllib.loads(re.sub(r"^# (\w+ = )", r"\1", example, flags=re.MULTILINE))
    assert set(commented) <= set(NAMES)


def test_compose_says_what_serve_reads() -> None:
    """Every variable of the front door's container is a setting, and together they are complete."""
    assert set(_environment()) <= {f"FUNCMQ_{name.upper()}" for name in NAMES}
    settings = _serve_settings()
    assert (settings.host, settings.port) == ("0.0.0.0", 8600)
    assert settings.database.get_backend_name() == "postgresql"
    assert settings.vhost == "/"


def test_compose_names_meet() -> None:
    """Hosts and ports in URLs are services and their ports; RabbitMQ asks where the front door answers; volumes and files exist."""
    compose, settings = _compose(), _serve_settings()
    services = compose["services"]
    assert settings.broker.urls == ("amqp://rabbitmq:5672/",)
    assert settings.management_url == f"http://rabbitmq:{MANAGEMENT_PORT}"
    assert settings.database.host in services
    assert settings.broker.user == services["rabbitmq"]["environment"]["RABBITMQ_DEFAULT_USER"]
    assert settings.database.username == services["database"]["environment"]["POSTGRES_USER"]
    assert settings.database.database == services["database"]["environment"]["POSTGRES_DB"]
    asked = (COMPOSE / "90-compose.conf").read_text()
    assert settings.broker_auth_port == AUTH_PORT
    for what in QUESTIONS:
        assert f"auth_http.{what}_path = http://serve:{AUTH_PORT}/broker/{what}\n" in asked
    for service in services.values():
        for volume in service.get("volumes", ()):
            source = volume.partition(":")[0]
            assert source in compose["volumes"] or (COMPOSE / source).is_file()
        assert set(service.get("depends_on", ())) <= set(services)


def test_compose_publishes_two_ports_on_loopback() -> None:
    """From outside the host nothing is reachable, and the private listener not even from the host; no password is in the file."""
    published = [port for service in _compose()["services"].values() for port in service.get("ports", ())]
    assert sorted(published) == ["127.0.0.1:5672:5672", "127.0.0.1:8600:8600"]
    text = (COMPOSE / "compose.yaml").read_text()
    assert set(re.findall(r"PASS\w*: (\S+)", text)) <= {"${BROKER_PASSWORD:?see", "${DATABASE_PASSWORD:?see"}


def test_containers_override_what_is_there() -> None:
    """The compose file for RabbitMQ changes lines that the facility's file has, and adds none."""

    def keys(path: Path) -> set[str]:
        return set(re.findall(r"^([a-z0-9_.]+) =", path.read_text(), re.MULTILINE))

    assert keys(COMPOSE / "90-compose.conf") <= keys(DEPLOY / "rabbitmq" / "rabbitmq.conf")


def test_image_installs_an_extra_that_exists() -> None:
    """The image is built from this checkout with the extra that the front door needs."""
    setup = configparser.ConfigParser()
    setup.read(DEPLOY.parent / "setup.cfg")
    extras = re.findall(r"/source\[(\w+)\]", (COMPOSE / "Dockerfile").read_text())
    assert extras
    assert set(extras) <= set(setup["options.extras_require"])
