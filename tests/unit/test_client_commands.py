"""Laws of the command line that need no fabric."""

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from funcmq.broker.errors import InvalidRequest, NotFound
from funcmq.broker.settings import resolve
from funcmq.client import output, profiles, run_command


def test_words_become_arguments() -> None:
    """JSON if it parses, else text; k=v are keywords."""
    args, kwargs = run_command.parse(["3", "1.5", "text", "[1, 2]", "null", "a=1", "b=x=y", "=z", "/p?q=1"])
    assert args == [3, 1.5, "text", [1, 2], None, "=z", "/p?q=1"]
    assert kwargs == {"a": 1, "b": "x=y"}


def test_functions_are_found_in_modules_and_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MODULE:FUNC, FILE.py:FUNC and dotted names name functions; a file's neighbours can be imported by it."""
    (tmp_path / "neighbour_of_test.py").write_text("def h(): return 5\n")
    (tmp_path / "file_of_test.py").write_text(
        "import neighbour_of_test\nclass C:\n    @staticmethod\n    def f(): return neighbour_of_test.h()\n"
    )
    monkeypatch.setattr(sys, "path", sys.path.copy())
    assert run_command.load("math:hypot")(3, 4) == 5
    assert run_command.load(f"{tmp_path}/file_of_test.py:C.f")() == 5
    for name in ("neighbour_of_test", "file_of_test"):
        del sys.modules[name]


def test_a_keyword_given_twice_is_refused() -> None:
    """Nobody knows which of the two was meant."""
    with pytest.raises(InvalidRequest, match="a is given twice"):
        run_command.parse(["a=1", "b=2", "a=3"])


@pytest.mark.parametrize(
    ("target", "error"),
    [
        ("math", InvalidRequest),
        (":f", InvalidRequest),
        ("no_such_module_x:f", NotFound),
        ("math:nope", NotFound),
        ("math:pi", NotFound),
        ("/no/file.py:f", NotFound),
    ],
)
def test_what_names_no_function(target: str, error: type[Exception]) -> None:
    """Each has its named error before anything is sent."""
    with pytest.raises(error):
        run_command.load(target)


def test_a_profile_is_written_and_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What login writes is what every later command reads; other profiles stay; nobody else can read the file."""
    for name in ("FUNCMQ_URL", "FUNCMQ_TOKEN", "FUNCMQ_KEY", "FUNCMQ_ENDPOINT", "FUNCMQ_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FUNCMQ_HOME", str(tmp_path / "home"))
    profiles.save_profile("a.b", {"url": "https://a", "token": 'quote"d\\', "endpoint": "e"})
    path = profiles.save_profile("second", {"url": "https://b", "token": "t", "key": "/k"})
    assert resolve().url == "https://b"
    first = resolve(profile="a.b")
    assert (first.url, first.token, first.endpoint) == ("https://a", 'quote"d\\', "e")
    profiles.save_profile("a.b", {"token": "new"})
    assert (resolve().token, resolve().endpoint) == ("new", "e")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_machine_has_one_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is made once, and only its owner can read it."""
    monkeypatch.setenv("FUNCMQ_HOME", str(tmp_path / "home"))
    (first, path), (second, _) = profiles.machine_key(), profiles.machine_key()
    assert first.public == second.public
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_tables_and_json_say_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """A table shows the columns uncut in a pipe, JSON everything, JSON lines one row a line."""
    rows = [{"name": "[red]x" * 40, "n": 1}, {"name": "b", "n": 2}]
    output.show_rows(rows, "table", {"NAME": output.field("name"), "N": output.field("n")})
    text = capsys.readouterr().out
    assert "[red]x" * 40 in text
    output.show_rows(rows, "json", {})
    assert json.loads(capsys.readouterr().out) == rows
    output.show_rows(rows, "jsonl", {})
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == rows
    output.show_one({"a": 1, "empty": ""}, "table")
    assert capsys.readouterr().out == "a  1\n"


@pytest.mark.parametrize("command", ["run", "task", "login", "token"])
def test_help_is_light(command: str) -> None:
    """--help of the users' commands imports no aiohttp and no aio_pika."""
    heavy = "{'aiohttp', 'aio_pika', 'parsl', 'sqlalchemy'}"
    code = f"import sys; from funcmq.cli import status; status(['{command}', '--help']); sys.exit(bool({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
