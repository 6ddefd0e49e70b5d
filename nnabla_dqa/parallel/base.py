"""What a training asks of the processes it is spread over."""

from __future__ import annotations

import abc
import hashlib
import sys
from typing import Any, List, Mapping, Optional, Sequence, Type, Union

import nnabla as nn
import numpy as np


class ParallelError(RuntimeError):
    """The processes cannot train together; one line says why and what to do."""


class Communicator(abc.ABC):
    """Processes ("ranks") that train together.

    Every method but :meth:`abort` is a collective: all ranks call it, in the
    same order. Used as a context manager it is closed at the end of the block;
    when the block ends with an exception, the other ranks are stopped.

    Attributes:
        rank: Number of this process, from 0.
        size: How many processes there are.
        local_rank: Number of this process among those of its machine.
    """

    rank: int
    size: int
    local_rank: int

    @abc.abstractmethod
    def average(self, arrays: Sequence[nn.NdArray]) -> None:
        """Replace arrays by their mean over the ranks, in float32.

        Args:
            arrays: Of the same number and shapes on every rank. The result is
                bit-equal on all ranks.
        """

    @abc.abstractmethod
    def broadcast(self, arrays: Sequence[nn.NdArray]) -> None:
        """Replace arrays by those of rank 0, in float32.

        Args:
            arrays: Of the same number and shapes on every rank.
        """

    @abc.abstractmethod
    def gather(self, value: Any) -> List[Any]:
        """The value of every rank, in their order, on every rank.

        Args:
            value: Something small that JSON can hold.

        Raises:
            TypeError: JSON cannot hold it.
        """

    @abc.abstractmethod
    def barrier(self) -> None:
        """Wait for all ranks."""

    @abc.abstractmethod
    def close(self) -> None:
        """Part in good order, once all ranks have come here."""

    @abc.abstractmethod
    def leave(self) -> None:
        """Have the other ranks stopped, and this process end with status 1 when it ends.

        Returns at once, so that the caller can still say what went wrong.
        """

    @abc.abstractmethod
    def abort(self, message: str) -> None:
        """Say ``message`` on stderr and end all ranks with status 1; does not return."""

    def __enter__(self) -> Communicator:
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Any, _: object) -> None:
        if kind is None or (kind is SystemExit and error.code in (None, 0)):
            self.close()
        else:
            self.leave()


class Alone(Communicator):
    """The one process of a training that is not spread."""

    rank = 0
    size = 1
    local_rank = 0

    def average(self, arrays: Sequence[nn.NdArray]) -> None:
        """Nothing to do."""

    def broadcast(self, arrays: Sequence[nn.NdArray]) -> None:
        """Nothing to do."""

    def gather(self, value: Any) -> List[Any]:
        """``[value]``."""
        return [value]

    def barrier(self) -> None:
        """Nothing to do."""

    def close(self) -> None:
        """Nothing to do."""

    def leave(self) -> None:
        """Nothing to do: there are no others."""

    def abort(self, message: str) -> None:
        """Say ``message`` and exit."""
        sys.stderr.write(f"{message}\n")
        raise SystemExit(1)


def check_equal(communicator: Communicator, named: Mapping[str, Union[np.ndarray, float]]) -> None:
    """Check that values are bit-equal on all ranks; all ranks call it.

    Args:
        communicator: The ranks.
        named: Values by name.

    Raises:
        ParallelError: On every rank; it names the first value that differs.
    """
    told = communicator.gather({name: _digest(value) for name, value in named.items()})
    for name in dict.fromkeys(name for one in told for name in one):
        values = [one.get(name, "missing") for one in told]
        for rank, value in enumerate(values):
            if value != values[0]:
                raise ParallelError(
                    f"{name} is not the same in all processes: {values[0]} on rank 0, {value} on "
                    f"rank {rank}; start all with the same files, recipe and versions"
                )


def _digest(value: Union[np.ndarray, float]) -> str:
    array = np.asarray(value)
    if array.size == 1:
        return repr(array.item())
    content = f"{array.dtype}{array.shape}".encode() + array.tobytes()
    return f"checksum {hashlib.sha256(content).hexdigest()[:16]}"
