"""`python -m funcmq.endpoint NAME [--takeover]`: the daemon itself, as `funcmq endpoint start` detaches it."""

from __future__ import annotations

import sys

from funcmq.broker.errors import FuncmqError
from funcmq.endpoint.config import load
from funcmq.endpoint.process import serve


def main() -> int:
    """The exit status."""
    try:
        return serve(load(sys.argv[1]), takeover="--takeover" in sys.argv[2:])
    except FuncmqError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return error.exit


if __name__ == "__main__":
    sys.exit(main())
