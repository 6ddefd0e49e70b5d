"""Converted files whose state, notes and networks do not belong together."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest

from nnabla_dqa.nnp.convert import convert_file
from nnabla_dqa.nnp.file import NetworkFile
from nnabla_dqa.nnp_format.archive import Archive
from nnabla_dqa.nnp_format.members import NNPError
from nnabla_dqa.nnp_format.parameters import Parameter
from tests.nnp.networks import small, train


@pytest.fixture
def converted(tmp_path):
    convert_file(small().save(tmp_path / "m.nnp"), tmp_path / "c.nnp")
    return tmp_path / "c.nnp"


def refused(path, *words):
    with pytest.raises(NNPError) as caught:
        NetworkFile.read(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for word in words:
        assert word in message


def changed(path, parameters=None, **notes):
    """The file with other parameters (None: left out) and notes (None: none at all)."""
    archive = Archive.read(path)
    for name, value in (parameters or {}).items():
        archive.parameters[name] = value
    archive.parameters = {k: v for k, v in archive.parameters.items() if v is not None}
    archive.metadata = {**archive.metadata, **notes}
    if notes == {"none": True}:
        archive.metadata = None
    archive.write(path)
    return path


def test_state_that_is_missing_or_has_another_shape(converted):
    good = converted.read_bytes()
    (config,) = [
        n for n in Archive.read(converted).parameters if n.startswith("c/conv/dqa/config/")
    ]
    for name in (config, *(f"c/conv/dqa/{entry}" for entry in ("hard", "alpha", "temperature"))):
        other = Parameter(np.zeros(7, np.float32))
        for value in (None, other):
            converted.write_bytes(good)
            try:
                changed(converted, {name: value})
            except NNPError as error:
                # Parameters that functions use are checked before anything is written.
                assert name in str(error)  # noqa: PT017
                assert name != config
                continue
            refused(converted, name)


def test_state_of_other_quantizers_is_refused(converted):
    archive = Archive.read(converted)
    rows = copy.deepcopy(archive.metadata["layers"])
    rows[0]["quantizers"] = [{**q, "bits": b} for q, b in zip(rows[0]["quantizers"], (3, 5, 7))]
    refused(changed(converted, layers=rows), "c/conv")


def test_state_without_notes_is_refused(converted):
    refused(changed(converted, none=True), "c/conv", "nnabla_dqa.json")


def test_notes_that_miss_a_layer_are_refused(converted):
    rows = Archive.read(converted).metadata["layers"]
    refused(changed(converted, layers=rows[1:]), "c/conv")


def test_notes_that_name_a_layer_twice_are_refused(converted):
    rows = Archive.read(converted).metadata["layers"]
    other = {**rows[0], "quantizers": [rows[0]["quantizers"][0]], "mixing": {"type": "Single"}}
    refused(changed(converted, layers=[*rows, other]), "c/conv")


def test_an_edited_network_that_uses_the_inside_of_a_mixture(converted):
    archive = Archive.read(converted)
    network = archive.definition.network[0]
    inner = next(f.output[0] for f in network.function if f.name.startswith("c/conv/dqa/"))
    network.variable.add(name="extra", type="Buffer").shape.dim.extend([1])
    network.function.add(name="Extra", type="ReLU", input=[inner], output=["extra"])
    archive.write(converted)
    refused(converted, "Extra", inner)


def test_kinds_steps_and_training(converted, tmp_path):
    assert NetworkFile.read(tmp_path / "m.nnp").kind == "float"
    file = NetworkFile.read(converted)
    assert (file.kind, file.steps, file.is_trained) == ("converted", 0, False)
    parameters = {**file.archive.parameters, "dqa/step": Parameter(np.array([7], np.float32))}
    counted = file.with_parameters(parameters)
    counted.save(tmp_path / "s.nnp")
    counted = NetworkFile.read(tmp_path / "s.nnp")
    assert (counted.steps, counted.is_trained) == (7, True)
    train(converted, tmp_path / "t.nnp")
    assert NetworkFile.read(tmp_path / "t.nnp").is_trained


def test_a_network_that_is_not_there_lists_those_that_are(converted):
    file = NetworkFile.read(converted)
    assert file.network("net").name == "net"
    with pytest.raises(NNPError, match=r"no network 'Main'; the networks are: net$"):
        file.network("Main")


def test_h5_stays_h5(tmp_path):
    archive = dataclasses.replace(
        small().archive(tmp_path / "m.nnp"),
        parameter_member="params.h5",
        definition_member="net.prototxt",
    )
    archive.write(tmp_path / "m.nnp")
    convert_file(tmp_path / "m.nnp", tmp_path / "c.nnp")
    found = Archive.read(tmp_path / "c.nnp")
    assert (found.parameter_member, found.definition_member) == ("params.h5", "net.prototxt")
    train(tmp_path / "c.nnp", tmp_path / "t.nnp")
    assert Archive.read(tmp_path / "t.nnp").parameters.keys() == found.parameters.keys()
