"""Which GPU a process computes on."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import Optional

import nnabla as nn

from nnabla_dqa.distributed import Communicator, ParallelError
from nnabla_dqa.distributed.open import is_cuda


def refuse_gpu_options(context: Optional[str], device: Optional[int], tf32: bool) -> None:
    """Raise ValueError if ``--device`` or ``--tf32`` was given for the CPU.

    Args:
        context: Of ``--context``; None is the CPU.
        device: Of ``--device``, None if it was not given.
        tf32: Whether ``--tf32`` was given.
    """
    if context not in (None, "cpu"):
        return
    for name, given in (("--device", device is not None), ("--tf32", tf32)):
        if given:
            raise ValueError(f"{name} is for a GPU; add --context cudnn, or leave it out")


def check_own_gpu(communicator: Communicator, context: nn.Context) -> None:
    """Check that no two processes compute on one GPU; all call it.

    Raises:
        ParallelError: On every rank; it names the processes and the GPU.
    """
    gpu = [_machine(), _gpu(int(context.device_id or 0))] if is_cuda(context) else None
    seen = communicator.gather(gpu)
    for rank, one in enumerate(seen):
        first = seen.index(one)
        if one is not None and first != rank:
            raise ParallelError(
                f"processes {first} and {rank} would both compute on GPU {one[1]} of their "
                f"machine; each needs its own: leave out --device, and start no more processes a "
                f"machine than it has GPUs"
            )


def _gpu(device: int) -> str:
    """The GPU behind a number: each process may be shown others."""
    shown = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    return shown[device] if device < len(shown) and shown[device] else str(device)


def _machine() -> str:
    """Differs between machines, also where they have the same name."""
    name = socket.gethostname()
    with contextlib.suppress(OSError):
        name += Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
    return name
