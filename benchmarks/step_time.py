"""Time and memory of an update: a float net, a plainly quantized one, and DQA by each backend.

    python benchmarks/step_time.py --model resnet18_32 --batch 128 --context cudnn \\
        --type-config half --channel-last -o results/step_time.json

Each net makes its updates in turn with the others, after some that do not
count; medians in milliseconds. On a GPU the update ends when its loss has been
fetched and a weight been read, so nothing is left to be computed. Memory is
what the GPU holds more than before, by nvidia-smi, while a process trains this
net alone: the CUDA context and all that NNabla keeps for reuse, so the most it
needed. Without nvidia-smi it is unmeasured.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence

import nnabla as nn
import nnabla.functions as F
import nnabla.solvers as S
import numpy as np

import nnabla_dqa as dqa
from nnabla_dqa._util.devices import in_float32, is_half
from nnabla_dqa._util.files import write_atomically
from nnabla_dqa._util.tables import format_table
from nnabla_dqa.layers.scopes import make_mixture
from nnabla_dqa.mixing import Mixture
from nnabla_dqa.models import MODELS, build
from nnabla_dqa.quantization.notation import parse_quantizers
from nnabla_dqa.solver.finite_check import FiniteFlag
from nnabla_dqa.training.loss_scaler import TYPES, make_context

SCALE = 1024.0
"""Of the loss in half precision."""


class Net:
    """A net in a parameter scope of its own, with random images and its solver.

    Args:
        mixture: None for a float net.
        arguments: ``model``, ``width``, ``batch`` and ``channel_last``.
        backend: Of the mixtures.
    """

    def __init__(
        self, mixture: Optional[Mixture], arguments: argparse.Namespace, backend: str = "auto"
    ) -> None:
        self.scope: Dict[str, Any] = {}
        self.half = is_half(nn.get_current_context())
        self.flag = FiniteFlag()
        size = int(arguments.model.rsplit("_", 1)[1])
        rng = np.random.RandomState(0)
        shape = (size, size, 3) if arguments.channel_last else (3, size, size)
        self.x = nn.Variable((arguments.batch, *shape))
        self.t = nn.Variable((arguments.batch, 1))
        self.images = rng.rand(*self.x.shape).astype(np.float32)
        self.labels = rng.randint(0, 10, self.t.shape)
        with nn.parameter_scope("", self.scope), nn.auto_forward(False):
            with dqa.backend(backend):
                y = build(
                    arguments.model,
                    self.x,
                    10,
                    True,
                    mixture,
                    arguments.width,
                    arguments.channel_last,
                )
            with in_float32():
                self.loss = F.mean(F.softmax_cross_entropy(y, self.t))
                self.solver = self._solver(mixture)
            self.release = dqa.release_mixtures(self.loss)

    def _solver(self, mixture: Optional[Mixture]) -> Any:
        solver = S.Momentum(1e-4, 0.9)
        if mixture is not None:
            schedule = None
            if len(mixture.quantizers) > 1:
                self.loss = F.add2(self.loss, dqa.regularizer(5.0))
                schedule = dqa.TemperatureSchedule(steps=1_000_000)
            solver = dqa.attach(solver, schedule, restart=True)
        solver.set_parameters(nn.get_parameters())
        return solver

    def update(self) -> float:
        """As a training makes it, the images' way to the device included; milliseconds."""
        start = time.perf_counter()
        self.x.d, self.t.d = self.images, self.labels
        self.solver.zero_grad()
        self.loss.forward(clear_no_need_grad=True)
        loss = F.mul_scalar(self.loss.data, 1.0)
        scale = SCALE if self.half else 1.0
        self.loss.backward(scale, clear_buffer=True, function_post_hook=self.release)
        if self.half:
            # As the package's training does, with or without quantizers.
            self.flag.begin([v.grad for v in self.solver.get_parameters().values()])
            if not self.flag.read():
                raise SystemExit("a gradient overflowed; these times would mean nothing")
            self.solver.scale_grad(1 / SCALE)
        self.solver.weight_decay(5e-4)
        self.solver.update()
        if not np.isfinite(loss.data):
            raise SystemExit(f"the loss is {loss.data}")
        # A GPU has finished when a weight can be read.
        next(iter(self.solver.get_parameters().values())).data.get_data("r")
        return 1000 * (time.perf_counter() - start)


def device_memory(device: int) -> Optional[int]:
    """MiB in use on the GPU by everyone, None where nvidia-smi does not say."""
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run([*query, "-i", str(device)], check=True, capture_output=True)
        return int(done.stdout)
    except (OSError, subprocess.CalledProcessError, ValueError):
        return None


def memory_of(name: str, before: int, arguments: argparse.Namespace) -> Optional[int]:
    """MiB that the GPU holds more while a process of its own makes some updates with one net."""
    command = [sys.executable, __file__, *arguments.given, "--memory-of", name]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    after = int(done.stdout.split()[-1])
    return after - before


class Method(NamedTuple):
    """What the layers mix, None in a float net, and by which backend."""

    mixture: Optional[Mixture]
    backend: str = "auto"


def methods(arguments: argparse.Namespace) -> Dict[str, Method]:
    """Each method by its name; the plain net has the lowest bit width."""
    quantizers = parse_quantizers(arguments.quantizers).quantizers
    mixture = make_mixture(*quantizers)
    kinds = {
        "float": Method(None),
        f"plain, {quantizers[0]}": Method(make_mixture(quantizers[0])),
        f"DQA portable, {arguments.quantizers}": Method(mixture, "portable"),
    }
    if has_kernels(arguments.context):
        kinds[f"DQA fused, {arguments.quantizers}"] = Method(mixture, "fused")
    return kinds


def has_kernels(context: str) -> bool:
    """Whether there are fused kernels for a context of this name."""
    device = "cpu" if context == "cpu" else "cuda"
    return dqa.available_backends()[device].startswith("fused")


def parse(given: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", choices=sorted(MODELS), default="resnet18_32")
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--quantizers", default="minmax:2,4,8")
    parser.add_argument("--context", choices=("cpu", "cudnn", "cuda"), default="cpu")
    parser.add_argument("--type-config", choices=TYPES, default="float")
    parser.add_argument("--device", type=int, default=0)
    parser.add_argument("--tf32", action="store_true")
    parser.add_argument("--channel-last", action="store_true", help="GPUs only")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--warm-up", type=int, default=10)
    parser.add_argument("-o", "--output", type=Path, help="a .json file")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    arguments.given = list(given)
    return arguments


def measure(arguments: argparse.Namespace) -> List[Dict[str, Any]]:
    """A row for each method."""
    on_gpu = arguments.context != "cpu"
    before = device_memory(arguments.device) if on_gpu else None
    kinds = methods(arguments)
    memory: Dict[str, Any] = dict.fromkeys(kinds, "unmeasured")
    if before is not None:
        memory = {name: memory_of(name, before, arguments) for name in kinds}
    context = make_context(
        arguments.context, arguments.type_config, arguments.device, arguments.tf32
    )
    with nn.context_scope(context):
        nets = {name: Net(m.mixture, arguments, m.backend) for name, m in kinds.items()}
        times: Dict[str, List[float]] = {name: [] for name in nets}
        for i in range(arguments.warm_up + arguments.steps):
            for name, net in nets.items():
                taken = net.update()
                if i >= arguments.warm_up:
                    times[name].append(taken)
    return [
        {
            "net": name,
            "median_ms": round(statistics.median(taken), 3),
            "least_ms": round(min(taken), 3),
            "largest_ms": round(max(taken), 3),
            "memory_mib": memory[name],
        }
        for name, taken in times.items()
    ]


def main(given: Sequence[str]) -> None:
    arguments = parse(given)
    if arguments.memory_of is not None:
        context = make_context(
            arguments.context, arguments.type_config, arguments.device, arguments.tf32
        )
        with nn.context_scope(context):
            method = methods(arguments)[arguments.memory_of]
            net = Net(method.mixture, arguments, method.backend)
            for _ in range(3):
                net.update()
            print(device_memory(arguments.device))
        return
    rows = measure(arguments)
    base = rows[0]["median_ms"]
    table = [("update, ms", "median", "", "to float", "memory, MiB")]
    for row in rows:
        low, high = row["least_ms"], row["largest_ms"]
        ratio = f"{row['median_ms'] / base:.2f}"
        median = f"{row['median_ms']:.1f}"
        table.append((row["net"], median, f"{low:.1f} - {high:.1f}", ratio, str(row["memory_mib"])))
    keys = ("model", "width", "batch", "context", "type_config", "tf32", "channel_last", "steps")
    setting = {key: getattr(arguments, key) for key in keys}
    print(", ".join(f"{key} {value}" for key, value in setting.items()))
    print(format_table(table))
    if arguments.output is not None:
        content = {
            "setting": setting,
            "nnabla": nn.__version__,
            "machine": platform.processor() or platform.machine(),
            "nets": rows,
        }
        write_atomically(arguments.output, (json.dumps(content, indent=2) + "\n").encode())


if __name__ == "__main__":
    main(sys.argv[1:])
