"""`python -m distill.export STUDENT --onnx [--int8]`: a student as an ONNX file, with what it costs beside its teachers.

The file is compared with the student on the dev texts of its run (STUDENT's folder has the run's config.yaml beside it) or
on a table of the user's (`--texts FILE --text COLUMN [--label COLUMN]`), and is written only if no output differs by more
than 1e-4. `--int8` adds a file with weights of 8 bits, whose outputs differ more; its scores stand beside the student's.
Files: STUDENT/onnx/model.onnx, model_quantized.onnx (int8) and export.json (the table). Needs the extra `onnx`.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill import output
from distill.checks import UserError, expand
from distill.predict import load_student, read_texts

if TYPE_CHECKING:
    from distill.data.tokens import TokenizedSplit

PACKAGES = ("onnx", "onnxruntime", "onnxscript")
CLOSE = 1e-4  # largest difference of an output of the ONNX file from the student's
TIMED = 40  # texts that the latency is measured on, one at a time
NAMES = {"ONNX": "model.onnx", "int8": "model_quantized.onnx"}  # as optimum and transformers.js call them
SECTION = "## Size and latency"  # of the model card

Forward = Callable[[Any], Any]  # from a padded batch to logits `[B,C]`, a tensor


@dataclass
class Row:
    """A model in the table: its size in MB, milliseconds for one text, and scores by name, as far as they are known."""

    model: str
    megabytes: float
    milliseconds: float
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Texts:
    """What the export is checked on.

    Attributes:
        where: how messages name it.
        texts: the texts.
        labels: for each text the place of its label among the student's outputs, int64 `[N]`; None: no labels.
        config: the settings of the run that the student is of; None: not known.
    """

    where: str
    texts: list[tuple[str, ...]]
    labels: np.ndarray | None = None
    config: Any = None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Args:
        arguments: its words; None: those that the program was started with.

    Returns:
        The exit code: 0; 2 after a mistake in the words or files, or a file that differs from the student, in one line.
    """
    given = parser().parse_args(arguments)
    return output.exit_code(lambda: export(given))


def parser() -> argparse.ArgumentParser:
    """The words of the command line."""
    out = argparse.ArgumentParser(
        "python -m distill.export", description="A student as an ONNX file.", allow_abbrev=False
    )
    out.add_argument("student", help="folder of the student, as a run leaves it in student/")
    out.add_argument("--onnx", action="store_true", required=True, help="write STUDENT/onnx/model.onnx")
    out.add_argument("--int8", action="store_true", help="also write STUDENT/onnx/model_quantized.onnx")
    out.add_argument("--texts", help="table to check the file on, instead of the run's dev data")
    out.add_argument("--text", action="append", help="text column of --texts; twice for pairs of texts")
    out.add_argument("--label", help="label column of --texts")
    out.add_argument("--teacher", action="append", default=[], help="a checkpoint to measure too; may be repeated")
    out.add_argument("--threads", type=int, default=1, help="threads of all measurements (default: 1)")
    return out


def export(given: argparse.Namespace) -> None:
    """Export, compare, measure, write, and print the table.

    Raises:
        UserError: for missing packages, a wrong option or file, a student that cannot be exported, or a file whose outputs
            are not the student's. Nothing is written then.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(f"--onnx needs {', '.join(missing)}; install the extra: pip install 'teacher-select[onnx]'")
    if given.threads < 1:
        raise UserError(f"--threads={given.threads} must be positive")
    from distill import cache
    from distill.process import torch_threads

    folder = expand(given.student)
    if not (folder / "config.json").is_file():
        raise UserError(f"{given.student}: no student there; name the folder student/ that a run left")
    with torch_threads(given.threads), tempfile.TemporaryDirectory() as aside:
        texts = _texts(given, folder)
        student, names = load_student(str(folder), "cpu", texts.texts, fast=False)
        texts = _with_labels(given, texts, names)
        tokens = student.tokenize(texts.texts)
        expected, scores = _judge(tokens, student.forward, names, texts)
        rows = [*_teachers(given, texts), Row("student", *_cost(student.model, tokens, student.forward), scores)]
        rows += _files(given, Path(aside), student, tokens, names, texts, expected)
        with (
            cache.writing(folder, "make it writable, or copy the student elsewhere"),
            cache.whole_folder(folder / "onnx") as place,
        ):
            for name in NAMES.values():
                if (Path(aside) / name).is_file():
                    cache.write_whole(place / name, (Path(aside) / name).read_bytes())
            facts = {"checked_on": texts.where, "texts": len(texts.texts), "threads": given.threads}
            cache.write_json(place / "export.json", facts | {"models": [vars(row) for row in rows]})
        _add_to_card(folder, rows, given.threads)
    print(table(rows))
    print(
        f"{len(texts.texts)} texts of {texts.where}; one text at a time, {given.threads} thread(s), without tokenizing"
    )
    print(f"written to {folder / 'onnx'}")


# --- what it is checked on --------------------------------------------------------------------------------------------


def _texts(given: argparse.Namespace, folder: Path) -> Texts:
    """The texts of `--texts`, or the dev split of the run that left the student."""
    if given.texts:
        if not given.text:
            raise UserError(f"--texts={given.texts}: add --text COLUMN")
        return Texts(Path(given.texts).name, read_texts(expand(given.texts), given.text)[0], config=_config(folder))
    config = _config(folder)
    if config is None:
        raise UserError(
            f"{folder}: no config.yaml of a run beside it, so its dev data is not known; add --texts FILE --text COLUMN"
        )
    from distill.data.load import load_task

    task = load_task(config.task, config.data_dir)
    dev = task.splits["dev"]
    return Texts(f"dev of task {task.name}", dev.texts, dev.labels, config)


def _config(folder: Path) -> Any:
    """The settings of the run in whose folder a student lies; None where there is none."""
    file = folder.absolute().parent / "config.yaml"
    if not file.is_file():
        return None
    from omegaconf import OmegaConf

    from distill.settings import RunSettings

    return RunSettings.from_config(OmegaConf.load(file))


def _with_labels(given: argparse.Namespace, texts: Texts, names: Sequence[str]) -> Texts:
    """The same texts, with the labels of `--label` as places among the student's outputs."""
    from dataclasses import replace

    if given.label is None or not given.texts:
        return texts
    _, column = read_texts(expand(given.texts), given.text, given.label)
    assert column is not None
    unknown = sorted(set(column[1]) - set(names))
    if unknown:
        raise UserError(f"{given.texts}: the student has no label {unknown[0]!r}; it has {', '.join(names)}")
    return replace(texts, labels=np.array([names.index(label) for label in column[1]], np.int64))


def _judge(
    tokens: TokenizedSplit, forward: Forward, names: Sequence[str], texts: Texts
) -> tuple[np.ndarray, dict[str, float]]:
    """Logits `[N,C]` of all texts, and scores on their labels, as far as there are labels."""
    from distill.data.splits import Task
    from distill.data.tokens import run_over

    logits = run_over(tokens, forward, 32).numpy()
    if texts.labels is None:
        return logits, {}
    scores = Task("", "", tuple(names), {}).scores(logits, texts.labels)
    return logits, {key: scores[key] for key in ("accuracy", "loss")}


# --- the files --------------------------------------------------------------------------------------------------------


def _files(
    given: argparse.Namespace,
    aside: Path,
    student: Any,
    tokens: TokenizedSplit,
    names: Sequence[str],
    texts: Texts,
    expected: np.ndarray,
) -> list[Row]:
    """Write the files aside and compare them with the student's logits `expected`; returns their rows of the table."""
    rows = []
    for name in ("ONNX", "int8")[: 2 if given.int8 else 1]:
        path = aside / NAMES[name]
        with _silence():
            (write_onnx(path, student, tokens) if name == "ONNX" else write_int8(aside / NAMES["ONNX"], path))
        forward = session(path, given.threads)
        logits, scores = _judge(tokens, forward, names, texts)
        apart = float(np.abs(logits - expected).max())
        if name == "ONNX" and not apart <= CLOSE:
            raise UserError(
                f"{student.model.config.model_type}: the ONNX file's outputs differ from the student's by {apart:.2g}, "
                f"more than {CLOSE:g}; nothing is written. Use the folder as it is, with transformers"
            )
        scores |= {"same label": float((logits.argmax(1) == expected.argmax(1)).mean()), "difference": apart}
        rows.append(Row(name, path.stat().st_size / 1e6, _milliseconds(tokens, forward), scores))
    return rows


@contextmanager
def _silence() -> Iterator[None]:
    """No warnings and log lines of the exporter, which are about its own inner workings."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def write_onnx(path: Path, student: Any, tokens: TokenizedSplit) -> None:
    """Write a student as ONNX, for batches of any number and length of texts.

    Args:
        path: the file.
        student: a `distill.student.Student` in the plain form (`fast=False`), on the CPU.
        tokens: texts in its tokens.

    Raises:
        UserError: for a model that torch cannot export.
    """
    import torch

    from distill.models.loading import reason

    class Logits(torch.nn.Module):
        """The model with its inputs by place and one output."""

        def __init__(self, model: Any, names: list[str]) -> None:
            super().__init__()
            self.model, self.names = model, names

        def forward(self, *inputs: Any) -> Any:
            return self.model(**dict(zip(self.names, inputs, strict=True))).logits

    # A batch with padding, and more than one row and token: sizes of one would be taken to be fixed.
    order = np.argsort(tokens.lengths)
    example = tokens.batch(order[[0, -1]] if len(order) > 1 else np.array([0, 0]))
    names = list(example)
    sizes = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    try:
        program = torch.onnx.export(
            Logits(student.model, names).eval(),
            tuple(example.values()),
            input_names=names,
            output_names=["logits"],
            dynamo=True,
            dynamic_shapes=(tuple(sizes for _ in names),),
            verbose=False,
        )
        assert program is not None
        _without_notes(program.model_proto, path)
    except Exception as error:  # torch, onnxscript and onnx raise exceptions of many classes
        raise UserError(
            f"student: torch cannot export {type(student.model).__name__} to ONNX ({reason(error)}); "
            "use the folder as it is, with transformers"
        ) from None


def _without_notes(model: Any, path: Path) -> None:
    """Write an ONNX model without the exporter's notes: they are larger than a small model, and name folders of this machine."""
    import onnx

    for part in (model.graph, *model.functions):
        part.ClearField("value_info")  # shapes between the nodes; some releases of onnx disagree with the exporter's
        for each in (part, *part.node, *part.input, *part.output):
            for name in ("doc_string", "metadata_props"):
                if not isinstance(each, str):
                    each.ClearField(name)
    onnx.save(model, str(path))


def write_int8(source: Path, path: Path) -> None:
    """Write an ONNX file again with weights of 8 bits, by onnxruntime's dynamic quantisation."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from distill.models.loading import reason

    try:
        quantize_dynamic(source, path, weight_type=QuantType.QInt8)
    except Exception as error:
        raise UserError(f"--int8: onnxruntime cannot quantise the file ({reason(error)}); leave --int8 out") from None


def session(path: Path, threads: int) -> Forward:
    """A function from a padded batch to the logits `[B,C]` of an ONNX file, on the CPU."""
    import onnxruntime
    import torch

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors
    opened = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    taken = {each.name for each in opened.get_inputs()}  # an input without an effect is not in the file

    def forward(batch: Mapping[str, Any]) -> Any:
        given = {name: value.numpy() for name, value in batch.items() if name in taken}
        return torch.from_numpy(opened.run(["logits"], given)[0])

    return forward


# --- what they cost ---------------------------------------------------------------------------------------------------


def _cost(model: Any, tokens: TokenizedSplit, forward: Forward) -> tuple[float, float]:
    """Size of a torch model's weights in MB, and milliseconds for a text."""
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    return size / 1e6, _milliseconds(tokens, forward)


def _milliseconds(tokens: TokenizedSplit, forward: Forward) -> float:
    """The median time of a forward pass of one text, without tokenizing it."""
    import torch

    rows = np.linspace(0, len(tokens) - 1, min(TIMED, len(tokens))).astype(int)
    batches = [tokens.batch(np.array([row])) for row in rows]
    times = []
    with torch.inference_mode():
        for batch in [*batches[:3], *batches]:  # the first ones warm up
            started = time.perf_counter()
            forward(batch)
            times.append(time.perf_counter() - started)
    return 1000 * float(np.median(times[3:] or times))


def _teachers(given: argparse.Namespace, texts: Texts) -> Iterator[Row]:
    """Size and latency of the teachers: those of `--teacher`, and the run's own whose checkpoint is still there."""
    found = [(f"teacher {Path(path).name}", path, None, None) for path in given.teacher]
    for spec in () if texts.config is None else texts.config.teachers.pool:
        if spec.kind in ("checkpoint", "finetune") and spec.path:
            found.append((f"teacher {spec.name}", spec.path, spec.max_length, getattr(spec, "layers", None)))
    for name, path, length, layers in found:
        try:
            yield _teacher(name, str(path), length, layers, texts)
        except UserError as error:
            print(f"{name} is not measured: {error}", file=sys.stderr)


def _teacher(name: str, path: str, length: int | None, layers: int | None, texts: Texts) -> Row:
    """A teacher's row. One that was fine-tuned by the run costs what the checkpoint costs that it started from."""
    from distill.models.engine import Engine
    from distill.models.loading import load_classifier, load_tokenizer, resolve
    from distill.models.trial import try_out
    from distill.settings import StudentSettings
    from distill.student import Student

    folder = resolve(path, name)
    labels = None if layers is None and "architectures" in _fine_tuned(folder) else ["a", "b"]
    model, tokenizer = load_classifier(folder, labels, 0, name, layers), load_tokenizer(folder, name)
    settings = StudentSettings(max_length=length or 128)
    try_out(model, tokenizer, texts.texts, settings.max_length, name)
    student = Student(model, tokenizer, settings, Engine.pick("cpu", "off", False))
    return Row(name, *_cost(model, student.tokenize(texts.texts[:TIMED]), student.forward))


def _fine_tuned(folder: Path) -> dict[str, Any]:
    """The configuration of a checkpoint with a classifier's head; empty for one without."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    head = any("SequenceClassification" in str(name) for name in config.get("architectures") or [])
    return config if head else {}


# --- the table --------------------------------------------------------------------------------------------------------

COLUMNS = ("model", "MB", "ms a text", "accuracy", "loss", "same label", "largest difference")


def cells(row: Row) -> list[str]:
    """The cells of a row; empty where nothing is known."""
    scores = row.scores
    return [
        row.model,
        f"{row.megabytes:.2f}",
        f"{row.milliseconds:.2f}",
        f"{scores['accuracy']:.4f}" if "accuracy" in scores else "",
        f"{scores['loss']:.4f}" if "loss" in scores else "",
        f"{scores['same label']:.2%}" if "same label" in scores else "",
        f"{scores['difference']:.1e}" if "difference" in scores else "",
    ]


def table(rows: Sequence[Row]) -> str:
    """The table as text, its columns aligned."""
    lines = [list(COLUMNS), *map(cells, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS))]
    return "\n".join(
        "  ".join(
            text.ljust(w) if i == 0 else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def _add_to_card(folder: Path, rows: Sequence[Row], threads: int) -> None:
    """Add the table to the student's model card, or replace the one of an earlier export."""
    from distill import cache
    from distill.card import markdown

    card = folder / "README.md"
    if not card.is_file():
        return
    text = re.sub(rf"\n{SECTION}\n.*?(?=\n## |\Z)", "", card.read_text(encoding="utf-8"), flags=re.DOTALL)
    note = f"Milliseconds for one text at a time on {threads} thread(s) of a CPU, without tokenizing."
    section = f"\n{SECTION}\n\n{markdown(COLUMNS, [cells(row) for row in rows])}\n\n{note}\n"
    cache.write_whole(card, f"{text.rstrip()}\n{section}".encode())


if __name__ == "__main__":
    with output.may_be_cut():
        raise SystemExit(main())
