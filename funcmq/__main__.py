"""`python -m funcmq` is the `funcmq` command of this interpreter."""

from __future__ import annotations

from funcmq.cli import main

if __name__ == "__main__":
    main()
