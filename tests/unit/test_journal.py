"""Laws of the journal: what it has said is on disk, is there after any crash, and belongs to one process."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import pytest

from funcmq.broker.errors import AlreadyRunning, ConfigurationError, StorageFull
from funcmq.broker.ids import new_id
from funcmq.endpoint.journal import FILE, Journal, file_system, open_journal
from funcmq.endpoint.tasks import State
from funcmq.endpoint.writes import Accept, Again, Buried, Closed, Ended, Fetch, Forget, Launched, Stored

pytestmark = pytest.mark.asyncio


def accept(ids: list[bytes], name: str = "one", forget: int = 10) -> Accept:
    return Accept(name, b"body of " + name.encode(), 5, range(len(ids)), b"".join(ids), forget)


async def states(journal: Journal) -> dict[bytes, tuple[State, int]]:
    return {task.id: (task.state, task.attempts) for bundle in (await journal.held()).bundles for task in bundle.tasks}


async def test_work_comes_back_as_it_was(tmp_path: Path) -> None:
    """After closing and opening, open tasks have their states and counts, and the bundle its exact bytes."""
    ids = [new_id() for _ in range(3)]
    journal = open_journal(tmp_path)
    assert (await journal.commit(accept(ids)))[0] == [0, 1, 2]
    await journal.commit(Launched(ids[0] + ids[1]), Again(ids[1], 1, 1, 0, 0))
    journal.close()
    journal = open_journal(tmp_path)
    assert await states(journal) == {ids[0]: (State.LAUNCHED, 1), ids[1]: (State.WAITING, 1), ids[2]: (State.WAITING, 0)}
    held = await journal.held()
    assert (held.bundles[0].id, held.bundles[0].body, held.bundles[0].received) == ("one", b"body of one", 5)
    journal.close()


async def test_an_id_is_taken_once(tmp_path: Path) -> None:
    """Of a bundle that comes again, or with some ids known, only what is new is taken; what has ended stays ended."""
    ids = [new_id() for _ in range(4)]
    journal = open_journal(tmp_path)
    await journal.commit(accept(ids[:2]))
    await journal.commit(Ended(ids[0], "result", "key", b"r"))
    assert (await journal.commit(accept(ids[:2])))[0] == []
    assert (await journal.commit(accept(ids, "two")))[0] == [2, 3]
    assert (await journal.commit(Accept("two", b"body of two", 5, [3, 1], ids[3] + ids[1], 10)))[0] == []
    assert set(await states(journal)) == set(ids[1:])
    journal.close()


async def test_a_bundle_of_nothing_new_leaves_no_trace(tmp_path: Path) -> None:
    """When all tasks of a bundle are done, sending it again does not keep its bytes."""
    ids = [new_id()]
    journal = open_journal(tmp_path)
    await journal.commit(accept(ids))
    await journal.commit(Ended(ids[0], "result", "key", b"r"), Closed("one"))
    assert (await journal.commit(accept(ids)))[0] == []
    assert (await journal.held()).bundles == []
    journal.close()


async def test_the_outbox_keeps_until_stored(tmp_path: Path) -> None:
    """A result bundle is there, with its exact bytes, until the front door has it."""
    first, second = new_id(), new_id()
    journal = open_journal(tmp_path)
    await journal.commit(accept([first, second]))
    await journal.commit(Ended(first, "r1", "k1", b"1"), Ended(second, "r2", "k2", b"2"))
    assert (await journal.held()).outbox == ["r1", "r2"]
    await journal.commit(Stored(["r1"]))
    assert (await journal.held()).outbox == ["r2"]
    assert await journal.commit(Fetch("r2"), Fetch("r1")) == [("k2", b"2"), None]
    journal.close()


async def test_tombstones_only_for_the_unknown(tmp_path: Path) -> None:
    """A cancel of a task that ended leaves no tombstone; one of a task that never came does."""
    known, unknown = new_id(), new_id()
    journal = open_journal(tmp_path)
    await journal.commit(accept([known]))
    assert (await journal.commit(Buried(known + unknown, 10)))[0] == [known]
    assert (await journal.held()).tombstones == {unknown}
    journal.close()


async def test_ids_are_forgotten_when_their_time_has_come(tmp_path: Path) -> None:
    """The sweep removes what ended and is past its time, and nothing else."""
    old, open_, young = [new_id() for _ in range(3)], [new_id()], [new_id()]
    journal = open_journal(tmp_path)
    await journal.commit(accept(old, "old", 10), accept(open_, "open", 10), accept(young, "young", 1000))
    await journal.commit(Ended(b"".join(old + young), "r", "k", b""), Closed("old"), Closed("young"))
    last = b""
    for _ in range(10):
        last = (await journal.commit(Forget(last, 100, slice=2)))[0]
        if not last:
            break
    assert (await journal.commit(accept(old, "again")))[0] == [0, 1, 2]
    assert (await journal.commit(accept(open_ + young, "more")))[0] == []
    journal.close()


async def test_commits_are_shared(tmp_path: Path) -> None:
    """Many callers at once are all answered, each with its own answer, by far fewer commits."""
    journal = open_journal(tmp_path)
    before = journal.commits
    ids = [new_id() for _ in range(200)]
    answers = await asyncio.gather(*(journal.commit(accept([identifier], identifier.hex())) for identifier in ids))
    assert answers == [[[0]]] * 200
    assert journal.commits - before < 100
    journal.close()


async def test_a_bad_write_fails_alone(tmp_path: Path) -> None:
    """Who shares a commit with a write that SQLite refuses is not refused with it."""

    class Broken:
        def apply(self, database: object) -> None:
            database.execute("INSERT INTO nowhere VALUES (1)")  # type: ignore[attr-defined]

    journal = open_journal(tmp_path)
    ids = [new_id()]
    good, bad = await asyncio.gather(journal.commit(accept(ids)), journal.commit(Broken()), return_exceptions=True)
    assert good == [[0]]
    assert isinstance(bad, StorageFull)
    assert set(await states(journal)) == set(ids)
    journal.close()


async def test_one_process_holds_a_journal(tmp_path: Path) -> None:
    """Another process is refused with the holder's pid, and may have it when the holder is gone."""
    code = f"""
from pathlib import Path
from funcmq.endpoint.journal import open_journal
open_journal(Path({str(tmp_path)!r}))
print('held', flush=True)
input()
"""
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None and holder.stdin is not None
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(AlreadyRunning, match=str(holder.pid)):
        open_journal(tmp_path)
    holder.kill()
    holder.communicate()
    open_journal(tmp_path).close()


async def test_identity_stays_until_made_anew(tmp_path: Path) -> None:
    """A journal keeps its id and birth; a new one in its place has others."""
    journal = open_journal(tmp_path)
    first = journal.identity
    journal.close()
    journal = open_journal(tmp_path)
    assert journal.identity == first
    journal.close()
    for path in tmp_path.glob(f"{FILE}*"):
        path.unlink()
    journal = open_journal(tmp_path)
    assert journal.identity.id != first.id
    journal.close()


async def test_network_file_systems_are_refused() -> None:
    """The file system of a folder is that of the deepest mount point above it."""
    mounts = "\n".join(
        (
            "21 1 254:0 / / rw - ext4 /dev/vda rw",
            "30 21 0:40 / /home rw,relatime shared:9 - nfs4 server:/home rw",
            "31 30 0:41 / /home/local rw - xfs /dev/vdb rw",
        )
    )
    assert file_system(Path("/home/anna/journal"), mounts) == "nfs4"
    assert file_system(Path("/home/local/journal"), mounts) == "xfs"
    assert file_system(Path("/homes"), mounts) == "ext4"


async def test_an_unusable_folder_is_a_configuration_error(tmp_path: Path) -> None:
    """A folder that cannot be made is told with what to set."""
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="journal_dir"):
        open_journal(tmp_path / "file" / "journal")


async def test_a_killed_process_loses_nothing_it_was_told(tmp_path: Path) -> None:
    """What a commit returned for is there after kill -9 at any moment."""
    code = f"""
import asyncio, json, os
from pathlib import Path
from funcmq.broker.ids import new_id
from funcmq.endpoint.journal import open_journal
from funcmq.endpoint.writes import Accept
async def main():
    journal = open_journal(Path({str(tmp_path)!r}))
    while True:
        identifier = new_id()
        await journal.commit(Accept(identifier.hex(), b'b', 1, [0], identifier, 1))
        print(identifier.hex(), flush=True)
asyncio.run(main())
"""
    writer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    told = [writer.stdout.readline().strip() for _ in range(200)]
    writer.kill()
    told += [line for line in writer.communicate()[0].splitlines() if len(line) == 32]
    journal = open_journal(tmp_path)
    held = {identifier.hex() for identifier in await states(journal)}
    journal.close()
    assert set(told) <= held, json.dumps(sorted(set(told) - held))


async def test_a_full_disk_fails_the_commit_and_nothing_else(tmp_path: Path) -> None:
    """What does not fit is StorageFull with a remedy and leaves no trace; what was there stays; with space again the same goes in."""
    ids = [new_id() for _ in range(2)]
    journal = open_journal(tmp_path)
    await journal.commit(accept(ids[:1]))
    large = Accept("two", bytes(100_000), 5, [0], ids[1], 10)
    journal._database.execute("PRAGMA max_page_count = 1")  # as many as it has: to SQLite the disk is full then
    with pytest.raises(StorageFull, match="cannot be written") as full:
        await journal.commit(large)
    assert "space" in full.value.hint
    assert set(await states(journal)) == {ids[0]}
    journal._database.execute("PRAGMA max_page_count = 1000000")
    assert await journal.commit(large) == [[0]]
    journal.close()
    journal = open_journal(tmp_path)
    assert set(await states(journal)) == set(ids)
    journal.close()
