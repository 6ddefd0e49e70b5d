"""What is measured, how often, and how long that takes."""

from __future__ import annotations

import dataclasses
from typing import Dict, Tuple

BITS: Dict[int, Tuple[int, ...]] = {
    1: (2,),
    2: (2, 8),
    3: (2, 4, 8),
    4: (2, 3, 4, 8),
    5: (2, 3, 4, 6, 8),
}
"""The min-max quantizers for each K."""

Condition = Tuple[str, str]
"""A method and the phase of the schedule: ``("fused", "hard")``."""

SHORT: Tuple[Condition, ...] = (
    ("float", ""),
    ("own", ""),
    ("plain", ""),
    ("portable", "start"),
    ("fused", "start"),
)
LONG: Tuple[Condition, ...] = (*SHORT, ("portable", "hard"), ("fused", "hard"))
ALL: Tuple[Condition, ...] = (*LONG, ("fused", "late"))
CLOSE: Tuple[Condition, ...] = (
    ("float", ""),
    ("fused", "start"),
    ("fused", "hard"),
    ("plain", ""),
)


@dataclasses.dataclass(frozen=True)
class NetPlan:
    """Whole updates of one net.

    Attributes:
        model: One of ``nnabla_dqa.models.MODELS``.
        width: Of the model.
        batch: Images.
        rounds: In which every condition makes one update.
        warm_up: Rounds before them that do not count.
        prime: Updates of the float net before all others, which fill the pool
            of memory that all nets use.
        conditions: What takes turns.
        seconds: What one update takes on a core of 2026, for the estimate.
        more_rounds: Of the conditions in ``often`` alone, after the others.
        often: Those that lie close together, the float net among them.
    """

    model: str
    width: float
    batch: int
    rounds: int
    warm_up: int
    prime: int
    conditions: Tuple[Condition, ...]
    seconds: float
    more_rounds: int = 0
    often: Tuple[Condition, ...] = ()

    @property
    def key(self) -> str:
        """Names it in the results."""
        return f"{self.model}, width {self.width:g}, batch {self.batch}"


@dataclasses.dataclass(frozen=True)
class LayersPlan:
    """Updates of one net with its layers on oneDNN.

    Attributes:
        model: As above.
        width: Of the model.
        batch: Images.
        rounds: Of the nets on oneDNN.
        slow_rounds: Of NNabla's float net, in turns with that on oneDNN.
        seconds: What one update of NNabla's takes, for the estimate.
        reduced: With all threads alone.
        activations: Whether the net is there for quantized activations.
    """

    model: str
    width: float
    batch: int
    rounds: int
    slow_rounds: int
    seconds: float
    reduced: bool = False
    activations: bool = False

    @property
    def key(self) -> str:
        """Names it in the results."""
        return f"{self.model}, width {self.width:g}, batch {self.batch}"


@dataclasses.dataclass(frozen=True)
class Plan:
    """A whole run.

    Attributes:
        nets: Those whose updates are timed.
        layers: Those whose updates are timed with their layers on oneDNN.
        alone_rounds: Of the mixtures alone, of one net for each model.
        memory: Model, width, batch and methods whose memory is measured: a
            method is ``float``, ``own``, ``w+a``, or ``fused`` or ``portable`` and K, and
            ``on oneDNN`` behind it where the layers are there.
        kernel_shape: Of the weights for the kernels.
        kernel_rounds: Of the kernels.
        beside: Numbers that are written between two passes of the kernels.
        files: Model and width of nets that are converted and deployed.
        import_rounds: Processes that import.
        host: Model, width and rounds for the time of the host.
        gpu: Model, width, batch, steps, those before them.
        reduced: Too small for its figures to mean anything.
    """

    nets: Tuple[NetPlan, ...]
    layers: Tuple[LayersPlan, ...]
    alone_rounds: int
    memory: Tuple[Tuple[str, float, int, Tuple[str, ...]], ...]
    kernel_shape: Tuple[int, ...]
    kernel_rounds: int
    beside: int
    files: Tuple[Tuple[str, float], ...]
    import_rounds: int
    host: Tuple[str, float, int]
    gpu: Tuple[str, float, int, int, int]
    reduced: bool = False


_FUSED = tuple(f"fused {count}" for count in BITS)

FULL = Plan(
    nets=(
        NetPlan("resnet18_32", 1.0, 16, 2, 0, 1, LONG, 3.8, 7, CLOSE),
        NetPlan("resnet18_32", 1.0, 64, 1, 0, 1, SHORT, 15.0, 2, CLOSE[:2]),
        NetPlan("mobilenetv2_32", 0.25, 16, 5, 1, 0, ALL, 0.45, 20, CLOSE),
    ),
    layers=(
        LayersPlan("resnet18_32", 1.0, 16, 11, 2, 2.3),
        LayersPlan("resnet18_32", 1.0, 64, 5, 1, 9.0),
        LayersPlan("mobilenetv2_32", 0.25, 16, 25, 5, 0.3),
        LayersPlan("mobilenetv2_32", 0.25, 64, 15, 1, 1.1),
        LayersPlan("resnet20_32", 0.5, 128, 15, 2, 1.2, activations=True),
    ),
    alone_rounds=4,
    memory=(
        (
            "resnet18_32",
            1.0,
            16,
            (
                *("float", "own", *_FUSED, "portable 1", "portable 3", "portable 5"),
                *("float on oneDNN", "fused 3 on oneDNN"),
            ),
        ),
        (
            "resnet18_32",
            1.0,
            128,
            ("float", "fused 3", "float on oneDNN", "fused 3 on oneDNN"),
        ),
        ("resnet20_32", 0.5, 128, ("float", "float on oneDNN", "w+a on oneDNN")),
    ),
    kernel_shape=(512, 512, 3, 3),
    kernel_rounds=6,
    beside=1 << 24,
    files=(
        ("resnet8_32", 1.0),
        ("resnet20_32", 1.0),
        ("resnet20_32", 2.0),
        ("resnet18_32", 0.5),
        ("resnet18_32", 1.0),
    ),
    import_rounds=5,
    host=("resnet18_32", 0.03, 200),
    gpu=("resnet18_32", 1.0, 128, 30, 10),
)

QUICK = Plan(
    nets=(
        NetPlan("resnet8_32", 0.25, 2, 2, 1, 0, ALL, 0.02, 1, CLOSE),
        NetPlan("mobilenetv2_32", 0.05, 1, 1, 0, 1, SHORT, 0.02),
    ),
    layers=(
        LayersPlan("resnet8_32", 0.25, 2, 2, 1, 0.02, True),
        LayersPlan("resnet8_32", 0.25, 3, 2, 1, 0.02, True, True),
    ),
    alone_rounds=1,
    memory=(("resnet8_32", 0.25, 2, ("float", "own", "fused 1", "fused 3", "portable 3")),),
    kernel_shape=(64, 32, 3, 3),
    kernel_rounds=2,
    beside=1 << 12,
    files=(("resnet8_32", 0.25),),
    import_rounds=1,
    host=("resnet8_32", 0.05, 5),
    gpu=("resnet8_32", 0.5, 2, 2, 1),
    reduced=True,
)


def estimate(plan: Plan) -> Dict[str, float]:
    """Seconds that each section takes on two cores, very roughly."""
    fixed = 0.0 if plan.reduced else 1.0
    updates = sum(
        n.seconds
        * ((n.rounds + n.warm_up) * len(n.conditions) + n.prime + n.more_rounds * len(n.often))
        for n in plan.nets
    )
    image = plan.nets[0].seconds / plan.nets[0].batch
    memory = 0.0
    for _, _, batch, methods in plan.memory:
        memory += (4.0 + 2 * image * batch) * ((len(methods) + 1) // 2)
    return {
        "steps": updates + 10 * fixed,
        "layers": sum(
            n.seconds * (0.6 * n.rounds * 2 + 4 * (n.slow_rounds + 1)) for n in plan.layers
        ),
        "alone": plan.alone_rounds * 9 * fixed + 4,
        "memory": memory,
        "kernels": plan.kernel_rounds * 7 * fixed + 1,
        "files": 15 * fixed + 2,
        "imports": 2.5 * plan.import_rounds,
        "host": 0.025 * plan.host[2] + 3,
    }
