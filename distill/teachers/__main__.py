"""`python -m distill.teachers`: fine-tune the configured pool, store its signals and print how good each teacher is."""

from __future__ import annotations

from typing import Any


def main() -> None:
    """Command line: fine-tune the configured pool, store its signals and print a table."""
    from agents.experiment.launch import launch

    launch(_command)


def _command(config: Any) -> None:
    from distill.process import prepare
    from distill.settings import ProcessSettings

    prepared = prepare(ProcessSettings.from_config(config))
    roles = ("train", "dev", *prepared.task.tests)
    print(f"\n{'teacher':24s}" + "".join(f" {f'{r} acc':>12s} {f'{r} loss':>12s}" for r in roles))
    for row in prepared.teacher_scores():
        print(f"{row['name']:24s}" + "".join(f" {row[r]['accuracy']:12.3f} {row[r]['loss']:12.3f}" for r in roles))


if __name__ == "__main__":
    main()
