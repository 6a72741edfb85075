"""AfriSenti: the sentiment of tweets in African languages (Muhammad et al., EMNLP 2023), made into a task of specialists.

For each language one half of the official training data, drawn by `task.split_seed` without a look at labels, is the
pool of that language's specialist. The other halves together are the transfer set, from which the student learns. The
official test data of all languages together is the test; the official dev data is not used.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np

from distill import hub
from distill.checks import UserError, expand, one_of, plain_name
from distill.data.formats import read_lines
from distill.data.splits import RawTask, Table
from distill.settings import TaskSettings

LABELS = ("negative", "neutral", "positive")
HUB = "shmuhammad/AfriSenti-twitter-sentiment"


def afrisenti_folders(data_dir: str) -> tuple[Path, ...]:
    """Where the folders of the languages may lie: in `data_dir`, in its folder `afrisenti`, or in one beside it."""
    folder = expand(data_dir)
    return folder, folder / "afrisenti", folder.parent / "afrisenti"


def read_afrisenti(settings: TaskSettings, data_dir: str | None) -> RawTask:
    """The task of `task.languages`, from files if `data_dir` leads to some, else from the hub, as `task.source` says.

    Raises:
        UserError: for no languages, a missing or malformed file, or when the hub cannot be reached.
    """
    languages = settings.languages
    if len(languages) < 2 or len(set(languages)) != len(languages):
        raise UserError(f"task.languages={languages} must name two or more languages, as [hau, ibo, yor, pcm]")
    for language in languages:
        plain_name(language, "task.languages: entry")
    folder = None if settings.source == "hub" else _folder(settings, data_dir)
    parts = [(language, split) for language in languages for split in ("train", "test")]
    official = (
        _from_hub(parts) if folder is None else [_from_file(folder / lang / f"{split}.tsv") for lang, split in parts]
    )
    by_part = dict(zip(parts, official, strict=True))
    trains, tests, pools = [], [], {}
    for language in languages:
        train, test = (_named(by_part[language, split], f"{language}-{split}") for split in ("train", "test"))
        # The generator belongs to the language, so that its halves do not depend on what the other languages are.
        rng = np.random.default_rng((settings.split_seed, zlib.crc32(language.encode())))
        order, half = rng.permutation(len(train)), len(train) // 2
        pools[language] = _rows(train, np.sort(order[:half]))
        trains.append(_rows(train, np.sort(order[half:]), owner=language))
        tests.append(test)
    tables = {"train": _together(trains), "test": _together(tests)}
    return RawTask("files" if folder else "hub", tables, LABELS, pools=pools)


def _folder(settings: TaskSettings, data_dir: str | None) -> Path | None:
    """The folder that holds a folder of the first language; None: use the hub."""
    places = afrisenti_folders(data_dir) if data_dir else ()
    for place in places:
        if (place / settings.languages[0] / "train.tsv").is_file():
            return place
    if settings.source == "files":
        raise UserError(
            f"task=afrisenti with task.source=files: no {settings.languages[0]}/train.tsv in "
            f"{' or '.join(map(str, places)) or 'data_dir, which is not set'}; set data_dir or TEACHER_SELECT_DATA"
        )
    return None


def _named(table: Table, prefix: str) -> Table:
    """The table with ids made of `prefix` and a row number."""
    return Table([f"{prefix}-{i}" for i in range(len(table))], table.texts, table.labels)


def _from_file(path: Path) -> Table:
    """One TSV file with columns `tweet` and `label`. Quotes have no meaning."""
    lines = read_lines(path)
    header = lines[0].split("\t")
    if header != ["tweet", "label"]:
        raise UserError(f"{path}: its columns must be tweet and label, got {', '.join(header)}")
    texts, labels = [], []
    for number, line in enumerate(lines[1:], 2):
        cells = line.split("\t")
        if not line.strip():
            continue
        if len(cells) != 2:
            raise UserError(f"{path}: line {number} has {len(cells)} tab-separated columns, 2 are needed")
        one_of(cells[1], LABELS, f"{path}: line {number}: label")
        texts.append((cells[0],))
        labels.append(cells[1])
    if len(texts) < 2:
        raise UserError(f"{path}: {len(texts)} data rows; at least two are needed")
    return Table([""] * len(texts), texts, labels)


def _from_hub(parts: list[tuple[str, str]]) -> list[Table]:
    """Languages and their splits from the hub."""
    way_out = f"set data_dir or TEACHER_SELECT_DATA to a folder holding {parts[0][0]}/train.tsv"
    tables = []
    for data in hub.load_splits(HUB, parts, "task=afrisenti", way_out):
        tweets, labels = hub.columns(data, ("tweet", "label"), "task=afrisenti")
        kind = data.features["label"]
        names = kind.int2str(labels) if hasattr(kind, "int2str") else labels
        for name in set(names):
            one_of(name, LABELS, "task=afrisenti: a label on the hub")
        tables.append(Table([""] * len(tweets), [(str(text),) for text in tweets], list(map(str, names))))
    return tables


def _rows(table: Table, rows: np.ndarray, owner: str | None = None) -> Table:
    """Some rows of a table, all of which belong to one owner."""
    labels = [table.labels[i] for i in rows]
    owners = [owner] * len(rows) if owner else None
    return Table([table.ids[i] for i in rows], [table.texts[i] for i in rows], labels, owners)


def _together(tables: list[Table]) -> Table:
    """The rows of all tables, one table after the other."""
    return Table(
        [i for t in tables for i in t.ids],
        [x for t in tables for x in t.texts],
        [y for t in tables for y in t.labels],
        [o for t in tables for o in t.owners or [""] * len(t)],
    )
