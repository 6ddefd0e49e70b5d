"""Files that version 0.1.0 wrote before metadata had format 2; ``AbsMean`` is CONTRIBUTING.md's."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from nnabla_dqa.export.nnp import read_nnp
from nnabla_dqa.nnp.check import check_file
from nnabla_dqa.nnp.deploy import deploy_file
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp.summary import summarize
from nnabla_dqa.nnp_format.archive import Archive
from nnabla_dqa.nnp_format.parameters import Parameter

FOLDER = Path(__file__).parent / "format_1"
EXPECTED = {
    "minmax": (("MinMax2@0", 4, 2), ("MinMax2@-1", 4, 2)),
    "folded": (("SAWB2", 4, 2), ("SAWB2", 4, 2)),
    "absmean": (("AbsMean", 3, 2), ("AbsMean", 3, 2)),
    "listed": (("MinMax2", 4, 2),),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_deployed_files_are_read(name, tmp_path):
    path = FOLDER / f"{name}.nnp"
    assert Archive.read(path).metadata["format"] == 1
    found = check_file(path)
    assert found.ok, str(found)
    expected = EXPECTED[name]
    assert tuple((row.quantizer, row.levels) for row in found.layers) == tuple(
        row[:2] for row in expected
    )
    assert [row.bits for row in summarize(path).layers] == [row[2] for row in expected]
    for tensor in read_nnp(path).tensors.values():
        weights = Archive.read(path).parameters[tensor.name].array
        np.testing.assert_array_equal(tensor.decode(), weights)
        assert (tensor.levels is not None) == (name == "listed")


@pytest.mark.parametrize("name", EXPECTED)
def test_a_weight_off_its_level_is_still_found(name, tmp_path):
    archive = Archive.read(FOLDER / f"{name}.nnp")
    for weight in read_nnp(FOLDER / f"{name}.nnp").tensors:
        array = archive.parameters[weight].array.copy()
        array.flat[0] = np.nextafter(array.flat[0], np.float32(np.inf))
        archive.parameters[weight] = Parameter(array)
    archive.write(tmp_path / "w.nnp")
    assert all(row.fault for row in check_file(tmp_path / "w.nnp").layers)


def test_a_wrong_number_of_levels_is_still_found(tmp_path):
    archive = Archive.read(FOLDER / "minmax.nnp")
    archive.metadata["layers"][0]["levels"] = 16
    archive.write(tmp_path / "w.nnp")
    assert "16 levels of 2 bits" in check_file(tmp_path / "w.nnp").faults[0]


def test_folding_writes_the_present_format(tmp_path):
    result = deploy_file(FOLDER / "minmax.nnp", tmp_path / "f.nnp", fold=True)
    assert "folded" in result.messages[0]
    assert Archive.read(tmp_path / "f.nnp").metadata["format"] == 2
    assert check_file(tmp_path / "f.nnp").ok


def test_converted_files_are_read_and_deployed(tmp_path):
    shutil.copy(FOLDER / "converted.nnp", tmp_path / "c.nnp")
    assert NetworkFile.read(tmp_path / "c.nnp").kind == "converted"
    deploy_file(tmp_path / "c.nnp", tmp_path / "d.nnp")
    old, new = read_nnp(FOLDER / "minmax.nnp"), read_nnp(tmp_path / "d.nnp")
    assert old.tensors.keys() == new.tensors.keys()
    for name, tensor in old.tensors.items():
        np.testing.assert_array_equal(tensor.codes, new.tensors[name].codes)
        np.testing.assert_array_equal(tensor.decode(), new.tensors[name].decode())


def test_converted_files_do_not_tell_the_bits_of_a_class_that_is_not_known():
    with pytest.raises(ValueError, match="unknown quantizer type 'AbsMean'") as caught:
        NetworkFile.read(FOLDER / "converted_absmean.nnp")
    assert "'nnabla_dqa.quantizers'" in str(caught.value)
