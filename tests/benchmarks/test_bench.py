"""``make bench``: turns, ratios, claims and tables, and one reduced run of everything."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks.bench import gpu, kernels, memory, tables
from benchmarks.bench.claims import claims
from benchmarks.bench.measuring import ratio, summary, take_turns
from benchmarks.bench.nets import Mixtures, enter, make_net
from benchmarks.bench.plan import QUICK
from benchmarks.bench.steps import own_parts

ROOT = Path(__file__).resolve().parents[2]
SECTIONS = {"imports", "host", "layers", "kernels", "alone", "steps", "own_parts", "files"}
SECTIONS |= {"memory", "gpu"}


@pytest.fixture(scope="module")
def content(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "quick.json"
    command = [sys.executable, "-m", "benchmarks.bench", "--quick", "-o", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(path.read_text("utf-8"))
    found["printed"] = done.stdout
    return found


def test_turns_alternate_and_warming_up_does_not_count():
    order = []
    results = take_turns({name: lambda n=name: order.append(n) or len(order) for name in "abc"}, 3)
    assert "".join(order) == "cbaabccbaabc"
    assert results == {"a": [4, 9, 10], "b": [5, 8, 11], "c": [6, 7, 12]}


def test_ratios_are_those_of_the_same_round():
    assert ratio([2.0, 30.0, 4.0], [1.0, 10.0, 1.0]) == {
        "median": 3.0, "low": 2.0, "high": 4.0, "runs": 3
    }  # fmt: skip
    assert ratio([6.0], [2.0], 1.5)["median"] == 2.0
    assert summary([1.23456, 2.0])["median"] == 1.617
    with pytest.raises(ValueError, match="2 values of 1 rounds"):
        ratio([1.0, 2.0], [1.0])


def test_passes_over_the_weights():
    names = kernels.quantizer_sets(None)
    assert {name: kernels.passes(quantizers) for name, quantizers in names.items()} == {
        "MinMax(2)": (3, 2),
        "MinMax 2/4/8": (3, 3),
        "SAWB(2)": (4, 2),
        "SAWB 2/4/8": (5, 3),
        "BWN": (4, 2),
        "TWN": (5, 2),
        "BWN/TWN/FP": (5, 3),
    }


@pytest.mark.parametrize("layout", sorted(kernels.LAYOUTS))
def test_the_kernels_that_are_timed_do_the_work(layout):
    quantizers = kernels.quantizer_sets(kernels.LAYOUTS[layout])["MinMax 2/4/8"]
    arrays = kernels.Arrays.make(kernels.shape_of((4, 6, 3, 3), layout))
    work = kernels.kernel_passes(arrays, quantizers, 2)
    work["forward"]()
    work["backward"]()
    expected = np.mean([q.quantize(arrays.w) for q in quantizers], axis=0)
    np.testing.assert_allclose(arrays.q, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(arrays.dw, arrays.dq)


@pytest.mark.parametrize("backend", ["fused", "portable"])
def test_mixtures_alone_are_those_of_the_net(backend):
    first = Mixtures("resnet8_32", 0.25, 1)
    mixtures = Mixtures("resnet8_32", 0.25, 3, like=first)
    assert mixtures.weights == first.weights == 4876
    mixtures.build(backend)
    mixtures.update(backend)
    for layer, other, gradient in zip(mixtures.layers, first.layers, mixtures.gradients):
        assert layer.weight.data == other.weight.data
        np.testing.assert_array_equal(layer.weight.g, gradient.data)
        assert np.any(layer.state["alpha"].g)


def test_phases():
    mixtures = Mixtures("resnet8_32", 0.25, 3)
    shares = {}
    for phase in ("hard", "start", "late"):
        enter(mixtures.annealer, phase)
        assert mixtures.layers[0].is_hard == (phase == "hard")
        shares[phase] = mixtures.layers[0].coefficients()
    assert shares["start"].max() < 0.34
    assert shares["late"][1:].max() < 1e-6
    assert list(shares["hard"]) == [1, 0, 0]


def test_the_nets_are_what_their_names_say():
    functions = {}
    for method in ("float", "own", "plain", "portable", "fused 2", "w+a"):
        net = make_net(method, "resnet8_32", 0.25, 2)
        names = []
        net.loss.visit(lambda f, names=names: names.append(f.info.type_name))
        functions[method] = names
        assert sum(name == "Convolution" for name in names) == 7
    layers = 8
    assert functions["own"].count("MinMaxQuantize") == layers
    for method, count in (("float", 0), ("plain", layers), ("portable", 0), ("fused 2", layers)):
        assert sum(n.startswith("DQAMixture") for n in functions[method]) == count
    assert "BatchMatmul" in functions["portable"]
    assert functions["w+a"].count("DQAMixture") == layers
    # All but the network's own input.
    assert functions["w+a"].count("DQAActivations") == layers - 1


def test_memory_above_float_in_buffers():
    rows = [
        {"model": "m", "batch": 1, "weights": 1_000_000, "method": "float", "peak_mb": 40.0},
        {"model": "m", "batch": 1, "weights": 1_000_000, "method": "fused 3", "peak_mb": 46.0},
    ]
    found = memory.compared(rows)
    assert [row["buffers_above_float"] for row in found] == [0.0, 1.5]
    assert found[1]["to_float"] == 1.15


def test_a_peak_is_seen():
    before = memory.resident_mb("VmHWM")
    array = np.ones(8_000_000)
    array += 1
    assert memory.resident_mb("VmRSS") > 64
    del array
    assert memory.resident_mb("VmHWM") >= before


def test_own_parts_add_the_solver():
    steps = [
        {
            "net": "m, width 1, batch 2",
            "ms": {"float": {"median": 100.0}},
            "solver_ms": {
                name: {"median": value}
                for name, value in (("float", 1.0), ("plain", 2.0), ("fused", 4.0))
            },
        }
    ]
    alone = [
        {"net": "other, width 1", "ms": {}},
        {
            "net": "m, width 1",
            "ms": {name: {"median": 5.0} for name in ("own", "fused 1 start", "fused 3 hard")},
        },
    ]
    assert {p["method"]: (p["mixture"], p["solver"]) for p in own_parts(steps, alone)} == {
        "own": (0.05, 0.0), "fused 1 start": (0.05, 0.01), "fused 3 hard": (0.05, 0.03)
    }  # fmt: skip


def test_claims_can_fail_and_hold():
    figures = {"fused start": 1.008, "fused hard": 1.03, "own": 1.3, "float": 1.0}
    to_float = {name: {"median": value} for name, value in figures.items()}
    sections = {"steps": [{"net": "n", "to_float": to_float}]}
    found = {claim["claim"]: claim["holds"] for claim in claims(sections)}
    whole = {name: holds for name, holds in found.items() if name.endswith("whole")}
    assert list(whole.values()) == [True, False, True]
    assert set(found.values()) == {True, False, None}
    assert all(claim["value"] is None for claim in claims({}))
    mobile = {"net": "mobilenetv2_32, width 0.25, batch 16", "to_float": to_float}
    host = {"functions": {"float": 69, "fused": 145}, "layers": 21}
    sections = {"steps": [sections["steps"][0], mobile]}
    sections["host"] = {**host, "to_float": {"fused": {"median": 2.4}}}
    found = {claim["claim"]: claim for claim in claims(sections)}
    (per_layer,) = [c for name, c in found.items() if name.startswith("functions")]
    assert (per_layer["value"], per_layer["holds"]) == (3.048, False)
    assert [c["holds"] for name, c in found.items() if name.startswith(("host", "mobile"))] == [
        True, True,
    ]  # fmt: skip


def test_claims_on_memory_look_at_every_batch():
    row = {"weights": 1_000_000, "model": "m"}
    peaks = {(16, "float"): 40.0, (16, "own"): 52.0, (16, "fused 3"): 46.0}
    peaks.update({(128, "float"): 100.0, (128, "fused 3"): 109.0})
    rows = [{**row, "batch": b, "method": m, "peak_mb": peak} for (b, m), peak in peaks.items()]
    found = [c for c in claims({"memory": memory.compared(rows)}) if "memory" in c["claim"]]
    assert [c["value"] for c in found] == [2.25, 1.09, 0.8846]
    assert [c["holds"] for c in found] == [False, True, True]


def test_claims_on_quantized_activations():
    medians = {"NNabla float": 9.0, "float": 1.0, "w+a start": 1.3, "w+a hard": 1.4}
    turns = {"threads": 2, "to_float": {name: {"median": v} for name, v in medians.items()}}
    rows = [
        {"model": "m", "batch": 8, "weights": 9, "method": method, "peak_mb": peak}
        for method, peak in (("float", 99.0), ("float on oneDNN", 50.0), ("w+a on oneDNN", 60.0))
    ]
    sections = {
        "layers": [{"net": "m, width 1, batch 8", "by_threads": [turns]}],
        "memory": memory.compared(rows),
    }
    found = [c for c in claims(sections) if "weights and activations" in c["claim"]]
    assert [(c["limit"], c["value"], c["holds"]) for c in found] == [
        (1.35, 1.3, True), (1.35, 1.4, False), (1.3, 1.2, True),
    ]  # fmt: skip


@pytest.mark.slow
def test_every_section_comes_out(content):
    assert set(content["sections"]) == SECTIONS
    assert content["meta"]["reduced"]
    assert "these figures mean nothing" in content["printed"]
    conditions = [" ".join(c).strip() for c in QUICK.nets[0].conditions]
    assert list(content["sections"]["steps"][0]["ms"]) == conditions
    for figures in content["sections"]["steps"][0]["ms"].values():
        assert 0 < figures["low"] <= figures["median"] <= figures["high"]
    alone = content["sections"]["alone"][0]["ms"]
    assert {f"{b} {k} start" for b in ("fused", "portable") for k in range(1, 6)} < set(alone)
    assert len(content["sections"]["memory"]) == sum(len(m) for *_, m in QUICK.memory)
    assert all(row["peak_mb"] > 0 for row in content["sections"]["memory"])
    assert content["claims"]


@pytest.mark.slow
def test_the_machine_has_no_name_of_its_own(content):
    import platform

    assert content["meta"]["name"].startswith(platform.machine())
    text = json.dumps(content["meta"])
    host = platform.node()
    assert len(host) < 4 or host not in text
    assert str(ROOT) not in text


@pytest.mark.slow
def test_kernels_need_far_less_than_the_portable_graph(content):
    rows = content["sections"]["kernels"]
    taken = {
        (row["layout"], row["quantizers"], row["how"], row["threads"]): row["forward_ms"]["low"]
        for row in rows
    }
    for name in ("MinMax 2/4/8", "BWN/TWN/FP"):
        fused = taken["per tensor", name, "fused", 1]
        # Seldom less than eight times, so that a busy machine changes nothing.
        assert 2 * fused < taken["per tensor", name, "portable", 1]


@pytest.mark.slow
def test_every_table_has_all_rows(content):
    for name, table in tables.TABLES.items():
        text = table(content)
        assert text in content["printed"], name
    text = tables.kernels(content)
    assert len(text.splitlines()) == 2 + len(content["sections"]["kernels"])
    assert tables.steps(content).count("NNabla's `PF.min_max_quantized_*`") == len(QUICK.nets)


@pytest.mark.slow
def test_a_page_takes_whole_runs_only(content):
    with pytest.raises(ValueError, match="reduced or partial run"):
        tables.page_part("claims", [content])
    whole = copy.deepcopy(content)
    whole["meta"]["reduced"] = False
    assert tables.page_part("steps", [whole]) == tables.steps(content)
    two = tables.page_part("steps", [whole, whole])
    assert two.count(f"On {whole['meta']['name']}:") == 2
    assert tables.page_part("gpu", []).startswith("Unmeasured")
    assert tables.gpu(whole).startswith("Unmeasured")


@pytest.mark.slow
def test_gpu_rows_with_the_cpu_in_its_place(content):
    entries = gpu.measure(QUICK, "cpu", [("float", False)])
    nets = [row["net"].partition(",")[0] for row in entries[0]["updates"]]
    assert nets == ["float", "plain", "DQA portable", "DQA fused"]
    assert {"fused 3 start", "portable 3 hard"} < set(entries[0]["alone"]["ms"])
    with_rows = {**content, "sections": {**content["sections"], "gpu": entries}}
    text = tables.gpu(with_rows)
    assert text.count("DQA fused") == 1
    assert "unmeasured" in text  # memory, without nvidia-smi


@pytest.mark.slow
def test_partial_runs_say_what_is_missing():
    command = [sys.executable, "-m", "benchmarks.bench", "--quick", "--only", "imports"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "## imports" in done.stdout
    assert "## kernels" not in done.stdout
    assert done.stdout.count("unmeasured") == len(claims({}))
