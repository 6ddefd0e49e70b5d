"""Every change that this package makes to NNabla's own classes and modules, in one place.

Read from the sources of NNabla 1.39.0 (``core/graph_def.py``, ``grad.py`` and
``function.pyx``). Whoever moves to another version has to look there again:

- ``ProtoGraphGenerator.__call__`` writes the portable graph in the place of a
  fused mixture. NNabla writes a function made in Python into an NNP without an
  error, and no NNabla can load it again. Everything that writes a graph,
  ``nnabla.utils.save.save`` and ``create_graph_from_variable`` included, walks
  over it with this class.
- ``nnabla.backward_functions.registry`` gets the gradients of fused mixtures
  as graphs, for ``nn.grad``.
- ``sys.modules`` gets four modules that NNabla's compiled code asks for in
  vain at each call of a function made in Python.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import sys
import types
from typing import Any, Callable, ContextManager, Dict, List, Optional

import nnabla as nn
import nnabla.context
import nnabla.functions as F
from nnabla.backward_functions import registry
from nnabla.core.graph_def import ProtoGraphGenerator

from nnabla_dqa.backends import fused_activations as activations
from nnabla_dqa.backends import portable
from nnabla_dqa.backends.dispatch import checks_before_saving
from nnabla_dqa.backends.fused import NAME, STATE, mixture_of, portable_outputs
from nnabla_dqa.quantization import quantizer_from_json
from nnabla_dqa.quantization.graph_ops import detach

NNABLA_VERSIONS = ("1.39.0",)
"""The versions of NNabla whose sources were read."""

writers: Dict[str, Callable[[Callable[[Any], Any], Any], None]] = {}
"""How functions of other types are written, by type: called with what writes a function and one of
them. :mod:`nnabla_dqa.onednn.saving` has one."""

_PORTABLE = {NAME: portable_outputs, activations.NAME: activations.portable_outputs}
_MARK = "_nnabla_dqa_writes_mixtures"
_CHECKED = "_nnabla_dqa_checked"
_WRITTEN = "_nnabla_dqa_written"
_MISSING = ("nnabla.nnabla", "nnabla.gc", "nnabla.nnabla_ext", "nnabla.nnabla_ext.cpu")


def install_hooks() -> None:
    """Make the changes that fused mixtures need. A second call does nothing."""
    _hook_into_saving()
    registry.setdefault(NAME, mixture_gradient)
    registry.setdefault(activations.NAME, activations_gradient)
    _spare_searches()


def _hook_into_saving() -> None:
    write = ProtoGraphGenerator.__call__
    # Our own mark and not `__wrapped__`, which any wrapper has. A wrapper made with
    # functools.wraps around ours carries the mark too, and calls ours.
    if hasattr(write, _MARK):
        return

    @functools.wraps(write)
    def write_portable(self: Any, function: Any) -> Any:
        if _is_written(self, function, write):
            return None
        writer = writers.get(function.info.type_name)
        if writer is not None:
            return writer(functools.partial(write_portable, self), function)
        as_portable = _PORTABLE.get(function.info.type_name)
        if as_portable is None:
            return write(self, function)
        if not hasattr(self, _CHECKED):
            for check in checks_before_saving:
                check()
            setattr(self, _CHECKED, True)
        given = function.inputs
        inputs = [_end(v) for v in given]
        with nn.context_scope(function.context), nn.auto_forward(False):
            outputs = as_portable(inputs, function.info.args)
        for new, old in zip(outputs, function.outputs):
            new.data = old.data
        outputs[0].visit(functools.partial(write, self))
        # In auto-forward mode NNabla frees what the last variable of a graph leaves behind, and
        # these arrays are still the live graph's.
        for new in outputs:
            new.data = nn.NdArray(new.shape)
        for leaf, v in zip(inputs, given):
            if v.parent is not None:
                leaf.data = nn.NdArray(v.shape)
        return None

    setattr(write_portable, _MARK, True)
    ProtoGraphGenerator.__call__ = write_portable


def _is_written(generator: Any, function: Any, by: Any) -> bool:
    """Whether ``by`` wrote the same function between the same arrays before.

    A graph on oneDNN and a variable kept out of it are two graphs over the same arrays; NNabla
    tells functions apart by themselves and would write what they share twice.
    """
    inputs = tuple(v.data for v in function.inputs)
    outputs = tuple(v.data for v in function.outputs)
    if any(data in inputs for data in outputs):
        return False  # in place: the arrays do not tell whether it has been done
    key = (by, function.info.type_name, repr(function.info.args), inputs, outputs)
    written = vars(generator).setdefault(_WRITTEN, set())
    if key in written:
        return True
    written.add(key)
    return False


def _end(v: nn.Variable) -> nn.Variable:
    """A variable at which the walk over the portable graph ends: it has been there before."""
    if v.parent is None:
        # NNabla's save registers the parameters that it meets, so it has to be this one.
        return v
    leaf = nn.Variable(v.shape)
    # NNabla tells variables apart by their arrays.
    leaf.data = v.data
    return leaf


def mixture_gradient(
    grad_inputs: List[nn.Variable],
    inputs: List[nn.Variable],
    input_shapes: Any,
    outputs: Any,
    output_shapes: Any,
    quantizers: List[Any],
    **rule: Any,
) -> List[Optional[nn.Variable]]:
    """``dL/dw = dL/dq`` and ``dL/da_k = <dL/dq, Q_k(w)>``; Q itself has no gradient here.

    Args:
        grad_inputs: ``dL/dq``, and with attention what came to the coefficients.
        inputs: w and, for K > 1, the coefficients, or alpha, temperature and hard.
        input_shapes: Not used; NNabla gives it.
        outputs: Not used.
        output_shapes: Not used.
        quantizers: The K quantizers as JSON: the arguments of the function.
        rule: Likewise the rest of the mixture, with attention.
    """
    dq = grad_inputs[0]
    if len(quantizers) == 1:
        return [dq]
    w = detach(inputs[0])
    known = [quantizer_from_json(content) for content in quantizers]
    parts = [F.sum(F.mul2(dq, portable.mixture(w, [q], None))) for q in known]
    da = F.concatenate(*[F.reshape(part, (1, 1)) for part in parts], axis=1)
    mixture = mixture_of({"quantizers": quantizers, **rule})
    if mixture is None:
        return [dq, da]
    # Another alpha of the same value, so that no gradient goes through what led to `da`.
    alpha, temperature, hard = F.identity(inputs[1]), detach(inputs[2]), detach(inputs[3])
    a = mixture.coefficients(dict(zip(STATE, (alpha, temperature, hard))))
    total = F.sum(F.mul2(a, F.add2(da, grad_inputs[1])))
    return [dq, *nn.grad([total], [alpha]), None, None]


def activations_gradient(
    grad_inputs: List[nn.Variable],
    inputs: List[nn.Variable],
    input_shapes: Any,
    outputs: Any,
    output_shapes: Any,
    **arguments: Any,
) -> List[Optional[nn.Variable]]:
    """The gradients of a mixture of activations by its portable graph; arguments as above."""
    copies = [F.identity(v) for v in inputs]
    made = activations.portable_outputs(copies, arguments)
    wanted = [v for v, given in zip(copies, inputs) if given.need_grad]
    found = dict(zip(wanted, nn.grad(made, wanted, grad_outputs=grad_inputs[: len(made)])))
    return [found.get(v) for v in copies]


class _ContextScope:
    """``nnabla.context_scope`` without the generator; ten of them are entered for each mixture."""

    __slots__ = ("_before", "_context")

    def __init__(self, context: nn.Context) -> None:
        self._context = context

    def __enter__(self) -> None:
        nnabla.context.context_level += 1
        self._before = nnabla.context.current_ctx
        nnabla.context.current_ctx = self._context

    def __exit__(self, *_: object) -> None:
        nnabla.context.context_level -= 1
        nnabla.context.current_ctx = self._before


_NO_SCOPE = contextlib.nullcontext()


def _context_scope(context: Optional[nn.Context]) -> ContextManager[Any]:
    """:class:`_ContextScope`, or nothing for a function that does not ask for the current context.

    Fused mixtures say so: each address that they ask for names its context.
    """
    return _NO_SCOPE if context is None else _ContextScope(context)


def _stand_in(real: types.ModuleType) -> types.SimpleNamespace:
    """What is found under a name that NNabla tries in vain: all that ``real`` has, but no path.

    It is no module. ``import`` asks each time for a path to search below, and a module takes
    longer to say that it has none than all the rest takes. What ``real`` gets later, a module
    that is imported then, ``import`` finds under the name of ``real``.
    """
    return types.SimpleNamespace(**{k: v for k, v in vars(real).items() if k != "__path__"})


def _spare_searches() -> None:
    """Answer imports of modules that NNabla asks for and does not have.

    NNabla's compiled code tries these names, by the rules of Python 2, whenever
    it hands an array to a function made in Python or to numpy, and only then takes
    ``nnabla``, ``gc`` and ``nnabla_ext``. Python searches the disk each time,
    some twenty times for a layer and update, which takes longer than a small
    layer's kernels; and None in ``sys.modules`` costs an exception each time.
    """
    for name in _MISSING:
        real = name.partition(".")[2]
        if name in sys.modules or _exists(name):
            continue
        modules: Dict[str, Any] = sys.modules
        modules[name] = _stand_in(importlib.import_module(real)) if _exists(real) else None
        if real == "nnabla":
            modules[name].context_scope = _context_scope


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        # Nor is what it would be in.
        return False
