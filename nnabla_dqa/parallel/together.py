"""What all communicators of several processes share: the lifeline and how they end."""

from __future__ import annotations

import atexit
import sys
from typing import Optional

from nnabla_dqa.parallel.base import Communicator, ParallelError
from nnabla_dqa.parallel.launch import Launch
from nnabla_dqa.parallel.lifeline import Lifeline, end_process


class Together(Communicator):
    """A communicator whose ranks notice when another is gone.

    Subclasses set ``rank``, ``size`` and ``local_rank`` and can communicate
    before they call this constructor.

    Args:
        launch: What the launcher says.

    Raises:
        ParallelError: Rank or size are not those of ``launch``, or the ranks
            cannot connect.
    """

    _EXIT_WAIT = 4.0
    _EXIT_LIMIT = 30.0

    _OTHER_MPI = "use the mpiexec of the MPI that is used"

    def __init__(self, launch: Optional[Launch] = None) -> None:
        if launch is not None and (launch.rank, launch.size or self.size) != (self.rank, self.size):
            raise ParallelError(
                f"{launch.launcher} started this process as rank {launch.rank} of "
                f"{launch.processes}, but it sees itself as rank {self.rank} of {self.size}: "
                f"{self._OTHER_MPI}"
            )
        self._lifeline: Optional[Lifeline] = Lifeline.between(self.rank, self.size, self.gather)

    def close(self) -> None:
        """See :meth:`Communicator.close`; a second call does nothing."""
        if self._lifeline is not None:
            self.barrier()
            self._lifeline.close()
            self._lifeline = None

    def leave(self) -> None:
        """See :meth:`Communicator.leave`.

        MPI would wait for the other ranks at the end of the process, so the
        process ends without it, half a minute from now at the latest.
        """
        if self._lifeline is not None:
            self._lifeline.leave(self._EXIT_LIMIT)
            atexit.register(self._end)

    def abort(self, message: str) -> None:
        """See :meth:`Communicator.abort`."""
        sys.stderr.write(f"{message}\n")
        if self._lifeline is not None:
            self._lifeline.leave(self._EXIT_LIMIT)
        self._end()

    def _end(self) -> None:
        if self._lifeline is not None:
            # A launcher that kills the others when this process ends must not be quicker than
            # their own messages.
            self._lifeline.wait_for_others(self._EXIT_WAIT)
        end_process()
