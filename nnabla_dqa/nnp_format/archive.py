"""An NNP file as it lies on disk: a zip of a definition, parameters and what else its maker put in.

Nothing here knows about quantization. A file is read whole and checked; it is
written whole and atomically, with everything that was not changed kept.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any, Callable, Dict, List, Mapping, Optional, Tuple

from google.protobuf import text_format
from google.protobuf.message import DecodeError
from nnabla.utils import nnabla_pb2

from nnabla_dqa._util.files import PathLike
from nnabla_dqa._util.messages import one_line
from nnabla_dqa.nnp_format.limits import DAMAGE
from nnabla_dqa.nnp_format.members import VERSION, NNPError, read_members, write_members
from nnabla_dqa.nnp_format.parameters import Parameter, read_parameters, write_parameters

METADATA = "nnabla_dqa.json"
"""Member of an NNP with what this package says of it; loaders ignore it."""
_DEFINITION = (".nntxt", ".prototxt")
_PARAMETERS = (".protobuf", ".h5")


@dataclasses.dataclass
class Archive:
    """The contents of one NNP.

    ``definition`` is NNabla's ``NNablaProtoBuf`` without parameters;
    ``parameters`` maps names to arrays in the order of the file; ``metadata``
    is what this package says of it, None in a plain NNP; ``others`` are the
    members that are carried along as they are.
    """

    path: Path
    definition: Any
    parameters: Dict[str, Parameter]
    metadata: Optional[Dict[str, Any]]
    others: Dict[str, bytes]
    definition_member: str = "network.nntxt"
    parameter_member: str = "parameter.protobuf"

    @classmethod
    def read(cls, path: PathLike, max_bytes: Optional[int] = None) -> Archive:
        """Read and check a file.

        Args:
            path: The file.
            max_bytes: What its members, and the arrays in them, may unpack to.
                Default: 256 MiB, or 200 times the size of the file if that is
                more, and never above 4 GiB.

        Raises:
            NNPError: It is no zip, broken, unpacks to too much, has no
                network, a parameter that a network uses is missing or does
                not fit, or a function is unknown to NNabla.
            OSError: It cannot be read.
        """
        path = Path(path)
        members, limit = read_members(path, max_bytes)
        definition_member = _only(path, members, _DEFINITION, "network definition")
        if definition_member is None:
            raise NNPError(f"{path}: no network definition (.nntxt or .prototxt) inside")
        definition = _definition(path, definition_member, members.pop(definition_member))
        if not definition.network:
            raise NNPError(f"{path}: {definition_member} defines no network")
        parameter_member = _only(path, members, _PARAMETERS, "parameter file")
        parameters: Dict[str, Parameter] = {}
        try:
            if definition.parameter:
                parameters.update(read_parameters(".protobuf", definition))
                definition.ClearField("parameter")
            if parameter_member is not None:
                suffix = PurePosixPath(parameter_member).suffix
                parameters.update(read_parameters(suffix, members.pop(parameter_member), limit))
        except (*DAMAGE, KeyError, TypeError, DecodeError) as error:
            raise NNPError(
                f"{path}: parameters in {parameter_member or definition_member} cannot be read: "
                f"{one_line(error)}"
            ) from None
        archive = cls(
            path,
            definition,
            parameters,
            _metadata(path, members.pop(METADATA, None)),
            members,
            definition_member,
            parameter_member or "parameter.protobuf",
        )
        archive.check()
        return archive

    def write(self, path: PathLike, text: Optional[bytes] = None) -> int:
        """Write the contents to ``path`` as a deflated zip, atomically.

        Args:
            path: Ends in ``.nnp``.
            text: The definition as text; default: :attr:`definition`.

        Returns:
            The size of the file in bytes.
        """
        if text is None:
            # What was put together in memory must hold together as what is read.
            self.check()
            text = text_format.MessageToString(self.definition).encode()
        suffix = PurePosixPath(self.parameter_member).suffix
        members = {VERSION: self.others.get(VERSION) or _version()}
        members[self.definition_member] = text
        members[self.parameter_member] = write_parameters(suffix, self.parameters)
        members.update({k: v for k, v in self.others.items() if k != VERSION})
        if self.metadata is not None:
            members[METADATA] = json.dumps(self.metadata, indent=1).encode()
        return write_members(path, members)

    def check(self) -> None:
        """Raise NNPError unless definition and parameters fit each other and this NNabla."""
        self._check_functions()
        self._check_parameters()

    def _check_functions(self) -> None:
        import nnabla.function

        loops = {"RepeatStart", "RepeatEnd", "RecurrentInput", "RecurrentOutput", "Delay"}
        for network in self.definition.network:
            known = {v.name for v in network.variable}
            names = Counter(function.name for function in network.function)
            twice = [name for name, count in names.items() if count > 1]
            if twice:
                raise NNPError(
                    f"{self.path}: {names[twice[0]]} functions of network {network.name} are "
                    f"called {twice[0]!r}; NNabla needs names that differ"
                )
            for function in network.function:
                if function.type not in loops and not hasattr(nnabla.function, function.type):
                    raise NNPError(
                        f"{self.path}: function {function.name} of network {network.name} has "
                        f"type {function.type!r}, which this NNabla does not know"
                    )
                if _zero_divisor(function):
                    raise NNPError(
                        f"{self.path}: function {function.name} of network {network.name} has a "
                        f"{_zero_divisor(function)} that is not 1 or more"
                    )
                for name in (*function.input, *function.output):
                    if name not in known:
                        raise NNPError(
                            f"{self.path}: function {function.name} of network {network.name} "
                            f"uses variable {name!r}, which the network does not declare"
                        )

    def _check_parameters(self) -> None:
        for network in self.definition.network:
            used = {name for function in network.function for name in function.input}
            for v in network.variable:
                if v.type != "Parameter" or v.name not in used or v.repeat_id:
                    continue
                parameter = self.parameters.get(v.name)
                if parameter is None:
                    raise NNPError(
                        f"{self.path}: parameter {v.name} of network {network.name} is not in "
                        f"the file"
                    )
                if tuple(v.shape.dim) != parameter.array.shape:
                    raise NNPError(
                        f"{self.path}: parameter {v.name} has shape {parameter.array.shape}, "
                        f"network {network.name} declares {tuple(v.shape.dim)}"
                    )


def keep_only(repeated: Any, keep: Callable[[Any], bool]) -> None:
    """Remove in place the messages of a repeated field for which ``keep`` is False."""
    kept = [message for message in repeated if keep(message)]
    if len(kept) < len(repeated):
        del repeated[:]
        repeated.extend(kept)


def _zero_divisor(function: Any) -> str:
    """The argument below 1 by which NNabla would divide, ending the process; or ''."""
    for field, arguments in function.ListFields():
        for name in ("stride", "group"):
            if field.message_type is not None and name in field.message_type.fields_by_name:
                value = getattr(arguments, name)
                if any(n < 1 for n in getattr(value, "dim", [value])):
                    return name
    return ""


def _version() -> bytes:
    from nnabla.utils.nnp_format import nnp_version

    return f"{nnp_version()}\n".encode()


def _only(
    path: Path, members: Mapping[str, bytes], suffixes: Tuple[str, ...], kind: str
) -> Optional[str]:
    found: List[str] = [name for name in members if PurePosixPath(name).suffix in suffixes]
    if len(found) > 1:
        raise NNPError(f"{path}: {len(found)} {kind}s inside ({', '.join(found)}); one is expected")
    return found[0] if found else None


def _definition(path: Path, member: str, data: bytes) -> Any:
    proto = nnabla_pb2.NNablaProtoBuf()
    try:
        text_format.Merge(data, proto)
    except (text_format.ParseError, UnicodeDecodeError) as error:
        raise NNPError(
            f"{path}: {member} is not a definition that this NNabla understands (line:column : "
            f"reason): {one_line(error)}"
        ) from None
    return proto


def _metadata(path: Path, data: Optional[bytes]) -> Optional[Dict[str, Any]]:
    if data is None:
        return None
    try:
        metadata = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise NNPError(f"{path}: {METADATA} is not JSON: {one_line(error)}") from None
    if not isinstance(metadata, dict) or not any(
        isinstance(metadata.get(key), list) for key in ("layers", "tensors")
    ):
        raise NNPError(
            f"{path}: {METADATA} is not what nnabla_dqa writes: no list 'layers' or 'tensors'"
        )
    return metadata
