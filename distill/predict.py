"""`python -m distill.predict STUDENT FILE --text COLUMN --out predictions.csv`: a student's answers for a table of texts.

STUDENT is the folder that a run or a comparison leaves in `student/`, or any other classifier of transformers. FILE is CSV,
TSV, JSONL or Parquet. The output has one row for each row of FILE, in its order: the label, its probability, and the
probability of every class. They are those of `transformers.pipeline`, only faster: texts of similar length share a batch.
"""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distill import output
from distill.checks import UserError, expand

LONGEST = 100_000  # tokens; tokenizers that know no limit say something larger
DEVICES = r"auto|cpu|cuda(:\d+)?"
FALLBACK = 512  # tokens, where neither tokenizer nor model says how long a text may be


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Args:
        arguments: its words; None: those that the program was started with.

    Returns:
        The exit code: 0; 2 after a mistake in the words or files, which is printed in one line.
    """
    given = parser().parse_args(arguments)
    return output.exit_code(lambda: predict(given))


def parser() -> argparse.ArgumentParser:
    """The words of the command line."""
    out = argparse.ArgumentParser(
        "python -m distill.predict", description="Answers of a student for a table of texts.", allow_abbrev=False
    )
    out.add_argument("student", help="folder of the student, as a run leaves it in student/")
    out.add_argument("file", help="CSV, TSV, JSONL or Parquet")
    out.add_argument("--text", action="append", required=True, help="text column; twice for pairs of texts")
    out.add_argument("--out", required=True, help="file to write: .csv or .parquet")
    out.add_argument("--id", help="column of FILE to copy, as the first one")
    out.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (default: auto)")
    out.add_argument("--batch-size", type=int, default=64, help="texts in a batch (default: 64)")
    out.add_argument("--max-length", type=int, help="longest text in tokens (default: as the student was trained)")
    return out


def predict(given: argparse.Namespace) -> None:
    """Read, answer, write.

    Raises:
        UserError: for a wrong option, a file or student that cannot be read, or a place that cannot be written.
    """
    out = expand(given.out)
    if out.suffix.lower() not in (".csv", ".parquet"):
        raise UserError(f"--out={given.out}: unknown kind of file; use .csv or .parquet")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out={given.out}: there is no folder {out.parent}; make it first")
    if given.batch_size < 1:
        raise UserError(f"--batch-size={given.batch_size} must be positive")
    if given.max_length is not None and given.max_length <= 2:
        raise UserError(f"--max-length={given.max_length} must be above 2")
    if re.fullmatch(DEVICES, given.device) is None:
        raise UserError(f"--device={given.device} is not known; choose from auto, cpu, cuda, cuda:N")
    texts, ids = read_texts(expand(given.file), given.text, given.id)
    student, labels = load_student(given.student, given.device, texts, given.max_length)
    probs = probabilities(student, texts, given.batch_size)
    write(out, table(probs, labels, ids))
    print(f"{len(texts)} predictions written to {out}")


def read_texts(
    path: Path, columns: Sequence[str], id_column: str | None = None
) -> tuple[list[tuple[str, ...]], tuple[str, list[str]] | None]:
    """Texts of a table, and a column to copy with its name.

    Args:
        path: CSV, TSV, JSONL or Parquet.
        columns: one or two text columns.
        id_column: a column of any values; None: nothing to copy.
    """
    from distill.data.formats import read_table
    from distill.data.tables import full_column, no_column

    if len(columns) > 2:
        raise UserError(f"--text is given {len(columns)} times; a student reads one text or a pair")
    frame = read_table(path)
    if not len(frame):
        raise UserError(f"{path}: no data rows; there is nothing to predict")
    for name in (*columns, *([id_column] if id_column else ())):
        if name not in frame.columns:
            raise UserError(no_column(path, name, [str(c) for c in frame.columns]))
    texts = list(zip(*(full_column(frame[name], path, numbers=False) for name in columns), strict=True))
    return texts, (id_column, full_column(frame[id_column], path, numbers=True)) if id_column else None


def load_student(
    place: str, device: str, texts: Sequence[tuple[str, ...]], max_length: int | None = None, fast: bool = True
) -> tuple[Any, list[str]]:
    """A saved classifier as a `distill.student.Student`, and the names of its outputs.

    Args:
        place: a folder, or an id of the hub.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        texts: the texts that it will read; it is tried out on a few of them.
        max_length: longest text in tokens; None: as it was trained.
        fast: as the setting `fast`.

    Raises:
        UserError: for a folder without a classifier, or one that cannot run on the texts.
    """
    from distill.models.engine import Engine
    from distill.models.labels import check_head
    from distill.models.loading import check_outputs, load_classifier, load_tokenizer, resolve, settle_inputs
    from distill.models.trial import try_out
    from distill.settings import StudentSettings
    from distill.student import Student

    engine = Engine.pick(device, "off", fast)  # in full precision, as `transformers.pipeline` answers
    folder = resolve(place, "student")
    model: Any = load_classifier(folder, None, 0, "student")
    check_outputs(model.config, folder, "student")
    check_head(model.config, None, "student")
    tokenizer = load_tokenizer(folder, "student")
    settle_inputs(model.config, tokenizer)
    length = max_length or _length(model, tokenizer)
    try_out(model, tokenizer, texts, length, "student")
    labels = [str(model.config.id2label[i]) for i in range(model.config.num_labels)]
    return Student(model, tokenizer, StudentSettings(max_length=length), engine), labels


def _length(model: Any, tokenizer: Any) -> int:
    """The longest text of a saved student, in tokens: as its tokenizer says, else its positions."""
    if tokenizer.model_max_length <= LONGEST:
        return int(tokenizer.model_max_length)
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return min(positions, FALLBACK) if isinstance(positions, int) and positions > 2 else FALLBACK


def probabilities(student: Any, texts: Sequence[tuple[str, ...]], batch_size: int) -> np.ndarray:
    """Probabilities `[N,C]` of all texts, in their order; shows a progress bar on a terminal."""
    import torch

    logits = student.predict(student.tokenize(texts), batch_size, progress="predicting")
    if not logits.isfinite().all():
        raise UserError("the student's outputs are not finite; use another one")
    out: np.ndarray = torch.softmax(logits.double(), -1).numpy()
    return out


def table(probs: np.ndarray, labels: Sequence[str], ids: tuple[str, list[str]] | None) -> dict[str, Any]:
    """The columns of the output by name."""
    best = probs.argmax(1)
    out: dict[str, Any] = {} if ids is None else {ids[0]: ids[1]}
    for name in ("label", "probability"):
        if name in out:
            raise UserError(f"--id={name}: the output has a column of that name; rename it in the file")
    out |= {"label": [labels[i] for i in best], "probability": probs.max(1)}
    for place, label in enumerate(labels):  # a class may be called as another column is
        out[label if label not in out else f"class {label}"] = probs[:, place]
    return out


def write(path: Path, columns: dict[str, Any]) -> None:
    """Write the columns as CSV or Parquet: the whole file, or nothing."""
    import pandas as pd

    from distill import cache

    frame, content = pd.DataFrame(columns), io.BytesIO()
    if path.suffix.lower() == ".parquet":
        frame.to_parquet(content, index=False)
    else:
        frame.to_csv(content, index=False, float_format="%.6f")
    with cache.writing(path.absolute().parent, "name another --out"):
        cache.write_whole(path, content.getvalue())


if __name__ == "__main__":
    with output.may_be_cut():
        raise SystemExit(main())
