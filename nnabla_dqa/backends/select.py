"""Which code computes the mixture of a layer that is built: fused kernels or standard functions."""

from __future__ import annotations

import contextlib
import contextvars
import importlib
import os
from typing import Any, Dict, Iterator, Optional, Set, Tuple

import nnabla as nn

from nnabla_dqa._util.warn import warn

NAMES = ("auto", "fused", "portable")

VARIABLE = "NNABLA_DQA_BACKEND"
"""The environment variable that is asked where no :func:`backend` block is open."""

LAYERS = ("auto", "onednn", "nnabla")

LAYERS_VARIABLE = "NNABLA_DQA_LAYERS"
"""Likewise, for what computes the layers of the package's own trainings and evaluations."""

_MODULES = {"cpu": "nnabla_dqa.backends.cpu", "cuda": "nnabla_dqa.backends.cuda.launch"}
_ACTIVATIONS = {
    "cpu": "nnabla_dqa.backends.cpu_activations",
    "cuda": "nnabla_dqa.backends.cuda.activations",
}

_chosen: contextvars.ContextVar[Optional[str]] = contextvars.ContextVar("backend", default=None)
_layers: contextvars.ContextVar[Optional[str]] = contextvars.ContextVar("layers", default=None)
_told: Set[str] = set()


class BackendWarning(UserWarning):
    """The fused kernels cannot be used; the portable functions compute the same, more slowly."""


class BackendError(RuntimeError):
    """The fused kernels were asked for by name and cannot be used."""


@contextlib.contextmanager
def backend(name: str = "", layers: str = "") -> Iterator[None]:
    """Choose what computes the mixtures and the layers built in this block.

    Args:
        name: ``"fused"``: one function of our own a layer, or an error;
            ``"portable"``: functions of NNabla alone; ``"auto"``: fused where
            it can be used, else portable with one warning. Outside of all
            blocks the environment variable ``NNABLA_DQA_BACKEND`` holds, and
            without it ``"auto"``. Empty: as outside of the block.
        layers: What computes convolutions and all else in ``dqa.train``, ``evaluate_file``
            and the commands: ``"onednn"``, or an error where it cannot be used; ``"nnabla"``;
            ``"auto"``: oneDNN on a CPU where it is installed. Outside of all blocks the
            environment variable ``NNABLA_DQA_LAYERS`` holds, and without it ``"auto"``. A
            training loop of your own calls :func:`nnabla_dqa.accelerate`. Empty: as outside
            of the block.

    Both have the same codes; mixtures and gradients agree to float32's
    rounding. A quantizer of your own has no kernel: its layers are portable
    under ``"auto"``.

    Raises:
        ValueError: There is no such backend.

    Examples:
        >>> import nnabla_dqa as dqa
        >>> with dqa.backend("portable"):
        ...     dqa.current_backend()
        'portable'
    """
    token = _chosen.set(_checked(name, "backend") if name else _chosen.get())
    layers_token = _layers.set(_checked(layers, "layers", LAYERS) if layers else _layers.get())
    try:
        yield
    finally:
        _layers.reset(layers_token)
        _chosen.reset(token)


def current_backend() -> str:
    """The name that holds for layers built here: ``"auto"``, ``"fused"`` or ``"portable"``.

    Raises:
        ValueError: ``NNABLA_DQA_BACKEND`` has another value.

    Examples:
        >>> import nnabla_dqa as dqa
        >>> with dqa.backend("auto"):
        ...     dqa.current_backend()
        'auto'
    """
    return _chosen.get() or _checked(os.environ.get(VARIABLE) or "auto", VARIABLE)


def current_layers() -> str:
    """What computes the layers of trainings begun here: ``"auto"``, ``"onednn"`` or ``"nnabla"``.

    Raises:
        ValueError: ``NNABLA_DQA_LAYERS`` has another value.
    """
    found = _layers.get() or os.environ.get(LAYERS_VARIABLE) or "auto"
    return _checked(found, LAYERS_VARIABLE, LAYERS)


def available_backends() -> Dict[str, str]:
    """What the fused kernels are on each device, or why there are none, in one line each.

    Examples:
        >>> import nnabla_dqa as dqa
        >>> sorted(dqa.available_backends())
        ['cpu', 'cuda']
    """
    described = {}
    for device, module in _MODULES.items():
        kernels = importlib.import_module(module)
        missing = kernels.why_not()
        described[device] = f"portable: {missing}" if missing else f"fused: {kernels.describe()}"
    return described


def mixtures_by(context: nn.Context) -> str:
    """What :func:`fused_kernels` would find for a context, in a few words and without a warning."""
    module, _, _ = _find(context)
    return "portable" if module is None else f"fused: {module.describe()}"


def why_portable(context: nn.Context) -> str:
    """Why there are no fused kernels for a context, in one line; empty if there are some."""
    return _find(context)[1]


def fused_kernels(context: nn.Context) -> Tuple[Optional[Any], str]:
    """The class of the kernels for a context, or None and why.

    Raises:
        BackendError: Fused ones were asked for by name and there are none.
    """
    module, reason, surprising = _find(context)
    if module is not None:
        return module.DEVICE_KERNELS, ""
    if current_backend() == "portable":
        return None, reason
    return unavailable(reason, surprising)


def activation_kernels(context: nn.Context) -> Any:
    """The class of the kernels for activations, of a context that has fused kernels."""
    return importlib.import_module(_ACTIVATIONS[device_of(context)]).DEVICE_ACTIVATIONS


def finite_checker(context: nn.Context) -> Optional[Any]:
    """The class of what looks for NaN and infinity in a context, None if there is none."""
    module, _, _ = _find(context)
    return None if module is None else module.DEVICE_FINITE


def _find(context: nn.Context) -> Tuple[Optional[Any], str, bool]:
    """The module of the kernels, or None, why, and whether a user would not expect that."""
    if current_backend() == "portable":
        return None, "the portable backend was chosen", False
    device = device_of(context)
    if device not in _MODULES:
        return None, f"there are none for context {list(context.backend)}", False
    module = importlib.import_module(_MODULES[device])
    missing = module.why_not()
    if missing:
        return None, f"on {device}: {missing}", module.expected()
    return module, "", False


def unavailable(reason: str, surprising: bool = False) -> Tuple[None, str]:
    """None and the reason, once a warning has told it where it is ``surprising``; or an error.

    Raises:
        BackendError: Fused kernels were asked for by name.
    """
    if current_backend() == "fused":
        raise BackendError(f"the fused backend cannot be used: {reason}")
    if surprising and reason not in _told:
        _told.add(reason)
        warn(
            f"the mixtures are computed by standard functions, which is slower: {reason} "
            f'(backend("portable") or {VARIABLE}=portable chooses them without this warning)',
            BackendWarning,
        )
    return None, reason


def device_of(context: nn.Context) -> str:
    """Where the functions of a context compute: ``"cpu"``, ``"cuda"`` or another backend."""
    backend = context.backend[0].partition(":")[0]
    return "cuda" if backend == "cudnn" else backend


def _checked(name: str, key: str, names: Tuple[str, ...] = NAMES) -> str:
    if name not in names:
        raise ValueError(f"{key}={name!r} is none of {', '.join(names)}")
    return name
