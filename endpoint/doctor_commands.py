"""`funcmq endpoint doctor NAME`: can this endpoint work on this host?"""

from __future__ import annotations

import dataclasses
import json

import click

from funcmq.endpoint.looks import OUTPUT

FAILED = 6


@click.command()
@click.argument("name")
@OUTPUT
def doctor(name: str, output: str) -> int:
    """Look at everything that an endpoint of this host needs: one line each, and what to do next.

    Exit status 6 if something failed.
    """
    import asyncio

    from funcmq.broker.checkup import lines
    from funcmq.endpoint.checks import examine

    found = asyncio.run(examine(name))
    if output == "table":
        for line in lines(found):
            click.echo(line)
    else:
        rows = [dataclasses.asdict(finding) for finding in found]
        click.echo(json.dumps(rows, indent=2) if output == "json" else "\n".join(json.dumps(row) for row in rows))
    return FAILED if any(finding.verdict == "failed" for finding in found) else 0


COMMANDS = (doctor,)
