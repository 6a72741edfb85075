"""Which student a run or a comparison leaves in `student/`, and why; and the model card beside it."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill import cache
from distill.checks import UserError, one_of

STUDENT = "student"  # folder of a shipped student, and of one that a cell keeps
DEV_TRAINED = ("reward_labels", "control_plus_labels")  # their students have learnt the labels of dev

Result = Mapping[str, Any]


@dataclass(frozen=True)
class Choice:
    """The agent whose student is shipped, the seed, and the reason in one line."""

    agent: str
    seed: int
    reason: str


def of_a_run(ship: str | None, agent: str) -> str:
    """What a run of one agent ships: `control`, or the agent's own student.

    Raises:
        UserError: for anything else, before the run starts.
    """
    if ship == "best":
        raise UserError("ship=best compares agents over seeds; use agents/compare.py, or ship=control here")
    one_of(ship or agent, (agent, "control"), "ship")
    return ship or agent


def candidates(ship: str | None, entries: Sequence[str]) -> list[str]:
    """The entries of a comparison whose students may be shipped.

    Args:
        ship: `best`, an entry, the name of its agent, or null.
        entries: all entries.

    Raises:
        UserError: for an entry that the comparison does not have.
    """
    if ship is None:
        return []
    if ship == "best":
        return [entry for entry in entries if entry.split()[0] not in DEV_TRAINED]
    named = [entry for entry in entries if entry == ship] or [e for e in entries if e.split()[0] == ship]
    if len(named) > 1:
        raise UserError(f"ship={ship} names {len(named)} entries ({'; '.join(named)}); give one of them in full")
    if not named:
        one_of(ship, ("best", *entries), "ship")
    return named


def best_seed(results: Sequence[Result], agent: str) -> Result:
    """The result of an agent's best seed on dev: by the metric, then by the loss, then the first."""
    own = [r for r in results if r["agent"] == agent]
    return max(own, key=lambda r: (r["dev"][r["metric"]], -r["dev"]["loss"], -r["seed"]))


def choose(ship: str, entries: Sequence[str], results: Sequence[Result]) -> Choice:
    """The student that a comparison ships.

    `best` is the agent with the best mean on dev among those that are better than all teachers there: the 95 % interval
    of the paired difference is above zero, and Holm's p over all agents is below 0.05. Where none is, it is the control.
    Test data takes no part, so that its scores stay honest for the student that was chosen.

    Args:
        ship: as in the settings.
        entries: what may be shipped, see `candidates`.
        results: of all finished cells.

    Raises:
        UserError: where no cell of the agent has finished.
    """
    done = {r["agent"] for r in results}
    if ship == "best":
        agent, why = _recommended([r for r in results if r["agent"] in entries])
    else:
        agent, why = entries[0], f"ship={ship}"
    if agent not in done:
        raise UserError(f"ship={ship}: no cell of {agent} has finished; the errors above say why")
    result = best_seed(results, agent)
    metric, count = result["metric"], sum(r["agent"] == agent for r in results)
    score = f"dev {metric} {result['dev'][metric]:.4f}"
    return Choice(agent, result["seed"], f"{agent}, seed {result['seed']} (best of {count} on dev, {score}): {why}")


def _recommended(results: Sequence[Result]) -> tuple[str, str]:
    """The agent that the statistics on dev recommend, and why."""
    # Every run and cell imports this module, and scipy's statistics take a third of a second.
    from agents.experiment import stats
    from agents.experiment.tables import summarise

    rows = [row for row in summarise(results, "dev") if f"difference_{row['metric']}" in row]
    if not rows:
        return "control", "there is nothing to compare all teachers with"
    metric = rows[0]["metric"]

    def shown(row: Mapping[str, Any]) -> str:
        found = row[f"difference_{metric}"]
        return f"{stats.with_interval(found['mean'], found['interval'], '+.2f', 100)} points of dev {metric}"

    better = [
        row
        for row in rows
        if stats.is_clear(row[f"difference_{metric}"]["interval"])
        and row[f"difference_{metric}"]["mean"] > 0
        and row["p_holm"] < 0.05
    ]
    best = max(better or rows, key=lambda row: row["mean"])
    if not better:
        few = "; one seed shows no difference" if len(best["seeds"]) == 1 else ""
        return "control", f"no agent is shown to be better than all teachers (best: {best['agent']} {shown(best)}{few})"
    return best[
        "agent"
    ], f"better than all teachers by {shown(best)}, {len(best['seeds'])} seeds, p {best['p_holm']:.3g}"


# --- the students that cells keep -------------------------------------------------------------------------------------


def kept(folder: Path, result: Result) -> bool:
    """Whether the student of a finished cell is still in its folder, and is the one that was written."""
    place = folder / STUDENT
    return place.is_dir() and cache.folder_fingerprint(place) == result.get(STUDENT)


def drop_others(results: Sequence[Result], folders: Sequence[Path]) -> None:
    """Delete the students of all finished cells but the best seed of each agent: no other seed can be shipped.

    Args:
        results: of finished cells.
        folders: of the same cells.
    """
    for agent in {r["agent"] for r in results}:
        best = best_seed(results, agent)["seed"]
        for result, folder in zip(results, folders, strict=True):
            if result["agent"] == agent and result["seed"] != best:
                shutil.rmtree(folder / STUDENT, ignore_errors=True)
