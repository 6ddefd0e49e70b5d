"""The lesson runs from top to bottom, its solutions are right, and it is stored without outputs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LESSON = ROOT / "examples" / "lesson.ipynb"
EXECUTE = """
import sys
import nbformat
from nbclient import NotebookClient

path, folder = sys.argv[1:]
notebook = nbformat.read(path, 4)
NotebookClient(notebook, timeout=120, resources={"metadata": {"path": folder}}).execute()
nbformat.write(notebook, path)
"""
"""In a process of its own: warnings of Jupyter are not ours."""


@pytest.fixture(scope="module")
def lesson():
    return json.loads(LESSON.read_text("utf-8"))


def source(cell):
    return "".join(cell["source"])


def test_it_is_stored_without_outputs(lesson):
    assert (lesson["nbformat"], lesson["nbformat_minor"]) == (4, 5)
    code = [cell for cell in lesson["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    ids = [cell["id"] for cell in lesson["cells"]]
    assert len(set(ids)) == len(ids)
    assert lesson["metadata"]["kernelspec"]["name"] == "python3"


def test_a_text_stands_before_each_step(lesson):
    first, *others = lesson["cells"]
    assert source(first).startswith("# ")
    headings = [source(cell) for cell in others if cell["cell_type"] == "markdown"]
    assert not any(re.search(r"^# ", text, re.M) for text in headings)
    kinds = [cell["cell_type"] for cell in others[2:]]
    checks = {cell["id"] for cell in others if "check" in cell["metadata"].get("tags", [])}
    for before, cell, kind in zip(kinds, others[3:], kinds[1:]):
        assert "markdown" in (before, kind) or cell["id"] in checks


def test_its_links_lead_somewhere(lesson):
    text = "\n".join(source(cell) for cell in lesson["cells"])
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert len(links) > 5
    assert [link for link in links if not (LESSON.parent / link).is_file()] == []


def solutions(lesson):
    """Code by exercise, from the last cell."""
    found = re.findall(
        r"<summary>Exercise (\d)</summary>.*?```python\n(.*?)```", source(lesson["cells"][-1]), re.S
    )
    return dict(found)


def code_cell(name, text):
    rest = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    return {"id": name, "source": text, **rest}


def printed(cell):
    return "".join("".join(out["text"]) for out in cell["outputs"] if out.get("name") == "stdout")


@pytest.mark.slow
def test_it_runs_and_each_solution_is_right(lesson, tmp_path):
    """Each exercise is checked as it is stored, solved, and checked again."""
    for package in ("nbclient", "ipykernel", "sklearn", "matplotlib", "onnxruntime"):
        pytest.importorskip(package, reason=f"{package} is not installed (the extra [test])")
    answers, cells = solutions(lesson), []
    for cell in lesson["cells"]:
        cells.append(cell)
        if "check" in cell["metadata"].get("tags", []):
            number = re.fullmatch(r"ex(\d)-check", cell["id"]).group(1)
            answer = code_cell(f"solution-{number}", answers[number])
            cells += [answer, code_cell(f"again-{number}", source(cell))]
    path = tmp_path / "lesson.ipynb"
    path.write_text(json.dumps({**lesson, "cells": cells}), "utf-8")
    (tmp_path / "work").mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        # Whatever the user has set up for Jupyter stays out of it.
        **{
            name: str(tmp_path / name)
            for name in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR")
        },
    }
    environment.pop("MPLBACKEND", None)
    done = subprocess.run(
        [sys.executable, "-c", EXECUTE, str(path), str(tmp_path / "work")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    cells = {cell["id"]: cell for cell in json.loads(path.read_text("utf-8"))["cells"]}
    assert len(answers) == 3
    for number in answers:
        assert printed(cells[f"ex{number}-check"]).startswith("Not yet")
        assert printed(cells[f"again-{number}"]).startswith("Right")
    code = [cell for cell in cells.values() if cell["cell_type"] == "code"]
    errors = [out for cell in code for out in cell["outputs"] if out.get("name") == "stderr"]
    assert errors == []
    pictures = [
        c["id"] for c in code if any("image/png" in o.get("data", {}) for o in c["outputs"])
    ]
    assert pictures == ["see", "cool", "data", "picture", "bytes"]
    (accuracy,) = re.findall(r"DQA 2 bits: ([\d.]+)%", printed(cells["dqa"]))
    assert float(accuracy) > 90
    told = re.findall(r"([\d.]+)%", printed(cells["plain-nnabla"]) + printed(cells["onnx"]))
    assert told == [accuracy] * 3
    assert "the same as by hand: True" in printed(cells["minmax"])
    assert "<iframe" in str(cells["report"]["outputs"])
    # The lesson writes to a folder that it removes.
    assert list((tmp_path / "work").iterdir()) == []
