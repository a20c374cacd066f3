"""The processes of a distributed run (torchrun, accelerate launch), by accelerate's PartialState.

A run of one process never imports accelerate for them.
"""

from __future__ import annotations

import hashlib
import os
import platform
import secrets
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from functools import cache
from typing import Any

PATIENCE = timedelta(days=2)  # of the processes that wait while the first one makes an artifact alone


def rank() -> int:
    """This process's number in a distributed run; 0 otherwise."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes a distributed run has; 1 otherwise."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process prints and writes for all of a distributed run."""
    return rank() == 0


def name_command() -> str:
    """A name for this command, its start and something unique, that all processes of a launcher on a machine share.

    It stands in the environment as `DISTILL_COMMAND`, for the config's log folders and for processes started from here.
    """
    if world_size() == 1:
        started, unique = time.time(), secrets.token_hex(3)
    else:  # the launcher is the one thing that torchrun's processes have in common before they talk to each other
        import psutil

        launcher = psutil.Process(os.getppid())
        started = launcher.create_time()
        unique = hashlib.sha256(f"{platform.node()} {launcher.pid} {started}".encode()).hexdigest()[:6]
    name = f"{time.strftime('%Y-%m-%d_%H-%M-%S', time.localtime(started))}-{unique}"
    os.environ["DISTILL_COMMAND"] = name
    return name


@cache
def _state() -> Any:
    """Join the other processes, before Trainer does with a shorter timeout."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)


def wait_for_everyone() -> None:
    """Return when every process has come here."""
    if world_size() > 1:
        _state().wait_for_everyone()


def from_main_process(value: Any) -> Any:
    """The main process's value, in every process; all must call it. The value must be picklable."""
    if world_size() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    _state()
    values = [value]
    broadcast_object_list(values, from_process=0)
    return values[0]


def gathered(value: Any) -> list[Any]:
    """Every process's value, in the order of the processes; all must call it. The values must be picklable."""
    if world_size() == 1:
        return [value]
    import torch

    _state()
    values: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def share(items: Sequence[Any]) -> Sequence[Any]:
    """This process's part of the items."""
    return items[rank() :: world_size()]


def leave_processes() -> None:
    """Leave the other processes, as the last thing that a process does when all went well.

    Threads of the group that outlive the interpreter now and then abort a process that has done all its work (PyTorch
    issue 190489). Leaving waits for the others, so a process that failed alone must not.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def abandon(code: int) -> None:
    """End this process at once, so that the launcher ends the others, which may wait for it in a collective.

    Only for a process of several that failed alone.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
