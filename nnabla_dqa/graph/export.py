"""A trained graph in the format of another engine."""

from __future__ import annotations

from typing import Mapping

from nnabla_dqa._util.files import PathLike
from nnabla_dqa.export.files import Exported, check_export_output, write_deployed
from nnabla_dqa.export.onnx.write import AUTO
from nnabla_dqa.graph.deploy import deploy_graph
from nnabla_dqa.quantization.graph_ops import Variable


def export_graph(
    path: PathLike,
    inputs: Mapping[str, Variable],
    outputs: Mapping[str, Variable],
    select: str = "target",
    network: str = "main",
    variable_batch_size: bool = True,
    allow_untrained: bool = False,
    arithmetic: str = AUTO,
) -> Exported:
    """Deploy a graph and write it in another engine's format, without an .nnp between.

    Args:
        path: As ``target`` of :func:`nnabla_dqa.export.files.export_file`.
        inputs: Input variables by the names they shall have.
        outputs: Output variables by name, of the evaluation graph.
        select: As of :func:`nnabla_dqa.deploy`, like all that follows but ``arithmetic``.
        network: Name of the network.
        variable_batch_size: Leave the batch size open.
        allow_untrained: Deploy although no schedule has moved yet.
        arithmetic: As of ``export_file``.

    Raises:
        ValueError: As of ``deploy_graph``, or as of ``export_file``.
        OSError: The file cannot be written.

    Warns:
        AttentionWarning, UserWarning: As of ``deploy_graph``.

    Examples:
        >>> import nnabla as nn
        >>> import nnabla_dqa as dqa
        >>> import nnabla_dqa.parametric_functions as PF
        >>> x = nn.Variable((8, 64))
        >>> y = PF.dqa_affine(x, 10, name="fc", quantizers=[dqa.BWN()])
        >>> file = dqa.export_graph("small.onnx", {"x": x}, {"y": y})
        >>> print(file)
        part              bytes  at least
        ----------------  -----  --------
        weights           80     80
        ...
    """
    check_export_output(path, arithmetic)
    deployed = deploy_graph(inputs, outputs, select, network, variable_batch_size, allow_untrained)
    return write_deployed(deployed, path, arithmetic=arithmetic)
