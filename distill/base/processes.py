"""The processes of a distributed run (torchrun, accelerate launch), through accelerate's PartialState.

In a run of one process nothing here imports accelerate.
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

PATIENCE = timedelta(days=2)  # timeout of collectives: all processes wait while the main process makes an artifact


OF_LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")  # torchrun and accelerate set all
OF_MPI = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")
OF_ACCELERATE = "ACCELERATE_"  # what `accelerate launch` sets for accelerate, which would act beside the config


def settle_environment() -> list[str]:
    """Remove variables that another launcher left in the shell and that would act on this run of one process.

    Returns:
        A line on what is ignored, if there is something.

    Raises:
        ValueError: MPI started several processes, which would all do the same work.
    """
    removed = []
    missing = [name for name in OF_LAUNCHER if name not in os.environ]
    there = [name for name in OF_LAUNCHER if name in os.environ]
    if there and missing:
        removed += there
    several = not missing and os.environ["WORLD_SIZE"] != "1"
    if not several:
        sizes = [name for name in OF_MPI if os.environ.get(name, "1") not in ("", "1")]
        if sizes:
            raise ValueError(
                f"{sizes[0]}={os.environ[sizes[0]]}: processes that MPI starts are not supported; start them with"
                f" torchrun, or, if the variable was left in the shell, type: unset {' '.join(sizes)}"
            )
        removed += [name for name in os.environ if name.startswith(OF_ACCELERATE)]
    for name in removed:
        del os.environ[name]
    if several and "TORCHELASTIC_RUN_ID" not in os.environ:  # not started by torchrun or accelerate, so by hand
        return [
            f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']}, which wait for one another; if the variables"
            f" were left in the shell, type: unset {' '.join(OF_LAUNCHER)}"
        ]
    if not removed:
        return []
    why = f" ({', '.join(missing)} missing)" if there and missing else ""
    return [f"ignored, left in the shell by another launcher: {', '.join(removed)}{why}"]


def rank() -> int:
    """This process's rank in a distributed run; 0 otherwise."""
    return int(os.environ.get("RANK", "0"))


def world_size() -> int:
    """How many processes a distributed run has; 1 otherwise."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this process prints and writes for all of a distributed run."""
    return rank() == 0


def name_command() -> str:
    """A name for this command: its start time and a unique part, the same in all processes of a launcher on a machine.

    It is also set in the environment as `DISTILL_COMMAND`, for the config's log folders and for child processes.
    """
    if world_size() == 1:
        started, unique = time.time(), secrets.token_hex(3)
    else:  # before torchrun's processes can communicate, all that they have in common is their launcher
        import psutil

        launcher = psutil.Process(os.getppid())
        started = launcher.create_time()
        unique = hashlib.sha256(f"{platform.node()} {launcher.pid} {started}".encode()).hexdigest()[:6]
    name = f"{time.strftime('%Y-%m-%d_%H-%M-%S', time.localtime(started))}-{unique}"
    os.environ["DISTILL_COMMAND"] = name
    return name


@cache
def _state() -> Any:
    """Create the process group with `PATIENCE` as timeout, before Trainer would create it with a shorter one."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.accelerator.is_available(), timeout=PATIENCE)


def wait_for_everyone() -> None:
    """Return when every process has called this."""
    if world_size() > 1:
        _state().wait_for_everyone()


def from_main_process(value: Any) -> Any:
    """The main process's value, in every process. All processes must call it; the value must be picklable."""
    if world_size() == 1:
        return value
    from accelerate.utils import broadcast_object_list

    _state()
    values = [value]
    broadcast_object_list(values, from_process=0)
    return values[0]


def gathered(value: Any) -> list[Any]:
    """The values of all processes, by rank. All processes must call it; the values must be picklable."""
    if world_size() == 1:
        return [value]
    import torch

    _state()
    values: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def share(items: Sequence[Any]) -> Sequence[Any]:
    """This process's part of the items: every `world_size`-th, starting at its rank."""
    return items[rank() :: world_size()]


def leave_processes() -> None:
    """Destroy the process group, if there is one; the last call of a process that succeeded.

    Without it, threads of the group can outlive the interpreter and abort a process that has finished its work
    (PyTorch issue 190489). The call waits for the other processes, so a process that failed alone must not make it.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def abandon(code: int) -> None:
    """Exit with `code` at once, so that the launcher ends the other processes, which may wait in a collective.

    Only for a process of a distributed run that failed alone.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
