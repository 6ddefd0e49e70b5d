"""The check of deployed files finds every weight that is not where it is said to be."""

from __future__ import annotations

import numpy as np
import pytest

from nnabla_dqa.nnp.check import check_file
from nnabla_dqa.nnp.convert import convert_file
from nnabla_dqa.nnp.deploy import deploy_file
from nnabla_dqa.nnp_format.archive import Archive
from nnabla_dqa.nnp_format.members import NNPError
from nnabla_dqa.nnp_format.parameters import Parameter
from tests.nnp.networks import small, train

SETS = ["minmax:2,4,8", "minmax:2,4,8@channel", "sawb:2", "twn/float", "bwn/float"]


NOT_DEPLOYED = "not checked: nnabla-dqa has not deployed it; run deploy first"


def deployed(folder, quantizers="minmax:2,4,8", fold=False):
    convert_file(small().save(folder / "m.nnp"), folder / "c.nnp", quantizers)
    train(folder / "c.nnp", folder / "t.nnp")
    deploy_file(folder / "t.nnp", folder / "d.nnp", fold=fold)
    assert check_file(folder / "d.nnp").ok
    return folder / "d.nnp"


def changed(path, name, change):
    """The file with one parameter changed in place by ``change``."""
    archive = Archive.read(path)
    array, need_grad = archive.parameters[name]
    array = array.copy()
    change(array)
    archive.parameters[name] = Parameter(array, need_grad)
    archive.write(path)
    return check_file(path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::nnabla_dqa.AttentionWarning")
@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("quantizers", SETS)
def test_one_weight_moved_by_one_ulp(quantizers, fold, tmp_path):
    path = deployed(tmp_path, quantizers, fold)
    good = path.read_bytes()
    for name in ("c/conv/W", "fc/affine/W"):
        size = Archive.read(path).parameters[name].array.size
        for at in (0, size // 2, size - 1):
            for towards in (np.inf, -np.inf):
                path.write_bytes(good)

                def move(array, at=at, towards=towards):
                    array.flat[at] = np.nextafter(array.flat[at], np.float32(towards))

                found = changed(path, name, move)
                assert not found.ok
                assert len(found.faults) == 1
                assert found.faults[0].startswith(f"{name}: ")
                assert [row.weight for row in found.layers if row.fault] == [name]


def test_a_level_of_another_channel(tmp_path):
    path = deployed(tmp_path, "minmax:2,4,8@channel")

    def swap(array):
        array[0, 0, 0, 0] = array[1, 0, 0, 0]

    found = changed(path, "c/conv/W", swap)
    assert any(f.startswith("c/conv/W: ") for f in found.faults)


def test_not_a_number_anywhere(tmp_path):
    path = deployed(tmp_path)

    def spoil(array):
        array.flat[0] = np.nan

    assert changed(path, "bn/beta", spoil).faults == ("parameter bn/beta holds NaN or infinity",)
    found = changed(path, "fc/affine/W", spoil)
    assert {f.split(" ")[0] for f in found.faults} == {"fc/affine/W:", "parameter"}
    assert "NOT as its metadata say" in str(found)


def test_more_values_than_levels(tmp_path):
    path = deployed(tmp_path)

    def spread(array):
        array.flat[:5] = [1, 2, 3, 4, 5]

    found = changed(path, "c/conv/W", spread)
    assert "distinct values, 4 allowed" in found.faults[0]


def edited(path, change):
    archive = Archive.read(path)
    change(archive)
    archive.write(path)
    return check_file(path)


def test_metadata_that_do_not_fit(tmp_path):
    path = deployed(tmp_path)
    good = path.read_bytes()

    def faults(change):
        path.write_bytes(good)
        found = edited(path, lambda archive: change(archive.metadata["tensors"][0]))
        assert not found.ok
        assert all("\n" not in fault for fault in found.faults)
        return found.faults

    def wrong(key, value):
        return faults(lambda note: note.__setitem__(key, value))

    assert "is not in the file" in wrong("name", "other/W")[0]
    assert "cannot be read" in wrong("quantizer", {"type": "Unknown"})[0]
    assert "cannot be read" in faults(lambda note: note.pop("quantizer"))[0]
    assert "cannot be read" in faults(lambda note: note.pop("channel_axis"))[0]
    assert "c/conv/W" in wrong("scale", [1.0])[0]
    assert "c/conv/W" in wrong("scale", [float("nan")])[0]
    assert "c/conv/W" in wrong("scale", [1.0, 2.0])[0]
    assert "c/conv/W" in wrong("offset", None)[0]
    assert "c/conv/W" in wrong("scale", "wide")[0]
    assert "c/conv/W" in wrong("channel_axis", 9)[0]
    assert "c/conv/W" in wrong("channel_axis", "first")[0]
    assert "key 'offset' is missing" in faults(lambda note: note.pop("offset"))[0]
    assert "c/conv/W" in wrong("levels", [[0.0]])[0]
    assert "c/conv/W" in wrong("levels", [[0.0], [1.0]])[0]
    assert "c/conv/W" in wrong("levels", [[0.0] * 5])[0]
    assert "c/conv/W" in wrong("levels", 4)[0]
    assert "c/conv/W" in wrong("attention", None)[0]

    def quantizer(**changes):
        return faults(lambda note: note["quantizer"].update(changes))[0]

    assert "the file says 3 levels of 2 bits, MinMax" in quantizer(levels=3)
    assert "of 3 bits" in quantizer(levels=8, bits=3)
    assert "5 levels of 2 bits" in quantizer(levels=5)
    assert "cannot be read" in quantizer(arguments={"bits": 99})
    assert "cannot be read" in quantizer(bits="two")
    path.write_bytes(good)
    assert edited(path, lambda archive: archive.metadata.update(tensors=[5])).faults


def test_files_without_quantized_tensors(tmp_path):
    path = deployed(tmp_path)
    for name in ("m.nnp", "c.nnp"):
        found = check_file(tmp_path / name)
        assert not found.ok
        assert found.faults == (NOT_DEPLOYED,)
        assert str(found).endswith(f"{name}: {NOT_DEPLOYED}")
    found = edited(path, lambda archive: archive.metadata.update(tensors=[]))
    assert found.faults == ("nothing to check: the file names no quantized tensor",)
    with pytest.raises(NNPError):
        check_file(tmp_path / "nothing.nnp")


def test_what_it_prints(tmp_path):
    text = str(check_file(deployed(tmp_path, "minmax:2,4,8")))
    rows = {line.split()[0]: line.split() for line in text.splitlines()[2:4]}
    assert rows["c/conv/W"][-3:] == ["4", "4", "yes"]
    assert "runs: network net (x -> Fc_out)" in text
    assert text.endswith(
        "d.nnp: verified: the quantized weights are on their grids, no NaN or infinity"
    )


FLOAT = {"type": "FullPrecision", "name": "FullPrecision", "arguments": {}}
FOREIGN = {"type": "Other", "name": "Other", "arguments": {}}


@pytest.mark.parametrize("claimed", [FLOAT, FOREIGN])
def test_float_tensors_are_not_verified(claimed, tmp_path):
    path = deployed(tmp_path)
    float_entry = {**claimed, "bits": 32, "levels": 2**32}

    def forge(archive):
        archive.metadata["tensors"][0]["quantizer"] = float_entry
        array = archive.parameters["c/conv/W"].array
        archive.parameters["c/conv/W"] = Parameter(np.random.randn(*array.shape))

    found = edited(path, forge)
    row = next(line.split() for line in str(found).splitlines() if line.startswith("c/conv/W"))
    assert (row[2], row[-1]) == ("float", "-")
    assert found.ok
    found = edited(path, lambda a: [t.update(quantizer=float_entry) for t in a.metadata["tensors"]])
    assert not found.ok
    assert str(found).endswith("d.nnp: nothing to check: the file names no quantized tensor")
    assert "verified" not in str(found)


def test_the_name_of_a_quantizer_is_what_it_describes(tmp_path):
    path = deployed(tmp_path)
    found = edited(path, lambda a: a.metadata["tensors"][0]["quantizer"].update(name="BWN"))
    assert "the file calls the quantizer 'BWN', what it describes is MinMax2" in found.faults[0]
