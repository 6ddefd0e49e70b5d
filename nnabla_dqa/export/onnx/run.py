"""ONNX files in ONNX Runtime."""

from __future__ import annotations

from typing import Any, Dict, Mapping, Optional, Tuple

import numpy as np

from nnabla_dqa._util.files import PathLike
from nnabla_dqa._util.messages import one_line
from nnabla_dqa.export.errors import ExportError
from nnabla_dqa.export.onnx.packages import onnxruntime

_WARNINGS_TOO = 3


class OnnxSession:
    """An ONNX file in ONNX Runtime on the CPU.

    Args:
        path: The file.

    Raises:
        ExportError: ONNX Runtime does not load it.
        OnnxMissingError: The package ``onnxruntime`` is not installed.
    """

    def __init__(self, path: PathLike) -> None:
        package = onnxruntime()
        self._path = path
        options = package.SessionOptions()
        options.log_severity_level = _WARNINGS_TOO
        try:
            self._session: Any = package.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            # Its errors have no class in common but Exception.
            raise ExportError(f"{path}: ONNX Runtime does not load it: {one_line(error)}") from None
        self.version = str(package.__version__)

    @property
    def inputs(self) -> Tuple[str, ...]:
        """Names of what it takes."""
        return tuple(value.name for value in self._session.get_inputs())

    @property
    def outputs(self) -> Tuple[str, ...]:
        """Names of what it gives."""
        return tuple(value.name for value in self._session.get_outputs())

    @property
    def shapes(self) -> Dict[str, Tuple[Optional[int], ...]]:
        """What it takes: the shape of each input, with None where it is open."""
        return {
            value.name: tuple(n if isinstance(n, int) else None for n in value.shape)
            for value in self._session.get_inputs()
        }

    @property
    def batch_size(self) -> int:
        """The batch that is built into it; 0: it takes any.

        Raises:
            ExportError: Its inputs have batches of several sizes.
        """
        sizes = {shape[0] for shape in self.shapes.values() if shape and shape[0] is not None}
        if len(sizes) > 1:
            raise ExportError(
                f"{self._path}: its inputs have batches of {', '.join(map(str, sorted(sizes)))}"
            )
        return next(iter(sizes), 0)

    def run(self, inputs: Mapping[str, np.ndarray]) -> Dict[str, np.ndarray]:
        """The outputs by name, for an array for each input.

        Raises:
            ExportError: ONNX Runtime does not run it with these.
        """
        feeds = {name: np.asarray(inputs[name], np.float32) for name in self.inputs}
        try:
            found = self._session.run(list(self.outputs), feeds)
        except Exception as error:
            raise ExportError(
                f"{self._path}: ONNX Runtime does not run it: {one_line(error)}"
            ) from None
        return dict(zip(self.outputs, found))
