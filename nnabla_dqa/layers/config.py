"""What a quantized tensor is, written beside its state so that state is never mistaken.

The JSON of a tensor's function and mixture is a parameter itself, whose name
holds a hash of it::

    conv1/conv/dqa/config/1f0c9a4be2d37758    the bytes of the JSON, as float32

A checkpoint of another net that is loaded over a layer therefore leaves two of
them there, whichever came first, and whoever uses the layer's state sees it.
What cannot be seen is a file without them that is loaded over layers built
before: ``nn.save_parameters`` given ``nn.get_parameters()``, which leaves out what
has no gradient, writes one.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any, Dict, Mapping, NamedTuple, Sequence, Tuple

import numpy as np

from nnabla_dqa._util.messages import one_line
from nnabla_dqa.mixing import Mixture
from nnabla_dqa.quantization import StateEntry

WEIGHT, ACTIVATION = "weight", "activation"
"""What a quantized tensor can be; the state of an activation lies in a scope of this name."""

CONFIG = "config"
"""The scope of the array, in a tensor's state scope."""


class TensorConfig(NamedTuple):
    """What a quantized tensor is: the function that uses it, and what it goes through.

    ``tensor`` is ``"weight"``, or ``"activation"`` for what enters the function.
    """

    function: str
    mixture: Mixture
    tensor: str = WEIGHT

    def to_json(self) -> Dict[str, Any]:
        """The configuration as JSON values."""
        data = {"function": self.function, **self.mixture.to_json()}
        return data if self.tensor == WEIGHT else {**data, "tensor": self.tensor}

    def layout(self, shape: Sequence[int]) -> Mapping[str, StateEntry]:
        """The arrays of the tensor's state, for weights of this shape."""
        return self.mixture.state_layout(shape, self.tensor)

    def entry(self) -> Tuple[str, np.ndarray]:
        """Path in the state scope, and the array."""
        content = json.dumps(self.to_json(), sort_keys=True).encode()
        name = hashlib.sha256(content).hexdigest()[:16]
        _READ[name] = self
        return f"{CONFIG}/{name}", np.frombuffer(content, np.uint8).astype(np.float32)


_READ: Dict[str, TensorConfig] = {}
"""By the hash of their content, so that each is read once; holds no scope and no array."""


def read_config(name: str, array: Any) -> TensorConfig:
    """The configuration that was written as ``array`` under this name.

    Args:
        name: The hash.
        array: Anything whose ``d`` is the array, asked for only if it is needed.

    Raises:
        ValueError: The content does not fit its hash, or names a quantizer or a
            rule that is not known here.
    """
    known = _READ.get(name)
    if known is not None:
        return known
    values = np.asarray(array.d)
    content = values.astype(np.uint8).tobytes()
    whole = np.array_equal(values, values.astype(np.uint8))
    if not whole or hashlib.sha256(content).hexdigest()[:16] != name:
        raise ValueError(f"its configuration {name} is damaged")
    try:
        data = json.loads(content)
        tensor = str(data.get("tensor", WEIGHT))
        if tensor not in (WEIGHT, ACTIVATION):
            raise ValueError(f"tensor {tensor!r} is neither {WEIGHT} nor {ACTIVATION}")
        config = TensorConfig(str(data["function"]), Mixture.from_json(data), tensor)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"its configuration cannot be read: {one_line(error)}") from None
    _READ[name] = config
    return config


def the_config(state: Mapping[str, Any], path: str) -> TensorConfig:
    """The one configuration in a tensor's state scope.

    Args:
        state: The scope's dictionary.
        path: What messages call the layer.

    Raises:
        ValueError: There are two, so that parameters of another net were
            loaded over it, or it cannot be read.
    """
    entries = state.get(CONFIG, {})
    try:
        configs = [read_config(name, array) for name, array in entries.items()]
    except ValueError as error:
        raise ValueError(f"layer {path}: {error}") from None
    if len(configs) == 1:
        return configs[0]
    listed = " and to ".join(_described(config) for config in configs)
    raise ValueError(
        f"layer {path}: its state belongs to other quantizers too: to {listed}; the parameters of "
        f"another net were loaded. Load the right checkpoint, or, after nn.clear_parameters() and "
        f"building the model, dqa.load_weights(path), which takes the weights alone"
    )


def check_config(state: Mapping[str, Any], config: TensorConfig) -> None:
    """Refuse a state scope that belongs to something else than what is being built.

    Raises:
        ValueError: It does.
    """
    name, _ = config.entry()
    remedy = (
        "load the right checkpoint, or, after nn.clear_parameters(), its weights alone by "
        "dqa.load_weights(path); a new layer needs another name"
    )
    own = [key for key in state if key != ACTIVATION]
    if own and not state.get(CONFIG):
        raise ValueError(
            f"its state ({', '.join(own)}) does not say to which quantizers it belongs; {remedy}"
        )
    for other, array in state.get(CONFIG, {}).items():
        if f"{CONFIG}/{other}" != name:
            raise ValueError(
                f"its state belongs to other quantizers ({_described(read_config(other, array))}) "
                f"than {_described(config)}; {remedy}"
            )


def _described(config: TensorConfig) -> str:
    mixture = config.mixture
    target = f", target {mixture.target_quantizer}" if mixture.target else ""
    where = "in" if config.tensor == WEIGHT else "at the input of"
    return f"{mixture} mixed by {mixture.mixing}{target} {where} {config.function}"


def check_place(mixture: Mixture, tensor: str) -> None:
    """Raise ValueError if a quantizer of the mixture cannot stand there."""
    for q in mixture.quantizers:
        if tensor not in q.tensors:
            raise ValueError(f"{q} quantizes {' and '.join(f'{t}s' for t in q.tensors)} alone")
