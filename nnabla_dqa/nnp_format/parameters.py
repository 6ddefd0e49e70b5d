"""The parameters of an NNP: NNabla's protobuf and HDF5 forms."""

from __future__ import annotations

import io
import warnings
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Tuple, Union

import numpy as np
from nnabla.utils import nnabla_pb2

from nnabla_dqa.nnp_format.limits import Limit


class Parameter(NamedTuple):
    """An array and whether its file says that it is trained."""

    array: np.ndarray
    need_grad: bool = True


def read_parameters(
    suffix: str, data: Union[bytes, Any], limit: Optional[Limit] = None
) -> Dict[str, Parameter]:
    """The parameters in a member with this suffix (``.protobuf`` or ``.h5``), by name.

    Raises:
        LimitError: The arrays are larger than ``limit``; none has been read then.
        ValueError, OSError, DecodeError: The data are not what the suffix says.
    """
    return _read_h5(data, limit) if suffix == ".h5" else _read_protobuf(data)


def write_parameters(suffix: str, parameters: Mapping[str, Parameter]) -> bytes:
    """The inverse of :func:`read_parameters`."""
    return _write_h5(parameters) if suffix == ".h5" else _write_protobuf(parameters)


def _read_protobuf(data: Union[bytes, Any]) -> Dict[str, Parameter]:
    proto: Any = data
    if isinstance(data, bytes):
        proto = nnabla_pb2.NNablaProtoBuf()
        with warnings.catch_warnings():
            # Of half a message protobuf only warns.
            warnings.simplefilter("ignore")
            if proto.MergeFromString(data) != len(data):
                raise ValueError("not a protobuf message, or a broken one")
    parameters = {}
    for p in proto.parameter:
        shape = tuple(p.shape.dim)
        array = np.array(p.data, np.float32)
        if array.size != int(np.prod(shape)):
            raise ValueError(f"{p.variable_name} has {array.size} numbers, not shape {shape}")
        parameters[p.variable_name] = Parameter(array.reshape(shape), p.need_grad)
    return parameters


def _write_protobuf(parameters: Mapping[str, Parameter]) -> bytes:
    proto = nnabla_pb2.NNablaProtoBuf()
    for name, (array, need_grad) in parameters.items():
        p = proto.parameter.add()
        p.variable_name = name
        p.shape.dim.extend(array.shape)
        p.data.extend(array.ravel().tolist())
        p.need_grad = need_grad
    written: bytes = proto.SerializeToString()
    return written


def _read_h5(data: bytes, limit: Optional[Limit]) -> Dict[str, Parameter]:
    import h5py

    found: List[Tuple[int, str, Parameter]] = []
    with h5py.File(io.BytesIO(data), "r") as file:
        total = 0

        def measure(name: str, node: Any) -> None:
            # A compressed dataset, or one of which nothing was written, is larger than its file.
            nonlocal total
            if isinstance(node, h5py.Dataset) and limit is not None:
                total += node.size * node.dtype.itemsize
                limit.check(total, f"the arrays up to {name}")

        def visit(name: str, node: Any) -> None:
            if isinstance(node, h5py.Dataset):
                if node.dtype.kind not in "biuf":
                    raise ValueError(f"{name} holds {node.dtype}; numbers are needed")
                index = node.attrs.get("index", len(found))
                need_grad = bool(node.attrs.get("need_grad", True))
                array = np.asarray(node[...], np.float32)
                found.append((int(index), name, Parameter(array, need_grad)))

        file.visititems(measure)
        file.visititems(visit)
    return {name: parameter for _, name, parameter in sorted(found, key=lambda row: row[:2])}


def _write_h5(parameters: Mapping[str, Parameter]) -> bytes:
    import h5py

    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for index, (name, (array, need_grad)) in enumerate(parameters.items()):
            dataset = file.create_dataset(name, data=array)
            dataset.attrs["need_grad"] = need_grad
            dataset.attrs["index"] = index
    return buffer.getvalue()
