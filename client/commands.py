"""The users' commands, gathered for `funcmq.cli`."""

from funcmq.client.account_commands import key, login, token, user, whoami
from funcmq.client.run_command import run
from funcmq.client.task_commands import function, task

__all__ = ["function", "key", "login", "run", "task", "token", "user", "whoami"]
