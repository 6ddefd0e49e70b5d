"""What the networks of a definition are for: which are run, what in them is a loss."""

from __future__ import annotations

from typing import Any, Dict, List, Optional

LOSS_FUNCTIONS = (
    "AbsoluteError",
    "BinaryCrossEntropy",
    "CategoricalCrossEntropy",
    "EpsilonInsensitiveLoss",
    "HuberLoss",
    "SigmoidCrossEntropy",
    "SoftmaxCrossEntropy",
    "SquaredError",
)
"""NNabla's functions that compare a prediction (first input) with a target (second input)."""
_REDUCTIONS = ("Add2", "AddN", "AddScalar", "Mean", "MulScalar", "Reshape", "Sum")


def producer(network: Any, name: str) -> Optional[Any]:
    """The function of a network definition that computes variable ``name``; None for inputs."""
    return next((f for f in network.function if name in f.output), None)


def own_losses(network: Any) -> List[str]:
    """The outputs of a network definition that are a loss, as it is or reduced.

    A loss is what one of :data:`LOSS_FUNCTIONS` computes; means, sums and
    multiples of losses are losses.
    """
    used = {name for function in network.function for name in function.input}
    losses: Dict[str, None] = {}
    for function in network.function:
        reduced = function.type in _REDUCTIONS and any(name in losses for name in function.input)
        if function.type in LOSS_FUNCTIONS or reduced:
            losses.update(dict.fromkeys(function.output))
    return [name for name in losses if name not in used]


def target_inputs(network: Any) -> List[str]:
    """The variables of a network definition that a loss compares a prediction with."""
    return [f.input[1] for f in network.function if f.type in LOSS_FUNCTIONS and len(f.input) > 1]


def predictions(network: Any) -> List[str]:
    """The variables of a network definition that a loss compares with a target."""
    return [f.input[0] for f in network.function if f.type in LOSS_FUNCTIONS]


def running_networks(definition: Any) -> List[str]:
    """The networks that are run after training, in order.

    Those of the executors. Without executors, those that no optimizer trains
    and that hold no loss; if there are none, those that no optimizer trains.
    """
    names = [network.name for network in definition.network]
    runs = dict.fromkeys(e.network_name for e in definition.executor if e.network_name in names)
    trained = {optimizer.network_name for optimizer in definition.optimizer}
    untrained = [network for network in definition.network if network.name not in trained]
    plain = [network.name for network in untrained if not own_losses(network)]
    return list(runs) or plain or [network.name for network in untrained]
