"""Laws of options: whatever cannot work is said at once, at the line that says it."""

import math
from typing import Any

import pytest

from funcmq.broker.messages import MAX_WAIT_S
from funcmq.client.options import Given, Scope, narrow, seconds


def on(scope: Scope | None = None, endpoint: Any = "polaris", **options: Any) -> Scope:
    return narrow(scope or Scope(), Given.of(endpoint, options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "expected"),
    [("10m", 600), ("90", 90), (90, 90), (1.5, 1.5), ("1h 30m", 5400), ("1h30m", 5400), ("2d", 172800), ("250ms", 0.25), (" 5s ", 5)],
)
def test_durations(given: float | str, expected: float) -> None:
    """Seconds as a number or as text, or sums of numbers with a unit."""
    assert seconds(given, "walltime") == pytest.approx(expected)


@pytest.mark.parametrize("given", ["", "m", "10 minutes", "-5s", 0, -1, math.inf, math.nan, "1e3", "5w"])
def test_no_durations(given: Any) -> None:
    """Anything else is a ValueError that names the option."""
    with pytest.raises(ValueError, match="walltime"):
        seconds(given, "walltime")


@pytest.mark.parametrize(
    ("option", "value", "error"),
    [
        ("walltme", 1, TypeError),
        ("walltime", [], TypeError),
        ("walltime", True, TypeError),
        ("retry", "always", ValueError),
        ("retry", -1, ValueError),
        ("retry", 1.5, TypeError),
        ("expires", "8d", ValueError),
        ("priority", 11, ValueError),
        ("priority", "1", TypeError),
        ("resources", {"node": 1}, TypeError),
        ("resources", 3, TypeError),
        ("group", 3, TypeError),
        ("key", 3, TypeError),
        ("offline", "maybe", ValueError),
        ("by_value", ["os"], TypeError),
        ("strategy", "x", ValueError),
        ("endpoint", 3, TypeError),
        ("endpoint", [], TypeError),
    ],
)
def test_wrong_options_are_refused_at_once(option: str, value: Any, error: type[Exception]) -> None:
    """An unknown option or a wrong type is a TypeError, a value out of range a ValueError, and each names the option."""
    with pytest.raises(error, match=option):
        on(**{"endpoint": "polaris", option: value})


def test_views_narrow() -> None:
    """An option stays until it is given again; None takes it back to its default."""
    first = on(walltime="10m", retry="never", pool="gpu", group="g")
    second = on(first, endpoint="theta", retry=3)
    assert (first.endpoint, first.how.retry) == ("polaris", "never")
    assert (second.endpoint, second.how.retry, second.how.walltime_s, second.how.pool, second.group) == ("theta", 3, 600, "gpu", "g")
    third = narrow(second, Given(walltime=None, retry=None, group=None, expires=None))
    assert (third.how.walltime_s, third.how.retry, third.group, third.expires_s) == (0, "infra", "", MAX_WAIT_S)


def test_several_endpoints() -> None:
    """A list stands for any of them, a list of one for that one."""
    assert on(endpoint=["a", "b"]).endpoint == ("a", "b")
    assert on(endpoint=["a"]).endpoint == "a"


def test_modules_by_value() -> None:
    """One module, or several."""
    assert on(by_value=math).by_value == (math,)
    assert on(by_value=[math, pytest]).by_value == (math, pytest)
    assert on(by_value=False).by_value is False
