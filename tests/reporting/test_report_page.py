"""Reports: what the page says of runs and files, and what is refused."""

from __future__ import annotations

import importlib
import json
import math

import nnabla as nn
import numpy as np
import pytest

import nnabla_dqa as dqa
from nnabla_dqa.cli import main
from nnabla_dqa.export.tensor import DeployedTensor
from nnabla_dqa.nnp.summary import summarize
from nnabla_dqa.reporting import write_report
from nnabla_dqa.reporting.page.comparison import groups_of
from nnabla_dqa.reporting.page.html import Markup, element, escape, table
from nnabla_dqa.reporting.page.network_view import float_weights
from nnabla_dqa.reporting.page.run_record import RunRecord
from nnabla_dqa.reporting.page.svg import ReportError
from nnabla_dqa.training.checkpoint import read_checkpoint
from nnabla_dqa.training.run import train
from nnabla_dqa.training.run_folder import RunError
from tests.reporting.pages import read
from tests.reporting.runs import FAILURE, epoch, write_run
from tests.training.experiments import experiment
from tests.training.files import write_console

NAMES = ["fc0/affine", "fc1/affine"]


def report(tmp_path, *sources, name="r.html"):
    return read(write_report(sources, tmp_path / name))


def test_text_is_escaped_and_markup_is_not():
    assert escape('<b> & "') == "&lt;b&gt; &amp; &quot;"
    assert escape(Markup("<b>")) == "<b>"
    assert escape("a\0\ud800\ue000") == "a\ufffd\ufffd\ufffd"
    made = element("p", "<x>", element("b", 3), class_="k", aria_label='"', hidden=True, open=False)
    assert made == '<p class="k" aria-label="&quot;" hidden>&lt;x&gt;<b>3</b></p>'
    rows = table("T", ("a", "b"), [("<r>", "1,000")])
    assert '<th scope="row">&lt;r&gt;</th><td class="number">1,000</td>' in rows
    assert 'role="region" tabindex="0" aria-label="T"' in rows


def test_a_run(tmp_path):
    run = write_run(tmp_path / "run")
    page = report(tmp_path, run)
    assert "The hard phase began after 4 epochs" in page.words
    assert "The first whole epoch with it was 5." in page.words
    assert "Score of the deployed file 90.00 %" in page.words
    assert page.tables["Loss by epoch"][2] == ["2", "1"]
    assert page.tables["accuracy, % by epoch"][1] == ["1", "55", "60"]
    assert page.tables["Temperature by epoch"][1] == ["1", "50"]
    of_layer = page.tables["Attention of fc1/affine"]
    assert of_layer[0] == ["epoch", "MinMax2", "MinMax4", "MinMax8"]
    assert of_layer[1] == ["1", "0.525", "0.332", "0.142"]
    assert page.tables["Attention on the target quantizer"][2][:2] == ["fc1/affine", "0.525"]
    recipe = dict(page.tables["Keys of the recipe"])
    assert (recipe["quantizers"], recipe["hard_fraction"]) == ("minmax:2,4,8", "0.5")
    start = dict(page.tables["Start of the run"])
    assert start["versions.nnabla"] == "1.39.0"
    assert (start["mixtures"], start["layers"]) == ("fused: compiled", "oneDNN 3.2.0")
    summary = summarize(run / "deployed.nnp")
    rows = {row[0]: row for row in page.tables["Bits and bytes by layer"]}
    assert rows["fc0/affine"][5:] == ["2", "256", f"{summary.layers[0].packed_bytes:,}"]
    assert rows["total"][6:] == [f"{summary.float_bytes:,}", f"{summary.packed_bytes:,}"]


def test_weights_before_and_on_their_levels(tmp_path):
    run = write_run(tmp_path / "run")
    rows = report(tmp_path, run).tables["Weights of fc0/affine"]
    w = read_checkpoint(run / "checkpoint").arrays["fc0/affine/W"]
    encoded = dqa.MinMax(2).encode(w)
    levels = np.arange(4) * float(encoded.scale.ravel()[0]) + float(encoded.offset.ravel()[0])
    assert [row[1] for row in rows[1:]] == [f"{level:.5g}" for level in levels]
    counts = np.bincount(encoded.codes.ravel(), minlength=4)
    assert [row[2] for row in rows[1:]] == [f"{count}" for count in counts]
    first = w[encoded.codes == 0]
    assert rows[1][4] == f"{first.min():.4g} to {first.max():.4g}"


def test_pictures_say_what_they_show(tmp_path):
    page = report(tmp_path, write_run(tmp_path / "run"))
    assert len(page.pictures) == len(set(page.pictures))
    named = [label.split(".")[0] for label in page.pictures]
    overview = "Attention on the target quantizer, all layers"
    assert named[:4] == ["Loss", "Accuracy", overview, "Temperature of attention"]
    assert any("share of the weights on each level" in label for label in page.pictures)
    assert "from 2 to 0.25" in page.pictures[0]


def test_a_training_and_its_report_agree(tmp_path):
    """Of a run that was really trained, with quantized activations."""
    made = experiment(tmp_path, quantizers="minmax:2,4", activations="pact:2,4")
    train(made, folder=tmp_path / "run")
    page = report(tmp_path, tmp_path / "run")
    last = json.loads((tmp_path / "run" / "result.json").read_text())["epochs"][-1]["attention"]
    assert any(name.endswith(":input") for name in last)
    for name, shares in last.items():
        assert page.tables[f"Attention of {name}"][-1] == ["2", *(f"{a:.3f}" for a in shares)]
    ranges = page.tables["Ranges of quantized activations"]
    assert len(ranges) - 1 == sum(name.endswith(":input") for name in last)
    assert all(float(row[3]) <= 0 < float(row[4]) for row in ranges[1:])


def test_a_run_that_ended_in_nan(tmp_path):
    records = [epoch(1, NAMES), epoch(2, NAMES, loss=math.nan)]
    changes = {"result": False, "records": records, "start": {"failure": FAILURE}}
    page = report(tmp_path, write_run(tmp_path / "run", **changes))
    assert "stopped by NaN or infinity" in page.words
    assert f"Epoch 3, after 23 steps: {FAILURE['error']}" in page.words
    assert "The loss is no finite number in epoch 2." in page.words
    rows = page.tables["Loss by epoch"]
    assert rows[-3:] == [["step 21", "1"], ["step 22", "5"], ["step 23", "inf"]]
    assert "stopped after 23 steps" in page.pictures[0]
    assert "those of its last checkpoint" in page.words
    assert len(page.tables["Weights of fc0/affine"]) == 5


def test_nan_before_an_epoch_has_ended(tmp_path):
    changes = {"result": False, "records": [], "start": {"failure": FAILURE}}
    run = write_run(tmp_path / "run", **changes)
    (run / "checkpoint").unlink()
    page = report(tmp_path, run)
    assert "Epochs 0 of 8" in page.words
    assert FAILURE["error"] in page.words


def test_an_older_run_without_attention_is_told(tmp_path):
    records = [epoch(1, [])]
    for record in records:
        del record["attention"], record["temperature"], record["soft_score"]
    page = report(tmp_path, write_run(tmp_path / "run", records=records))
    assert "The records of this run hold no attention" in page.words
    assert "Loss by epoch" in page.tables


def test_a_run_whose_files_are_gone_shows_what_is_left(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "deployed.nnp").rename(tmp_path / "kept.nnp")
    page = report(tmp_path, run)
    assert "There is no deployed file in its folder" in page.words
    assert len(page.tables["Weights of fc0/affine"]) == 5
    (tmp_path / "kept.nnp").rename(run / "deployed.nnp")
    (run / "checkpoint").unlink()
    page = report(tmp_path, run)
    assert "its float weights are not shown" in page.words
    assert {row[4] for row in page.tables["Weights of fc0/affine"][1:]} == {"-"}


def test_weights_with_channels_last_are_those_that_were_deployed():
    w = np.arange(48, dtype=np.float32).reshape(2, 2, 3, 4)
    tensor = DeployedTensor.of(
        "c/W", "Convolution", dqa.FullPrecision(), {}, (1.0,), w.transpose(0, 3, 1, 2), None
    )
    np.testing.assert_array_equal(float_weights({"c/W": w}, tensor), tensor.array)
    assert float_weights({"c/W": w[:1]}, tensor) is None


def test_a_float_run_mixes_nothing(tmp_path):
    train(experiment(tmp_path, epochs=1), folder=tmp_path / "run")
    page = report(tmp_path, tmp_path / "run")
    assert "Nothing is mixed in this run (Full precision)" in page.words
    assert "Float weights of each layer." in page.words


def test_several_runs(tmp_path):
    for seed in (0, 1, 2):
        write_run(tmp_path / "runs" / f"a{seed}", seed=seed)
    write_run(tmp_path / "runs" / "b", recipe={"quantizers": "sawb:2,4,8"})
    write_run(tmp_path / "runs" / "c", recipe={"batch_size": 8})
    write_run(tmp_path / "runs" / "d", seed=3, result=False)
    page = report(tmp_path, tmp_path / "runs")
    rows = {row[0]: row for row in page.tables["Recipes, with the spread over their seeds"]}
    both = "DQA minmax:2,4,8 (batch_size=16)"
    assert rows[both][1:7] == ["accuracy, %", "3 of 4", "91", "1", "90", "92"]
    assert rows["DQA minmax:2,4,8 (batch_size=8)"][2:5] == ["1", "90", "-"]
    assert rows["DQA sawb:2,4,8"][2:5] == ["1", "90", "-"]
    states = {row[0]: row[3] for row in page.tables["All runs"][1:]}
    assert states["runs/d"] == "not finished"
    assert len(states) == 6
    assert any(label.startswith("Accuracy, % by recipe.") for label in page.pictures)
    groups = groups_of([RunRecord.read(tmp_path / "runs" / f"a{seed}") for seed in (0, 1, 2)])
    assert [(group.mean, group.sd) for group in groups] == [(pytest.approx(91), pytest.approx(1))]


def test_the_same_seed_twice_is_no_sample(tmp_path):
    for name in ("a", "b"):
        write_run(tmp_path / name)
    with pytest.raises(RunError, match=r"b: has the recipe and the seed \(0\) of .*a; leave out"):
        write_report([tmp_path / "a", tmp_path / "b"], tmp_path / "r.html")
    # One folder that is named twice is one run.
    assert "Runs compared" not in report(tmp_path, tmp_path / "a", tmp_path / "a").words


def test_other_teachers_are_told_and_may_have_the_same_seed(tmp_path):
    """Their files may all be called network.nnp; each may be the float net of its seed, too."""
    recipe = {"teacher": "network.nnp"}
    for seed in (0, 1):
        teacher = {"teacher": {"file": f"float{seed}/network.nnp", "sum": f"sum{seed}"}}
        write_run(tmp_path / "runs" / f"own{seed}", seed=seed, recipe=recipe, start=teacher)
    page = report(tmp_path, tmp_path / "runs")
    (row,) = page.tables["Recipes, with the spread over their seeds"][1:]
    assert row[2] == "2, 2 teachers"

    wide = {"teacher": {"file": "wide/network.nnp", "sum": "sum2"}}
    write_run(tmp_path / "runs" / "wide", seed=0, recipe=recipe, start=wide)
    page = report(tmp_path, tmp_path / "runs")
    rows = {row[0]: row[2] for row in page.tables["Recipes, with the spread over their seeds"][1:]}
    name = "DQA minmax:2,4,8 (teacher.checksum="
    assert rows == {f"{name}sum{i})": "1" for i in range(3)}


def test_the_hard_phase_may_begin_within_the_last_epoch(tmp_path):
    """As it does with the defaults: 3 epochs, of which the last 0.9 are hard."""
    run = write_run(tmp_path / "run", epochs=3, recipe={"hard_fraction": 0.3})
    result = json.loads((run / "result.json").read_text())
    for record in result["epochs"]:
        record["hard"] = False
    (run / "result.json").write_text(json.dumps(result))
    page = report(tmp_path, run)
    assert "The hard phase began after 2.1 epochs" in page.words
    assert "No whole epoch with it has ended." in page.words
    assert "is to begin" not in page.words
    column = [row[5] for row in page.tables["Epochs"][1:]]
    assert column == ["no", "no", "in its last part"]


def test_files_of_every_kind(tmp_path):
    write_console(tmp_path / "float.nnp")
    dqa.convert_file(tmp_path / "float.nnp", tmp_path / "dqa.nnp", [dqa.Rule("*", "minmax:2,4")])
    dqa.deploy_file(tmp_path / "dqa.nnp", tmp_path / "small.nnp", allow_untrained=True)
    page = report(tmp_path, tmp_path / "float.nnp", name="a.html")
    assert "A float file: its weights are not quantized." in page.words
    assert dict(page.tables["Weights of Affine/affine"])["weights"] == "192"
    page = report(tmp_path, tmp_path / "dqa.nnp", name="b.html")
    assert "A converted file" in page.words
    assert page.tables["Attention in the file"][1][1] == "MinMax2 MinMax4"
    converted = page.tables["Weights of Affine/affine"]
    assert len(converted) == 5
    page = report(tmp_path, tmp_path / "small.nnp", name="c.html")
    assert "Float weights are not in it" in page.words
    deployed = page.tables["Weights of Affine/affine"]
    assert [row[:4] for row in deployed] == [row[:4] for row in converted]
    assert {row[4] for row in deployed[1:]} == {"-"}
    page = report(tmp_path, *(tmp_path / f"{n}.nnp" for n in ("float", "dqa", "small")))
    assert {"file-1", "file-2", "file-3"} <= set(page.ids)


def test_a_converted_file_whose_levels_are_unknown_is_shown_without(tmp_path):
    write_console(tmp_path / "float.nnp")
    rules = [dqa.Rule("*", "minmax:2,4", activations="pact:2,4")]
    dqa.convert_file(tmp_path / "float.nnp", tmp_path / "dqa.nnp", rules)
    page = report(tmp_path, tmp_path / "dqa.nnp")
    assert "Its levels cannot be shown: " in page.words
    assert "weights" in dict(page.tables["Weights of Affine/affine"])


def test_levels_by_channel_and_many_levels(tmp_path):
    x = nn.Variable((1, 6))
    import nnabla_dqa.parametric_functions as PF

    with dqa.quantizers(dqa.MinMax(2, channel_axis=1)):
        h = PF.dqa_affine(x, 5, name="channels")
    with dqa.quantizers(dqa.MinMax(8)):
        h = PF.dqa_affine(h, 40, name="many")
    with dqa.quantizers(dqa.FullPrecision()):
        h = PF.dqa_affine(h, 3, name="float")
    dqa.deploy(tmp_path / "d.nnp", {"x": x}, {"y": h}, allow_untrained=True)
    page = report(tmp_path, tmp_path / "d.nnp")
    assert dict(page.tables["Weights of channels/affine"])["sets of levels"] == "5"
    assert dict(page.tables["Weights of many/affine"])["levels of a set"] == "256"
    assert dict(page.tables["Weights of float/affine"])["weights"] == "120"
    assert "all channels are counted together" in page.words


def test_what_files_say_is_text(tmp_path):
    """Names and messages of somebody else's files."""
    evil = "</title><script>alert(1)</script>$x^2$\x07<!-- \ue000"
    records = [epoch(1, [evil, *NAMES])]
    changes = {"messages": [evil], "start": {"machine": evil, "command": evil}}
    run = write_run(tmp_path / "<b>run", records=records, method=evil, **changes)
    page = report(tmp_path, run)
    assert page.words.count("<script>alert(1)</script>$x^2$") >= 6
    assert "<b>run" in page.words


def test_what_the_command_refuses(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "run", epochs=1)
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "bad.nnp").write_text("no zip")

    def refused(*arguments):
        assert main(["report", *map(str, arguments)]) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        return err

    assert "empty: holds no run" in refused("empty")
    assert "nowhere: there is no such run or file" in refused("nowhere")
    assert "neither the folder of a run nor an .nnp" in refused("notes.txt")
    assert "bad.nnp" in refused("bad.nnp")
    assert "must end in .html" in refused(run, "-o", "a.pdf")
    assert "there is no folder" in refused(run, "-o", "no/a.html")
    (tmp_path / "report.html").write_text("mine")
    assert "report.html: exists; give --force" in refused(run)
    assert (tmp_path / "report.html").read_text() == "mine"
    (run / "result.json").write_text("{")
    assert "result.json: is no JSON" in refused(run, "--force")
    assert (tmp_path / "report.html").read_text() == "mine"
    (run / "result.json").write_text('{"epochs": [{"loss": "high", "epoch": 1}]}')
    assert "result.json: its epochs cannot be read" in refused(run, "--force")
    (run / "result.json").write_text('{"epochs": [], "score": "high"}')
    assert "result.json: key 'score' must be a number" in refused(run, "--force")
    (run / "result.json").unlink()
    starts = (run / "run.json").read_text()
    (run / "run.json").write_text('{"starts": [{"failure": {"step": 3}}]}')
    assert "run.json: its failure cannot be read: key 'losses' is missing" in refused(
        run, "--force"
    )
    (run / "run.json").write_text('{"starts": 3}')
    assert "run.json: key 'starts' is no list" in refused(run, "--force")
    (run / "run.json").write_text(starts)
    assert main(["report", str(run), "--force"]) == 0
    assert capsys.readouterr().out.startswith("report.html: ")
    assert [path.name for path in tmp_path.glob(".*.part")] == []


def test_without_matplotlib_one_line_says_what_to_install(tmp_path, monkeypatch):
    run = write_run(tmp_path / "run", epochs=1)
    found = importlib.import_module

    def missing(name, *rest):
        if name == "matplotlib":
            raise ImportError("No module named 'matplotlib'")
        return found(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ReportError, match=r"pip install 'nnabla_dqa\[report\]'"):
        write_report([run], tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_a_report_changes_nothing_it_reads_and_is_the_same_again(tmp_path):
    run = write_run(tmp_path / "run", epochs=2)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    pages = [write_report([run], tmp_path / name).read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert nn.get_parameters(grad_only=False) == {}
