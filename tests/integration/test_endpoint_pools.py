"""A daemon with a pool whose interpreter does not fit: it says so everywhere, and the rest of the endpoint works."""

from __future__ import annotations

import sys
import venv
from pathlib import Path

import pytest

from funcmq.broker.connection import Broker
from tests.endpoint_rig import rig

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(120)]


def triple(x: int) -> int:
    return 3 * x


async def test_a_pool_that_does_not_fit_is_not_started_and_the_others_are(broker: Broker, tmp_path: Path) -> None:
    """The heartbeat has the versions of each pool and the pip line of the one that lacks them, the log has it too, and a task that names no
    pool runs in the one that works.
    """
    venv.create(tmp_path / "bare", symlinks=True)
    bare = tmp_path / "bare/bin/python"
    async with rig(broker, tmp_path / "rig") as endpoint:
        path = endpoint.config.folder / "endpoint.toml"
        table = f'[pools.bare]\nprovider = "local"\npython = "{bare}"\nworker_init = "unset PYTHONPATH"\n\n'
        path.write_text(path.read_text().replace("[pools.local]", table + "[pools.local]", 1))
        process = await endpoint.start()
        assert await endpoint.values(await endpoint.submit(triple, (2,)), 60) == [6]
        await endpoint.until(lambda: any(pool.reason for pool in endpoint.heartbeats[-1].pools))
        pools = {pool.name: pool for pool in endpoint.heartbeats[-1].pools}
        process.terminate()
        assert await process.wait() == 0
        endpoint.assert_clean()
        log = (endpoint.folder / "daemon.log").read_text()
    assert list(pools) == ["bare", "local"]
    assert (pools["local"].reason, pools["local"].workers, pools["bare"].workers) == ("", 2, 0)
    python = ".".join(map(str, sys.version_info[:3]))
    assert [pool.versions["python"] for pool in pools.values()] == [python, python]
    assert pools["local"].versions.keys() == {"python", "funcmq", "parsl", "cloudpickle", "msgspec", "msgpack", "pyzmq"}
    assert f"{bare} -m pip install 'funcmq[worker]==" in pools["bare"].reason
    assert pools["bare"].reason in log
    assert log.count("pip install") == 1
