"""`lib.process_utils`: functions in processes of their own. A worker does not look after those: its link has to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from multiprocessing import Process
from typing import Any


def async_runner(func: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> None:
    """Run an async function to its end."""
    asyncio.run(func(*args))


def start_process(func: Callable[..., Any], *args: Any) -> Process:
    """Call a function in a process of its own."""
    process = Process(target=func, args=args)
    process.start()
    return process


def start_async_process(func: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Process:
    """Run an async function in a process of its own."""
    return start_process(async_runner, func, *args)
