"""Files that name a quantizer whose class the process that reads them does not know."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Optional

import nnabla.functions as F
import numpy as np
import pytest

import nnabla_dqa as dqa
from nnabla_dqa.nnp.check import check_file
from nnabla_dqa.nnp.convert import convert_file
from nnabla_dqa.nnp.deploy import deploy_file
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp.live import Program
from nnabla_dqa.nnp.summary import summarize
from nnabla_dqa.nnp_format.archive import Archive
from nnabla_dqa.nnp_format.parameters import Parameter
from nnabla_dqa.quantization import Grid, Quantizer, quantizer_from_json
from nnabla_dqa.quantization.graph_ops import scale_rows
from nnabla_dqa.quantization.registry import QUANTIZERS, UnknownQuantizer, quantizer_or_stand_in
from tests.nnp.networks import outputs, samples, small, train


@dataclasses.dataclass(frozen=True)
class AbsMean(Quantizer):
    """Three levels: the mean magnitude, its negative, and zero."""

    bits: ClassVar[int] = 2
    levels: ClassVar[int] = 3
    channel_axis: Optional[int] = None

    def grid(self, statistics):
        scale = F.maximum_scalar(statistics.mean_magnitude, 1e-30)
        position = scale_rows(statistics.w, F.r_div_scalar(scale, 1.0))
        codes = F.minimum_scalar(F.maximum_scalar(F.round(position), -1.0), 1.0)
        return Grid(F.add_scalar(codes, 1.0), scale, F.mul_scalar(scale, -1.0))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Files made where the class is known; the tests run where it is not."""
    with monkeypatch.context() as where_it_is_known:
        where_it_is_known.setattr(QUANTIZERS, "_types", dict(QUANTIZERS._types))
        dqa.register_quantizer(AbsMean)
        small().save(tmp_path / "m.nnp")
        convert_file(tmp_path / "m.nnp", tmp_path / "c.nnp", "absmean/minmax:4,8@channel")
        convert_file(tmp_path / "m.nnp", tmp_path / "single.nnp", "absmean")
        train(tmp_path / "c.nnp", tmp_path / "t.nnp")
        deploy_file(tmp_path / "t.nnp", tmp_path / "d.nnp")
    with pytest.raises(ValueError, match="unknown quantizer type 'AbsMean'"):
        quantizer_from_json({"type": "AbsMean"})
    return tmp_path


def test_deployed_files_are_proved_from_what_they_state(folder):
    found = check_file(folder / "d.nnp")
    assert found.ok, str(found)
    assert [(row.quantizer, row.levels) for row in found.layers] == [
        ("AbsMean@0", 3),
        ("AbsMean@-1", 3),
    ]
    archive = Archive.read(folder / "d.nnp")
    array = archive.parameters["c/conv/W"].array.copy()
    array.flat[3] = np.nextafter(array.flat[3], np.float32(np.inf))
    archive.parameters["c/conv/W"] = Parameter(array)
    archive.write(folder / "wrong.nnp")
    assert [row.fault != "" for row in check_file(folder / "wrong.nnp").layers] == [True, False]


def test_deployed_files_are_summarised(folder):
    rows = summarize(folder / "d.nnp").layers
    assert [(row.quantizers, row.bits) for row in rows] == [
        (("AbsMean@0",), 2),
        (("AbsMean@-1",), 2),
    ]
    assert rows[0].packed_bytes == -(-rows[0].weights * 2 // 8) + 3 * 8
    assert "AbsMean@0" in str(summarize(folder / "d.nnp"))


def test_deployed_files_are_evaluated(folder):
    rng = np.random.RandomState(0)
    x = rng.randn(8, 2, 4, 4).astype(np.float32)
    np.savez(folder / "data.npz", x=x, y=rng.randint(0, 4, (8, 1)))
    score = dqa.evaluate_file(folder / "d.nnp", dqa.DataRecipe(str(folder / "data.npz")))
    assert (score.metric, score.samples) == ("accuracy", 8)


def test_batch_normalization_is_folded_into_deployed_files(folder):
    result = deploy_file(folder / "d.nnp", folder / "f.nnp", fold=True)
    assert result.messages == ("folded: BN into c/conv/W",)
    assert "BatchNormalization" not in {
        f.type for f in Archive.read(folder / "f.nnp").definition.network[0].function
    }
    assert check_file(folder / "f.nnp").ok
    values = samples(NetworkFile.read(folder / "d.nnp").network("net"))
    expected = outputs(folder / "d.nnp", "net", values)
    for name, array in outputs(folder / "f.nnp", "net", values).items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-5)


def test_a_deployed_file_has_nothing_to_select(folder):
    for options in ({"select": "argmax"}, {"samples": iter([])}):
        with pytest.raises(ValueError, match=r"d\.nnp: is deployed already \(batch norm"):
            deploy_file(folder / "d.nnp", folder / "f.nnp", fold=True, **options)


def test_converted_files_are_summarised(folder):
    rows = summarize(folder / "t.nnp").layers
    assert [row.quantizers for row in rows] == [
        ("AbsMean@0", "MinMax4@0", "MinMax8@0"),
        ("AbsMean@-1", "MinMax4@-1", "MinMax8@-1"),
    ]
    assert [row.bits for row in rows] == [2, 2]
    assert sum(rows[0].attention) == pytest.approx(1)
    assert [row.bits for row in summarize(folder / "single.nnp").layers] == [2, 2]


def test_converted_files_are_not_trained_or_deployed(folder):
    np.savez(folder / "x.npz", x=np.zeros((8, 2, 4, 4), np.float32), y=np.zeros((8, 1)))
    recipe = dqa.Recipe(dqa.DataRecipe(str(folder / "x.npz")), batch_size=4)
    for use in (
        lambda: deploy_file(folder / "t.nnp", folder / "o.nnp"),
        lambda: Program(NetworkFile.read(folder / "t.nnp")),
        lambda: dqa.train(folder / "t.nnp", recipe, folder / "o.nnp"),
    ):
        with pytest.raises(ValueError, match="class of quantizer AbsMean is not known") as caught:
            use()
        message = str(caught.value)
        assert "'nnabla_dqa.quantizers'" in message
        assert "layer c/conv" in message
        assert str(folder / "t.nnp") in message
        assert "\n" not in message
    assert not (folder / "o.nnp").exists()


def test_a_stand_in_is_what_it_stands_for_but_for_its_work():
    data = {"type": "Codebook", "bits": 3, "values": [1.0, [2.0]], "channel_axis": -1}
    stand_in = quantizer_or_stand_in(data)
    assert isinstance(stand_in, UnknownQuantizer)
    assert (stand_in.bits, stand_in.axis) == (3, -1)
    assert stand_in == quantizer_or_stand_in(data)
    assert hash(stand_in) == hash(quantizer_or_stand_in(data))
    assert stand_in != quantizer_or_stand_in({**data, "bits": 4})
    assert stand_in.to_json() == {**data, "values": (1.0, (2.0,))}
    with pytest.raises(ValueError, match="class of quantizer Codebook is not known here"):
        stand_in.encode(np.ones(3))
    assert quantizer_or_stand_in({"type": "MinMax", "bits": 2}) == dqa.MinMax(2)
    with pytest.raises(ValueError, match="unknown quantizer type 'Codebook'"):
        quantizer_or_stand_in({"type": "Codebook"})
    with pytest.raises(ValueError, match="MinMax: bits=99"):
        quantizer_or_stand_in({"type": "MinMax", "bits": 99})
