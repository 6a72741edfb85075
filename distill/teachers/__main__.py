"""`python -m distill.teachers [GROUP=OPTION ...] [KEY=VALUE ...]`: prepare a pool of teachers; say how good it is and what choosing can gain.

Fine-tunes the configured teachers, stores their signals, and prints the metrics of each teacher and of their averaged
probabilities. Then it compares, on the labels of the reward split and before any student is trained, all teachers, the best
single one, fixed weights, the most confident one and a selector per instance, and says in one sentence what to use.
Everything is kept in the cache, so that later runs start at once. For example:

    python -m distill.teachers task=mrpc teachers=fresh
    python -m distill.teachers task=bundled teachers.folds=4 threads=2

Settings of your own in DIR/experiment/NAME.yaml or DIR/teachers/NAME.yaml: --config-dir DIR experiment=NAME.
Settings: task, teachers (with teachers.pool, teachers.signals, teachers.folds), encoder, device, amp, fast, threads,
data_dir and home. Their values and defaults are in distill/settings.py and in the files of configs/.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from configs import compose
from configs.overrides import without_config_dir
from distill import output
from distill.checks import UserError

if TYPE_CHECKING:
    from distill.process import Prepared


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Args:
        arguments: overrides as for `configs.compose`; None: those of the command line.

    Returns:
        The exit code: 0; 2 after a mistake in the settings or files, which is printed in one line; 130 after Ctrl-C.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if any(word in ("-h", "--help") for word in given):
        print("usage: " + str(__doc__).replace("`", ""))
        return 0
    return output.exit_code(lambda: _look(given), "teachers that were finished are in the cache")


def _look(arguments: Sequence[str]) -> None:
    """Fine-tune and store what is missing, and print what the teachers are worth."""
    overrides, folders = without_config_dir(arguments)
    unknown = [word for word in overrides if word.startswith("-")]
    if unknown:
        raise UserError(f"{unknown[0]} is not known; give settings as KEY=VALUE, --help shows examples")
    prepared = _prepare(overrides, folders)
    scores = prepared.teacher_scores()
    check = _check(prepared)
    from distill import parallel

    if parallel.is_first():  # of several processes, one prints
        print_table(scores, ("train", "dev", *prepared.task.tests))
        print("\n".join(check))


def _check(prepared: Prepared) -> list[str]:
    """Whether choosing can help, as lines of text."""
    from distill import preflight

    check = preflight.of_pool(prepared)
    return [] if check is None else preflight.lines(check)


def _prepare(overrides: Sequence[str], folders: Sequence[str]) -> Prepared:
    """The pool of these settings, fine-tuned and stored. Sets the number of torch's threads for the whole process."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import torch

    from distill.process import Prepared  # imported here, so that --help answers at once
    from distill.settings import RunSettings

    settings = RunSettings.from_config(compose(overrides, folders=folders))
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    return Prepared.of(settings).load()


def print_table(scores: Sequence[Mapping[str, Any]], roles: Sequence[str]) -> None:
    """Print accuracy and mean cross-entropy (nats) of each teacher on the splits of `roles`, with a header.

    Args:
        scores: `Prepared.teacher_scores()`.
        roles: the columns, in order.
    """
    print(f"\n{'teacher':24s}" + "".join(f" {f'{role} acc':>12s} {f'{role} loss':>12s}" for role in roles))
    for row in scores:
        cells = (
            f" {row[role]['accuracy']:12.3f} {row[role]['loss']:12.3f}" if row[role] else f" {'-':>12s} {'-':>12s}"
            for role in roles
        )
        print(f"{row['name']:24s}" + "".join(cells))


if __name__ == "__main__":
    with output.may_be_cut():
        raise SystemExit(main())
