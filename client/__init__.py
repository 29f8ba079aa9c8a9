"""The client room: what users import and type."""

from funcmq.client.client import Client
from funcmq.client.decorator import function
from funcmq.client.executor import Executor
from funcmq.client.futures import TaskFuture

__all__ = ["Client", "Executor", "TaskFuture", "function"]
