"""docs/tutorials/tickets.md from its first line to the ONNX file, in its own order, with tickets from a generator."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pandas as pd
import pytest
import tickets

from agents import compare, reinforce
from agents.experiment.launch import launch
from distill import export, predict
from distill.teachers import __main__ as teachers

PAGE = Path(__file__).resolve().parents[1] / "docs" / "tutorials" / "tickets.md"
LABELS = list(tickets.LABELS)


def commands() -> dict[str, Callable[[list[str]], object]]:
    """What the page's commands start, in this process: a process for each would take most of the time."""

    def script(run: Callable[..., None], config: str) -> Callable[[list[str]], object]:
        def start(words: list[str]) -> None:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(sys, "argv", ["script.py", *words])
                launch(run, config)

        return start

    return {
        "distill.teachers": teachers.main,
        "distill.predict": predict.main,
        "distill.export": export.main,
        "agents/reinforce.py": script(reinforce.run, "config"),
        "agents/compare.py": script(compare.run, "compare"),
    }


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The folder after the whole page, and the programs in the order in which they ran. Two cells are enough here."""
    folder = tmp_path_factory.mktemp("tickets")
    tickets.make_folder(folder)
    ran = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for language, text in re.findall(r"^```(\w*)\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE):
            if language == "yaml":
                file = folder / "conf" / "experiment" / "tickets.yaml"
                file.parent.mkdir(parents=True)
                file.write_text(text)
            elif language == "python":
                exec(compile(text, str(PAGE), "exec"), {})
            else:
                words = shlex.split(text)
                assert words[0] == "python"
                program, arguments = (words[2], words[3:]) if words[1] == "-m" else (words[1], words[2:])
                if "compare" in program:
                    arguments += ["agents=[reinforce]", "seeds=1", "report=false"]
                arguments += ["threads=1"] if "experiment=tickets" in words else []
                assert commands()[program](arguments) in (None, 0), program
                ran.append(program)
    return folder, ran


pytestmark = pytest.mark.skipif(find_spec("onnxruntime") is None, reason="onnxruntime is not installed (extra onnx)")


def test_the_tutorial_is_walked(walked: tuple[Path, list[str]]) -> None:
    folder, ran = walked
    assert ran == ["distill.teachers", "agents/reinforce.py", "agents/compare.py", "distill.predict", "distill.export"]
    first = json.loads((folder / "outputs/tickets/first/results.json").read_text())
    assert min(first[which]["test"]["accuracy"] for which in ("control", "student")) > 0.8
    assert all(row["test"]["accuracy"] > 0.8 for row in first["teachers"])
    answers = pd.read_csv(folder / "predictions.csv")
    assert list(answers) == ["label", "probability", *LABELS]
    assert (answers["label"] == tickets.tickets(40, 2)["queue"]).mean() > 0.8


def test_the_comparison_ships_with_a_reason(walked: tuple[Path, list[str]]) -> None:
    run = walked[0] / "outputs" / "tickets" / "choice"
    shipped = json.loads((run / "comparison.json").read_text())["shipped"]
    assert (shipped["agent"], shipped["seed"]) == ("control", 0)
    assert "one seed shows no difference" in shipped["reason"]
    card = (run / "student" / "README.md").read_text()
    assert shipped["reason"] in card
    assert "experiment=tickets" in card


def test_the_files_name_no_place_of_this_machine(walked: tuple[Path, list[str]]) -> None:
    for run in ("first", "choice"):
        files = [p for p in (walked[0] / "outputs/tickets" / run / "student").rglob("*") if p.is_file()]
        assert len(files) > 4
        for file in files:
            content = file.read_bytes()
            for place in (walked[0], Path.home(), PAGE.parents[2]):
                assert str(place).encode() not in content or len(str(place)) < 3, file


def test_the_onnx_files_answer_as_the_student_does(walked: tuple[Path, list[str]]) -> None:
    student = walked[0] / "outputs" / "tickets" / "choice" / "student"
    models = {row["model"]: row for row in json.loads((student / "onnx" / "export.json").read_text())["models"]}
    assert list(models) == ["teacher bert", "teacher roberta", "student", "ONNX", "int8"]
    assert models["ONNX"]["scores"]["difference"] <= 1e-4
    assert models["ONNX"]["scores"]["accuracy"] == models["student"]["scores"]["accuracy"] > 0.8
    assert models["int8"]["scores"]["same label"] > 0.9
    assert models["int8"]["megabytes"] < models["student"]["megabytes"] < models["teacher bert"]["megabytes"]
    assert all(row["milliseconds"] > 0 for row in models.values())
    assert {p.name for p in (student / "onnx").iterdir()} == {"model.onnx", "model_quantized.onnx", "export.json"}
    assert "| int8 |" in (student / "README.md").read_text()
