"""What is run: nothing, so that only the way there and back is measured."""


def noop() -> None:
    """Return at once."""
