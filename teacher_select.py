"""The front door: `import teacher_select` registers the environments, whatever else is called `envs`.

The project's packages are called `envs`, `agents`, `distill` and `configs`. A folder of the same name in the current
folder, or another installed package, would be imported in their place; importing this module says so in one line.

    import teacher_select
    env = teacher_select.make_vec("TeacherSelect-v0", num_envs=32)
    scores = teacher_select.evaluate("best_single", "TeacherSelect/Tiny-v0", seeds=3)

`teacher-select COMMAND ...` on the command line runs the scripts from any folder; `teacher-select --help` lists them.
"""

from __future__ import annotations

import importlib
import importlib.util
import runpy
import sys
from pathlib import Path
from typing import Any

PACKAGES = ("configs", "distill", "envs", "agents")
COMMANDS = {
    "reinforce": ("agents.reinforce", "train the paper's selector while a student learns"),
    "sb3": ("agents.sb3", "train an agent of Stable-Baselines3"),
    "compare": ("agents.compare", "compare rules and agents over seeds"),
    "teachers": ("distill.teachers", "look at the teachers before training: can choosing among them help?"),
    "predict": ("distill.predict", "a student's answers for a table of texts"),
    "export": ("distill.export", "a student as an ONNX file"),
    "cache": ("distill.cache", "list what the caches hold, or remove what was not used for long"),
    "leaderboard": ("envs.leaderboard", "replay the actions of a policy and keep its score"),
}


def _place(name: str) -> Path | None:
    """The folder that `import name` would take, or has taken; None where there is none."""
    module = sys.modules.get(name)
    spec = importlib.util.find_spec(name) if module is None else module.__spec__
    places = list(spec.submodule_search_locations or [spec.origin or ""]) if spec else []
    return Path(places[0]).resolve() if places else None


def _check_packages() -> None:
    """Raise `ImportError` unless the four packages are those of this project."""
    home = Path(__file__).resolve().parent
    for name in PACKAGES:
        found = _place(name)
        if found == home / name:
            continue
        if found is None:
            raise ImportError(f"{home / name} is missing; install teacher-select again")
        raise ImportError(
            f"{found} is imported as {name!r}, in the place of TeacherSelect's {home / name}; rename that folder, start "
            "Python in another folder, or use a virtual environment without it"
        )


_check_packages()
importlib.import_module("envs")  # registers the ids


def make(id: str = "TeacherSelect-v0", **kwargs: Any) -> Any:
    """`gymnasium.make` of one of the project's ids, one instance a step."""
    return importlib.import_module("gymnasium").make(id, **kwargs)


def make_vec(id: str = "TeacherSelect-v0", num_envs: int = 32, **kwargs: Any) -> Any:
    """`gymnasium.make_vec` of one of the project's ids, one batch of `num_envs` rows a step."""
    return importlib.import_module("gymnasium").make_vec(id, num_envs=num_envs, **kwargs)


def __getattr__(name: str) -> Any:
    """`evaluate` and its results, imported when they are first asked for: they load torch."""
    if name in ("evaluate", "Score", "Scores"):
        return getattr(importlib.import_module("agents.evaluate"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _usage() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  {name:{width}}  {text}" for name, (_, text) in COMMANDS.items()]
    return "\n".join(
        [
            "usage: teacher-select COMMAND ...",
            "",
            *lines,
            "",
            "teacher-select COMMAND --help explains a command and its settings",
        ]
    )


def main(arguments: list[str] | None = None) -> int:
    """Run a command; `arguments` are those after the program's name. Exit code 2 for an unknown one."""
    given = sys.argv[1:] if arguments is None else arguments
    if not given or given[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    name, *rest = given
    if name not in COMMANDS:
        from distill.checks import UserError, one_of

        try:
            one_of(name, tuple(COMMANDS), "command")
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
        return 2
    sys.argv[:] = [f"teacher-select {name}", *rest]  # the name that --help and reproduce lines show
    runpy.run_module(COMMANDS[name][0], run_name="__main__", alter_sys=False)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
