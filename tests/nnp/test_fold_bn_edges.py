"""Folding where files differ from what Neural Network Console writes."""

from __future__ import annotations

import pytest

from nnabla_dqa.nnp.check import check_file
from nnabla_dqa.nnp.convert import convert_file
from nnabla_dqa.nnp.deploy import deploy_file
from nnabla_dqa.nnp_format.archive import Archive
from tests.nnp.networks import Net
from tests.nnp.test_fold_bn import assert_close, folded, types


@pytest.mark.filterwarnings("ignore::nnabla_dqa.AttentionWarning")
def test_a_graph_saved_as_in_training_is_deployed_to_run(tmp_path):
    """Nothing in the file says that the network is run; deploying does."""
    net = Net()
    h = net.conv(net.input("x", 4, 5, 5), 4, "l/W", name="Conv")
    net.affine(net.normalize(h, "bn", batch_stat=True), 3, "fc/W")
    result, plain, fold = folded(tmp_path, net)
    assert any("normalizes by running statistics now" in m for m in result.messages)
    assert "BatchNormalization" in types(tmp_path / "d.nnp")
    assert "BatchNormalization" not in types(tmp_path / "f.nnp")
    assert_close(fold, plain)


def test_a_range_along_another_axis_is_not_folded(tmp_path):
    net = Net()
    h = net.conv(net.input("x", 4, 5, 5), 4, "l/W", name="Conv")
    net.executor("net", ["x"], [net.normalize(h, "bn")])
    convert_file(net.save(tmp_path / "m.nnp"), tmp_path / "c.nnp", "minmax:2@1")
    deploy_file(tmp_path / "c.nnp", tmp_path / "f.nnp", fold=True, allow_untrained=True)
    assert "BatchNormalization" in types(tmp_path / "f.nnp")
    assert check_file(tmp_path / "f.nnp").ok


def test_functions_without_inputs_and_the_list_of_parameters(tmp_path):
    net = Net()
    h = net.conv(net.input("x", 4, 5, 5), 4, "l/W", name="Conv", bias=False)
    y = net.normalize(h, "bn")
    net.executor("net", ["x"], [y])
    constant = net.network.function.add(name="C", type="Constant", output=["unused"])
    constant.constant_param.shape.dim.extend((1,))
    net.network.variable.add(name="unused", type="Buffer").shape.dim.extend((1,))
    listed = net.definition.executor[0].parameter_variable
    if not listed:
        listed.add(variable_name="l/W")
    convert_file(net.save(tmp_path / "m.nnp"), tmp_path / "c.nnp", "minmax:2")
    deploy_file(tmp_path / "c.nnp", tmp_path / "f.nnp", fold=True, allow_untrained=True)
    archive = Archive.read(tmp_path / "f.nnp")
    names = {v.variable_name for v in archive.definition.executor[0].parameter_variable}
    assert names == set(archive.parameters) == {"l/W", "l/b"}
