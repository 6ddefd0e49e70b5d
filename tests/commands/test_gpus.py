"""Each process has a GPU of its own, or is refused; no GPU takes part."""

from __future__ import annotations

import nnabla as nn
import pytest
import yaml

from nnabla_dqa.cli import main
from nnabla_dqa.commands.gpus import check_own_gpu
from nnabla_dqa.distributed import ParallelError, SingleProcess
from tests.distributed.threads import together


def gpu(device):
    return nn.Context(["cudnn:float", "cuda:float", "cpu:float"], device_id=str(device))


def shared(contexts, monkeypatch, shown=None):
    """What the check raises on each rank."""
    if shown is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", shown)
    return together(len(contexts), lambda comm: check_own_gpu(comm, contexts[comm.rank]))


@pytest.mark.parametrize("shown", [None, "", "0,1,2"])
def test_processes_with_a_gpu_each(shown, monkeypatch):
    assert shared([gpu(0), gpu(1), gpu(2)], monkeypatch, shown) == [None] * 3
    assert shared([nn.Context()] * 3, monkeypatch, shown) == [None] * 3
    assert shared([gpu(1)], monkeypatch, shown) == [None]


@pytest.mark.parametrize(("shown", "name"), [(None, "1"), ("4,GPU-8a, 6", "GPU-8a")])
def test_two_processes_on_one_gpu_are_refused_everywhere(shown, name, monkeypatch):
    raised = shared([gpu(0), gpu(1), gpu(1)], monkeypatch, shown)
    assert [type(error) for error in raised] == [ParallelError] * 3
    message = f"processes 1 and 2 would both compute on GPU {name} of their machine"
    assert {str(error).startswith(message) for error in raised} == {True}
    assert "leave out --device" in str(raised[0])


def test_processes_of_different_machines_or_views_share_nothing(monkeypatch):
    """Each is shown one GPU, which is number 0 for it."""
    for name, values in (("_machine", ["a", "b"]), ("_gpu", [["4"], ["5"]])):
        left = list(values)
        with monkeypatch.context() as patch:
            patch.setattr(f"nnabla_dqa.commands.gpus.{name}", lambda *_, left=left: left.pop())
            assert shared([gpu(0), gpu(0)], patch) == [None, None]


@pytest.mark.parametrize("option", [["--device", "0"], ["--tf32"]])
@pytest.mark.parametrize("model", [True, False])
def test_options_of_gpus_are_refused_on_the_cpu(option, model, tmp_path, capsys):
    keys = {"data": "images.npz", **({"model": "resnet8_32"} if model else {})}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(keys))
    start = ["train", "--recipe", str(tmp_path / "r.yaml"), "-o", str(tmp_path / "out"), *option]
    assert main([*start, *([] if model else [str(tmp_path / "net.nnp")])]) == 2
    assert capsys.readouterr().err == (
        f"nnabla-dqa: {option[0]} is for a GPU; add --context cudnn, or leave it out\n"
    )


class Second(SingleProcess):
    """The process with the number 1 on its machine."""

    local_rank = 1


@pytest.mark.parametrize(("option", "device"), [([], "1"), (["--device", "3"], "3")])
def test_a_training_takes_the_gpu_of_its_local_rank_and_checks_it(
    option, device, tmp_path, monkeypatch, capsys
):
    (tmp_path / "r.yaml").write_text("data: images.npz\nmodel: resnet8_32\n")
    opened = []

    def make(name, type_config, tf32, device, check=True):
        assert check == bool(opened), "a GPU is used before it is known whose it is"
        return gpu(device)

    def refuse(communicator, context):
        raise ParallelError(f"both on GPU {context.device_id}")

    module = "nnabla_dqa.commands.train"
    monkeypatch.setattr(f"{module}.make_context", make)
    monkeypatch.setattr(f"{module}.check_own_gpu", refuse)
    monkeypatch.setattr(
        f"{module}.open_communicator", lambda *_: opened.append(Second()) or opened[0]
    )
    start = ["train", "--recipe", str(tmp_path / "r.yaml"), "-o", str(tmp_path / "out")]
    assert main([*start, "--context", "cudnn", *option]) == 2
    assert f"both on GPU {device}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
