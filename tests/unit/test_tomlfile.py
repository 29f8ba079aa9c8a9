"""Laws of what is said about a broken TOML file: file, line and key, and what was probably meant."""

from pathlib import Path

import pytest

from funcmq.broker import human, tomlfile
from funcmq.broker.errors import ConfigurationError

TEXT = """\
# idle = 1
[endpoint]
name = "x"

[pools.cpu]
idle = 3
[pools."g.pu"]  # no dots in names, but quotes
idle = 4
"""


@pytest.mark.parametrize(
    ("key", "line"),
    [("endpoint.name", 3), ("pools.cpu.idle", 6), ("pools.cpu", 5), ("pools.cpu.missing", 5), ("nothing", 0), ("endpoint.missing", 2)],
)
def test_a_key_has_a_line(key: str, line: int) -> None:
    """The line of the key itself in its own table, else of the table where it would be; comments and other tables do not count."""
    assert tomlfile.line_of(TEXT, key) == line


def test_a_misspelt_key_is_told_with_the_right_one() -> None:
    """The message names file, line and key, the hint what was meant and what else there is."""
    with pytest.raises(ConfigurationError) as refused:
        tomlfile.unknown(Path("/e.toml"), "[pools.cpu]\nwalltme = 3\n", "pools.cpu.walltme", ["walltime", "idle"])
    assert refused.value.message == "/e.toml, line 2: pools.cpu.walltme is not known."
    assert refused.value.hint == "Did you mean walltime?  Allowed here: idle, walltime."


def test_what_is_not_toml_is_told_with_its_line(tmp_path: Path) -> None:
    """Half a file is a ConfigurationError that says where it ends."""
    file = tmp_path / "config.toml"
    file.write_text('[profiles.a]\nurl = "http')
    with pytest.raises(ConfigurationError, match=r"config.toml is not TOML: .*line 2"):
        tomlfile.read(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        tomlfile.read(file)


def test_times_are_for_people() -> None:
    """A time is told by its distance in one unit, a duration and a size likewise; 0 is nothing."""
    assert [human.ago(ms, 1000.0) for ms in (0, 999_000, 1_060_000)] == ["", "1 s ago", "in 1 min"]
    assert [human.duration(s) for s in (5, 120, 7200, 200_000)] == ["5 s", "2 min", "2 h", "2 d"]
    assert [human.size(n) for n in (12, 2048, 150 * 1024**2, 3 * 1024**5)] == ["12 B", "2.0 KiB", "150 MiB", "3072 TiB"]
    assert human.moment(1_000, 61.0).endswith("(1 min ago)")
