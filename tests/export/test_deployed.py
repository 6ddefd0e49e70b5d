"""One deployed result for live graphs and files, and its way into a file and back."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Optional

import nnabla as nn
import nnabla.functions as F
import numpy as np
import pytest

import nnabla_dqa as dqa
import nnabla_dqa.parametric_functions as PF
from nnabla_dqa.export.deployed import Deployed, Deployment
from nnabla_dqa.export.nnp import read_nnp, write_nnp
from nnabla_dqa.graph.deploy import deploy_graph
from nnabla_dqa.nnp.check import check_file
from nnabla_dqa.nnp.convert import convert_file
from nnabla_dqa.nnp.deploy import deploy_file, deployed_from
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp_format.archive import Archive
from nnabla_dqa.nnp_format.members import NNPError
from nnabla_dqa.nnp_format.parameters import Parameter
from nnabla_dqa.quantization import Quantizer
from nnabla_dqa.quantization.base import Levels
from nnabla_dqa.quantization.registry import QUANTIZERS
from tests.nnp.networks import small


def live(axis=None, apply_w=None):
    rng = np.random.RandomState(0)
    x = nn.Variable.from_numpy_array(rng.randn(2, 3, 5, 5))
    h = PF.dqa_convolution(
        x, 4, (3, 3), name="c", quantizers=[dqa.MinMax(2, channel_axis=axis)], apply_w=apply_w
    )
    return {"x": x}, {"y": PF.dqa_affine(h, 3, name="fc", quantizers=[dqa.FullPrecision()])}


def from_file(folder, quantizers="minmax:2@channel"):
    convert_file(small().save(folder / "m.nnp"), folder / "c.nnp", quantizers)
    return deployed_from(NetworkFile.read(folder / "c.nnp"), allow_untrained=True)


def same(first, second):
    assert first.definition == second.definition
    assert first.parameters.keys() == second.parameters.keys()
    for name, (array, need_grad) in first.parameters.items():
        assert second.parameters[name].array.tobytes() == array.tobytes()
        assert second.parameters[name].need_grad == need_grad
    assert first.tensors.keys() == second.tensors.keys()
    for name, tensor in first.tensors.items():
        assert np.array_equal(tensor.codes, second.tensors[name].codes)
        for field in dataclasses.fields(tensor):
            a, b = (getattr(t, field.name) for t in (tensor, second.tensors[name]))
            if isinstance(a, np.ndarray):
                assert a.dtype == b.dtype
                assert np.array_equal(a, b)
            elif field.name == "levels" and a is not None:
                assert all(np.array_equal(x, y) for x, y in zip(a, b))
            else:
                assert a == b, field.name


@pytest.mark.parametrize("axis", [None, 0, 2])
def test_graph_to_file_and_back(axis, tmp_path):
    made = deploy_graph(*live(axis))
    assert type(made) is Deployed
    tensor = made.tensors["c/conv/W"]
    assert tensor.codes.dtype == np.uint8
    assert tensor.codes.shape == tensor.shape == (4, 3, 3, 3)
    assert tensor.codes.max() == 3
    np.testing.assert_array_equal(tensor.decode(), made.parameters["c/conv/W"].array)
    assert tensor.groups == (1 if axis is None else tensor.shape[axis])
    assert made.tensors["fc/affine/W"].codes is None
    with pytest.raises(ValueError, match="fc/affine/W: is a float tensor"):
        made.tensors["fc/affine/W"].decode()
    write_nnp(made, tmp_path / "d.nnp")
    same(made, read_nnp(tmp_path / "d.nnp"))


def test_file_to_file_and_back(tmp_path):
    made = from_file(tmp_path)
    assert type(made) is Deployed
    write_nnp(made, tmp_path / "d.nnp")
    same(made, read_nnp(tmp_path / "d.nnp"))
    for name, tensor in made.tensors.items():
        np.testing.assert_array_equal(tensor.decode(), made.parameters[name].array)


def test_both_ways_give_the_same_kind_of_result(tmp_path):
    of_graph = dqa.deploy(tmp_path / "g.nnp", *live())
    of_file = deploy_file_of(tmp_path)
    assert type(of_graph) is type(of_file) is Deployment is dqa.Deployment
    assert of_graph.networks == ("main",)
    assert of_graph.messages == ()
    assert [row.layer for row in of_file.layers] == ["c/conv", "fc/affine"]


def deploy_file_of(folder, **options):
    convert_file(small().save(folder / "m.nnp"), folder / "c.nnp", "minmax:2,4,8")
    return deploy_file(folder / "c.nnp", folder / "d.nnp", allow_untrained=True, **options)


def test_weights_changed_before_quantization_list_their_levels(tmp_path):
    made = deploy_graph(*live(0, lambda w: F.mul_scalar(w, 3.0)))
    tensor = made.tensors["c/conv/W"]
    assert tensor.scale is None
    assert len(tensor.levels) == 4
    assert tensor.codes.max() <= 3
    np.testing.assert_array_equal(tensor.decode(), made.parameters["c/conv/W"].array)
    write_nnp(made, tmp_path / "d.nnp")
    same(made, read_nnp(tmp_path / "d.nnp"))
    assert check_file(tmp_path / "d.nnp").ok


def with_levels(made, levels, codes):
    """The deployed network with other levels in ``c/conv/W``."""
    array = levels[0][codes]
    tensor = dataclasses.replace(
        made.tensors["c/conv/W"], levels=levels, array=array, scale=None, offset=None
    )
    made.tensors[tensor.name] = tensor
    made.parameters[tensor.name] = Parameter(array)
    return made


def test_any_set_of_levels(tmp_path):
    """Powers of two, as a quantizer that is not evenly spaced would give them."""
    made = deploy_graph(*live())
    levels = (np.array([-1, -0.25, 0.25, 1], np.float32),)
    codes = np.random.RandomState(0).randint(0, 4, (4, 3, 3, 3)).astype(np.uint8)
    write_nnp(with_levels(made, levels, codes), tmp_path / "d.nnp")
    assert check_file(tmp_path / "d.nnp").ok
    found = read_nnp(tmp_path / "d.nnp").tensors["c/conv/W"]
    np.testing.assert_array_equal(found.codes, codes)
    gain = np.array([1.5, -2, 0.5, 3], np.float32)
    scaled = found.scaled(gain, 0)
    assert scaled.groups == 4
    np.testing.assert_array_equal(scaled.codes, codes)
    np.testing.assert_array_equal(scaled.decode(), found.decode() * gain.reshape(4, 1, 1, 1))
    archive = Archive.read(tmp_path / "d.nnp")
    array = archive.parameters["c/conv/W"].array
    array[array == 1] = 0.5
    archive.write(tmp_path / "w.nnp")
    assert "weights off the grid, the first at" in check_file(tmp_path / "w.nnp").faults[0]


@dataclasses.dataclass(frozen=True)
class Powers(Quantizer):
    """The nearest of -m, -m/4, m/4 and m, where m is the largest magnitude."""

    bits: ClassVar[int] = 2
    channel_axis: Optional[int] = None

    def grid(self, statistics):
        absmax = F.max(F.abs(statistics.w), axis=1, keepdims=True)
        levels = F.concatenate(*[F.mul_scalar(absmax, c) for c in (-1, -0.25, 0.25, 1)], axis=1)
        small = F.less(F.abs(statistics.w), F.mul_scalar(absmax, 0.625))
        size = F.where(small, F.mul_scalar(absmax, 0.25) + statistics.w * 0, absmax + 0 * small)
        return Levels(F.mul2(size, F.sign(statistics.w)), levels)


@pytest.mark.parametrize("axis", [None, 0])
@pytest.mark.parametrize("fold", [False, True])
def test_a_quantizer_without_a_grid(axis, fold, tmp_path, monkeypatch):
    """From conversion to the check, also where its class is not known any more."""
    with monkeypatch.context() as known:
        known.setattr(QUANTIZERS, "_types", dict(QUANTIZERS._types))
        dqa.register_quantizer(Powers)
        net = small()
        convert_file(
            net.save(tmp_path / "m.nnp"),
            tmp_path / "c.nnp",
            dqa.Rules([Powers(axis)], [dqa.Rule("fc*", "float")]),
        )
        deploy_file(tmp_path / "c.nnp", tmp_path / "d.nnp", fold=fold, allow_untrained=True)
    tensor = read_nnp(tmp_path / "d.nnp").tensors["c/conv/W"]
    assert tensor.scale is None
    assert len(tensor.levels) == (3 if fold or axis == 0 else 1)
    assert tensor.codes.max() <= 3
    assert check_file(tmp_path / "d.nnp").ok
    if not fold:
        weights = net.parameters["c/conv/W"].array
        np.testing.assert_array_equal(tensor.decode(), Powers(axis).quantize(weights))


def test_only_deployed_files_are_read_back(tmp_path):
    with pytest.raises(NNPError, match=r"m\.nnp: is not a deployed file"):
        read_nnp(small().save(tmp_path / "m.nnp"))
    write_nnp(deploy_graph(*live()), tmp_path / "d.nnp")
    archive = Archive.read(tmp_path / "d.nnp")
    del archive.metadata["tensors"][0]["offset"]
    archive.write(tmp_path / "w.nnp")
    with pytest.raises(NNPError, match="quantization of c/conv/W cannot be read: key 'offset' is"):
        read_nnp(tmp_path / "w.nnp")
    archive.metadata["format"] = 3
    archive.write(tmp_path / "w.nnp")
    with pytest.raises(NNPError, match="has format 3; this version of nnabla_dqa reads 1 and 2"):
        read_nnp(tmp_path / "w.nnp")


def test_former_names_still_work_and_warn(tmp_path):
    inputs, results = live()
    for options in ({"choose": "lowest"}, {"select": "lowest"}, {"choose": "argmax"}):
        with pytest.warns(DeprecationWarning, match="is now called select="):
            made = dqa.deploy(tmp_path / "d.nnp", inputs, results, **options)
        assert made.deployed.select == ("argmax" if "argmax" in options.values() else "target")
    with pytest.warns(DeprecationWarning, match="is now called select="):
        made = deploy_file_of(tmp_path, choose="lowest")
    with pytest.raises(ValueError, match="select='best' is neither"):
        deploy_file_of(tmp_path, select="best")
    with pytest.warns(DeprecationWarning, match="FileDeployment"):
        assert dqa.FileDeployment is Deployment
    with pytest.warns(DeprecationWarning, match="use its layer, weights and attention"):
        assert made.layers[0].report.name == "c/conv"
    with pytest.warns(DeprecationWarning, match="now called Check.not_quantized"):
        assert check_file(tmp_path / "d.nnp").unclaimed == ()
    with pytest.warns(DeprecationWarning, match="now called FileSummary.skipped"):
        assert dqa.summarize(tmp_path / "d.nnp").untouched == ()
