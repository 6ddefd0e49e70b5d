"""A training spread over processes, started by mpiexec: ``spread_program.py CASE FOLDER``.

The network is smooth and has no normalization: in a ReLU network a rounding error of 1e-7 grows by
orders of magnitude within 50 updates, whatever it comes from.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import nnabla as nn
import nnabla.functions as F
import numpy as np

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa.data import ArrayData
from nnabla_dqa.distributed import ParallelError, open_communicator
from nnabla_dqa.recipes.recipe import Recipe
from nnabla_dqa.training import loop as loops
from nnabla_dqa.training.trainable import Scores, Trainable


class Smooth(Trainable):
    """Two convolutions and an affine layer under tanh: 434 weights in three mixtures."""

    source = "random numbers"

    def __init__(self, comm):
        self.communicator = comm
        self.recipe = Recipe(
            "-",
            epochs=10,
            batch_size=32,
            solver="Momentum",
            learning_rate=0.05,
            weight_decay=1e-3,
            hard_fraction=0.2,
        )
        rng = np.random.RandomState(7)
        x = rng.randn(160, 2, 6, 6)
        self.data = ArrayData({"x": x, "y": (x.mean((1, 2, 3)) > 0).astype(np.int64)})
        self.scope = {}
        batch = self.recipe.batch_size // comm.size
        self.x, self.t = nn.Variable((batch, 2, 6, 6)), nn.Variable((batch, 1))
        # What a process makes of its own must not matter: rank 0 is the one to begin with.
        rng = np.random.RandomState(3)
        with (
            nn.parameter_scope("", self.scope),
            dqa.quantizers(dqa.SAWB(2), dqa.MinMax(4), dqa.MinMax(8)),
        ):
            h = F.tanh(PF.dqa_convolution(self.x, 8, (3, 3), name="first", rng=rng))
            h = F.tanh(PF.dqa_convolution(h, 3, (3, 3), name="second", rng=rng))
            y = PF.dqa_affine(h, 2, name="last", rng=rng)
            self.loss = F.add2(F.mean(F.softmax_cross_entropy(y, self.t)), dqa.regularizer(20))
            schedule = dqa.TemperatureSchedule(
                self.steps, start=10, hard_fraction=self.recipe.hard_fraction
            )
            self.solver = dqa.attach(self.recipe.make_solver(), schedule)
            self.solver.set_parameters(nn.get_parameters())

    def fill(self, batch):
        self.x.d, self.t.d = batch["x"], batch["y"]

    def evaluate(self):
        return Scores()

    def identity(self):
        return {"recipe": self.recipe.to_json()}


def write_slowly():
    """Leave a process that does not wait for the checkpoint the time to end the one that writes."""
    original = loops.write_checkpoint

    def slow(path, arrays, solver, notes):
        if notes["step"] > 20:
            time.sleep(2)
        original(path, arrays, solver, notes)

    loops.write_checkpoint = slow


def signal_at(step, rank, number):
    """An ``on_step`` that sends one process a signal in the middle of a step."""

    def on_step(trainable, done):
        if done == step and trainable.communicator.rank == rank:
            os.kill(os.getpid(), number)

    return on_step


def main(case: str, folder: Path) -> None:
    with open_communicator(nn.get_current_context()) as comm:
        job = Smooth(comm)
        loop = loops.Loop(
            job, folder / "checkpoint", save_seconds=0.0 if case == "killed" else 600.0
        )
        on_step = None
        if case in ("killed", "stopped"):
            on_step = signal_at(20, 1, signal.SIGKILL if case == "killed" else signal.SIGTERM)
        if case == "stopped":
            write_slowly()
        if case == "unequal" and comm.rank == 1:
            job.parameters()["first/conv/dqa/alpha"].d = [1.0, 2.0, 3.0]
        on_epoch = None
        if case == "between":

            def on_epoch(_):
                os.kill(os.getpid(), signal.SIGTERM)

        if case == "resumed":
            loop.resume()
        loop.run(on_epoch, on_step=on_step)
        np.savez(folder / f"rank{comm.rank}.npz", **{k: v.d for k, v in job.parameters().items()})


if __name__ == "__main__":
    try:
        main(sys.argv[1], Path(sys.argv[2]))
    except (dqa.TrainingStopped, ParallelError) as error:
        # In one piece: the parts of two processes' tracebacks are mixed.
        sys.exit(f"{type(error).__name__}: {error}")
