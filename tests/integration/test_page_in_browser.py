"""The page at `/` in a real browser: what HTML parsers do not tell."""

from __future__ import annotations

from pathlib import Path

import pytest

from funcmq.dev.rabbitmq import Node
from tests import browser
from tests.forwarder_rig import call_task
from tests.integration.test_forwarder_root import fabric_of, token_of

SCRIPT = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


@pytest.mark.asyncio
@pytest.mark.skipif(browser.installed() is None, reason="no Chromium here; `apt-get install chromium-headless-shell`")
async def test_a_person_logs_in_looks_and_leaves(rabbitmq: Node, tmp_path: Path) -> None:
    """The form works under its own policy, the style is let in, no script of anybody runs, and scripts could not read the cookie."""
    async with fabric_of(rabbitmq, tmp_path) as fabric, browser.tab(browser.installed() or "", tmp_path / "browser") as tab:
        token = await token_of(fabric)
        endpoint = await fabric.endpoint(fabric.admin, "lab")
        function = await fabric.admin.register(SCRIPT)
        await endpoint.take_lease()
        await fabric.admin.post(fabric.admin.sign(fabric.admin.work(endpoint.id, function, [call_task()])))
        await tab.go(f"{fabric.running.url}/")
        assert await tab.value("getComputedStyle(document.body).maxWidth") == "1120px"
        await tab.value(f"document.querySelector('input[name=token]').value = {token!r}")
        await tab.submit("document.querySelector('form button').click()")
        assert await tab.value("location.pathname + location.search") == "/"
        text = await tab.value("document.body.innerText")
        assert "You are admin" in text
        assert SCRIPT in text
        assert await tab.value("document.cookie") == ""
        assert await tab.value("document.title") == "funcmq"
        await tab.submit("document.querySelector('form[action=\"/logout\"] button').click()")
        assert "Log in" in await tab.value("document.body.innerText")
        complaints = [said for said in tab.said if "favicon" not in said]
        assert not complaints
