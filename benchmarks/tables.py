"""Write the tables of the documentation and of README.md from the committed results in benchmarks/results/.

A table stands between `<!-- KIND: FILE ... -->` and `<!-- end -->`. The kinds:

    table     all agents of a comparison, with its facts and its command
    chosen    only the agents named after the file
    selector  all agents, with the labels they have used and what the whole job costs; then the learnt ones against the rules
    credit    REINFORCE under each credit and reward
    predicted one line a comparison: what the check before training said, and what the student gained
    map       the bundled task case by case
    joint     one line a comparison and agent: what joint training adds to the default agent
    alike     one line a comparison and agent: the default agent and calibration where teachers are alike
    real      one line a comparison: the policy, labels alone and the ceiling against all teachers
    folds     cross-fitted rows against the control with the same folds
    teachers  what there is to choose from, one line a pool
    speed, parts, fast, scale    measurements of docs/performance.md
    faults    how the fault tests ended
    architectures    what every architecture comes to

    python benchmarks/tables.py            rewrite the pages
    python benchmarks/tables.py --check    exit code 1 if a page would change
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from agents.experiment import stats
from agents.experiment.tables import against_baselines

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
DOCS = ("results", "results-appendix", "credit", "performance", "reliability")
PAGES = (*(ROOT / "docs" / f"{name}.md" for name in DOCS), ROOT / "README.md")
# Settings that were renamed or deleted after commit 5904256. Results that name them were measured there or earlier.
OLD_SETTINGS = re.compile(r"agent\.(credit|pull)=|reward\.(credit|center|horizon|direction_\w+)=")
OLD_COMMIT = "5904256"


def difference(pair: dict[str, Any] | None, factor: float, form: str) -> str:
    """`mean [low, high]`, scaled; empty for the control."""
    if pair is None:
        return ""
    return stats.with_interval(pair["mean"], pair["interval"], form, factor)


def table(results: dict[str, Any], test: str) -> str:
    """A comparison as Markdown: differences of the metric in points, of the loss in nats."""
    metric = results["metric"]
    lines = [
        f"| agent | {metric} | - control, points [95 %] | p (Holm) | test loss | - control, nats [95 %] | ECE | teachers on |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in results["tables"][test]:
        p = row.get("p_holm")
        cells = [
            f"`{row['agent']}`",
            f"{row['mean']:.4f}",
            difference(row.get(f"difference_{metric}"), 100, "+.2f"),
            "" if p is None else f"{p:.3f}",
            f"{row['mean_loss']:.4f}",
            difference(row.get("difference_loss"), 1, "+.4f"),
            f"{row['mean_ece']:.3f}",
            f"{row['mean_size']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def comparison(results: dict[str, Any]) -> str:
    """Facts, table and command of a comparison."""
    facts = f"{len(results['seeds'])} seeds, {results['data']['train']} training and {results['data']['test']} test instances, "
    facts += f"{results['device']}, {results['threads']} torch thread(s) a cell, amp {results['amp']}, fast={str(results['fast']).lower()}."
    command = f"```\n{results['reproduce']}\n```"
    if OLD_SETTINGS.search(results["reproduce"]):
        command = f"Measured at commit {OLD_COMMIT} or earlier; the command is written for that commit:\n\n{command}"
    return f"{facts}\n\n{table(results, results['tests'][0])}\n\n{command}"


def chosen(results: dict[str, Any], *names: str) -> str:
    """The rows of a comparison that are named, in the order of the comparison."""
    test, metric = results["tests"][0], results["metric"]
    lines = head(
        "agent", f"test {metric}", f"points over all teachers [95 %], {len(results['seeds'])} seeds", "p (Holm)"
    )
    for row in (r for r in results["tables"][test] if r["agent"] in names):
        p = row.get("p_holm")
        gain = difference(row.get(f"difference_{metric}"), 100, "+.1f")
        lines.append(line(f"`{row['agent']}`", f"{row['mean']:.3f}", gain, "" if p is None else f"{p:.3f}"))
    return "\n".join(lines)


def selector(results: dict[str, Any]) -> str:
    """All agents with their labels and costs, then every learnt agent against the strong rules."""
    test, metric = results["tests"][0], results["metric"]
    seeds = len(results["seeds"])
    columns = "agent", "labels", f"test {metric}", f"points over all teachers [95 %], {seeds} seeds"
    lines = head(*columns, "test loss, nats over all teachers [95 %]", "whole job")
    for row in results["tables"][test]:
        gain, loss = (row.get(f"difference_{name}") for name in (metric, "loss"))
        job = f"{row['whole_job']:.1f}" if "whole_job" in row else ""
        named = f"`{row['agent']}`", row["labels"], f"{row['mean']:.3f}"
        lines.append(line(*named, difference(gain, 100, "+.1f"), difference(loss, 1, "+.3f"), job))
    pairs = against_baselines(results["cells"], test)
    if pairs:
        lines += ["", *head("agent", "against", "points [95 %]", "seeds")]
    for pair in pairs:
        gain = difference(pair[f"difference_{metric}"], 100, "+.2f")
        lines.append(line(f"`{pair['agent']}`", f"`{pair['baseline']}`", gain, len(pair["seeds"])))
    return "\n".join([*lines, "", "```", results["reproduce"], "```"])


@dataclass(frozen=True)
class Evidence:
    """One case: what the check before training predicted, and what the default agent's student gained over all teachers.

    Attributes:
        group: bundled, afrisenti or glue. name: of the case. labels: how many the check had.
        predicted, realised: accuracy gained by the soft labels and by the student, each with the ends of its interval.
        sentence: of the check, up to its figures.
    """

    group: str
    name: str
    labels: int
    predicted: tuple[float, float, float]
    realised: tuple[float, float, float]
    sentence: str


def _evidence(group: str, name: str, check: dict[str, Any], gain: dict[str, Any]) -> Evidence:
    soft = next(c for c in check["choices"] if c["name"] == "selector")["gain_accuracy"]
    said = check["sentence"].partition(":")[0].rstrip(".")
    return Evidence(group, name, check["instances"], tuple(soft), (gain["mean"], *gain["interval"]), said)


def of_comparison(results: dict[str, Any]) -> Evidence:
    """The case of a comparison."""
    row = next(r for r in results["tables"][results["tests"][0]] if r["agent"] == "reinforce")
    task = results["task"]
    group = task if task in ("bundled", "afrisenti") else "glue"
    name = f"{task}, {len(results['teachers'])} teachers"
    return _evidence(group, name, results["preflight"], row[f"difference_{results['metric']}"])


def evidence() -> list[Evidence]:
    """Every pool and number of labels that there are committed results of, each once; the default agent's own settings."""
    paths = [path for form in ("selector-*.json", "budget-*-*.json") for path in sorted(RESULTS.glob(form))]
    cases: dict[tuple[str, int], Evidence] = {}
    for path in paths:
        if path.name.startswith("selector-") and path.stem.count("-") > 1:
            continue  # a variant of another comparison
        case = of_comparison(json.loads(path.read_text(encoding="utf-8")))
        cases.setdefault((case.name, case.labels), case)
    found = list(cases.values())
    place = RESULTS / "map-bundled.json"
    if place.is_file():
        report = json.loads(place.read_text(encoding="utf-8"))
        found += [_evidence("bundled", f"bundled, {n}", c["preflight"], c["gain"]) for n, c in report["cases"].items()]
    return found


def correlation(cases: Sequence[Evidence]) -> float:
    """Pearson's correlation of the predicted and the realised gains."""
    return float(np.corrcoef([c.predicted[0] for c in cases], [c.realised[0] for c in cases])[0, 1])


def predicted(*comparisons: dict[str, Any]) -> str:
    """What the check before training said, beside the gain of the default agent's student; then the correlation over all."""
    lines = head(
        "task",
        "labels",
        "predicted: points of accuracy of the soft labels",
        "student: points over all teachers [95 %]",
        "sentence",
    )
    for case in map(of_comparison, comparisons):
        gains = (stats.with_interval(mean, ends, "+.1f", 100) for mean, *ends in (case.predicted, case.realised))
        lines.append(line(case.name, case.labels, *gains, case.sentence))
    cases = evidence()
    return "\n".join([*lines, "", f"Correlation over all {len(cases)} cases with results: {correlation(cases):.2f}."])


def map_rows(report: dict[str, Any]) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The cases of the map by kind and number of labels, and these numbers in order."""
    rows: dict[str, dict[str, Any]] = {}
    for name, case in report["cases"].items():
        kind, _, labels = name.rpartition(", ")
        rows.setdefault(kind, {})[labels] = case
    return rows, list(next(iter(rows.values())))


def bundled_map(report: dict[str, Any]) -> str:
    """The map of the bundled task: gains over all teachers by case and number of labels; then its command."""
    rows, columns = map_rows(report)
    lines = head("case", "a specialist's error at home", *(f"{c}: points [95 %]" for c in columns))
    for kind, row in rows.items():
        error = np.mean(list(row[columns[0]]["home_error"].values()))
        lines.append(line(kind, f"{error:.2f}", *(difference(row[c]["gain"], 100, "+.1f") for c in columns)))
    return "\n".join([*lines, "", "```", report["reproduce"], "```"])


def joint(*comparisons: dict[str, Any]) -> str:
    """What joint training adds to the default agent, which has none: one line a comparison and agent."""
    lines = head("task", "agent", "joint episodes", "points over the default agent [95 %]", "seeds", "whole job")
    for results in comparisons:
        test, metric = results["tests"][0], results["metric"]
        jobs = {row["agent"]: row["whole_job"] for row in results["tables"][test]}
        for pair in against_baselines(results["cells"], test):
            if pair["baseline"] != "reinforce" or "calibrate" in pair["agent"]:
                continue
            given = dict(word.split("=") for word in pair["agent"].split()[1:])
            episodes = given.get("agent.episodes", "4" if given.get("agent.start") == "all_on" else "1")
            gain = difference(pair[f"difference_{metric}"], 100, "+.2f")
            named = f"{results['task']}, {len(results['teachers'])} teachers", f"`{pair['agent']}`", episodes
            lines.append(line(*named, gain, len(pair["seeds"]), f"{jobs[pair['agent']]:.1f}"))
    return "\n".join(lines)


def alike(*comparisons: dict[str, Any]) -> str:
    """Pools with little to choose from: the default agent and calibration against all teachers, accuracy and loss."""
    lines = head(
        "task, seeds", "agent", "test accuracy", "points over all teachers [95 %]", "test loss, nats [95 %]", "ECE"
    )
    for results in comparisons:
        metric = results["metric"]
        for row in results["tables"][results["tests"][0]]:
            if row["agent"] != "control" and "agent." in row["agent"]:
                continue
            gain, loss = (
                difference(row.get(f"difference_{k}"), f, n) for k, f, n in ((metric, 100, "+.2f"), ("loss", 1, "+.3f"))
            )
            named = f"{results['task']}, {len(results['seeds'])}", f"`{row['agent']}`"
            lines.append(line(*named, f"{row['mean']:.3f}", gain, loss, f"{row['mean_ece']:.3f}"))
    return "\n".join(lines)


def real(*comparisons: dict[str, Any]) -> str:
    """One line a comparison: differences to all teachers of the policy, of labels alone and of the ceiling."""
    lines = head(
        "task, seeds",
        "all teachers: accuracy",
        "policy: points [95 %]",
        "ceiling: points [95 %]",
        "policy: loss, nats [95 %]",
        "labels alone: loss, nats [95 %]",
    )
    for results in comparisons:
        metric = results["metric"]
        rows = {r["agent"]: r for r in results["tables"][results["tests"][0]]}
        policy = next(r for name, r in rows.items() if name.startswith("reinforce"))  # the first one has the defaults
        points = [difference(row[f"difference_{metric}"], 100, "+.2f") for row in (policy, rows["headroom"])]
        losses = [difference(row["difference_loss"], 1, "+.3f") for row in (policy, rows["labels"])]
        named = f"{results['task']}, {len(results['seeds'])}", f"{rows['control']['mean']:.4f}"
        lines.append(line(*named, *points, *losses))
    return "\n".join(lines)


def credit(results: dict[str, Any]) -> str:
    """REINFORCE under every credit and reward, beside the oracle's gap."""
    test, metric = results["tests"][0], results["metric"]
    rows = {r["agent"]: r for r in results["tables"][test]}
    room = rows["oracle"][f"difference_{metric}"]["mean"]
    lines = [
        f"| credit or reward | control | student | points over control [95 %], {len(results['seeds'])} seeds | gap to the oracle closed |",
        "|---|---|---|---|---|",
    ]
    for agent, row in rows.items():
        name, *settings = agent.split()
        if name not in ("reinforce", "oracle"):
            continue
        known = dict(word.split("=") for word in settings)
        by_credit = known.get("credit.name") or known.get("agent.credit")  # its name before it became `credit.name`
        shown = known.get("reward") or by_credit or ("counterfactual" if name == "reinforce" else name)
        gain = row[f"difference_{metric}"]
        cells = [f"`{shown}`", f"{rows['control']['mean']:.3f}", f"{row['mean']:.3f}", difference(gain, 100, "+.1f")]
        share = f"{gain['mean'] / room:.0%}"
        lines.append(f"| {' | '.join([*cells, share])} |")
    return "\n".join(lines)


def teachers(results: dict[str, Any]) -> str:
    """One line a pool."""
    lines = [
        "| pool | accuracy on train | on test | loss on train | on test | two agree, train | on test | at least one right, test | all right, test |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, entry in results.items():
        train, test = (entry[r] for r in entry if r not in ("task", "teachers"))
        spans = [
            f"{min(v):.3f} to {max(v):.3f}" for v in (train["accuracy"], test["accuracy"], train["loss"], test["loss"])
        ]
        shares = [f"{v:.3f}" for v in (train["agreement"], test["agreement"], test["any_right"], test["all_right"])]
        lines.append(f"| {' | '.join([f'`{name}`', *spans, *shares])} |")
    return "\n".join(lines)


def folds(results: dict[str, Any]) -> str:
    """Cross-fitted rows against the control with the same folds: one warm start, as it should be."""
    metric, test = results["metric"], results["tests"][0]
    cells = {(c["agent"], c["seed"]): c[test] for c in results["cells"]}
    lines = [
        f"| with cross-fitted signals | {metric} | - their control, points [95 %] | test loss | - their control, nats [95 %] | ECE |",
        "|---|---|---|---|---|---|",
    ]
    for row in results["tables"][test]:
        name, _, setting = row["agent"].partition(" teachers.folds=")
        if not setting:
            continue
        pairs = {}
        for key in (metric, "loss") if name != "control" else ():
            ours, theirs = (
                np.array([cells[f"{a} teachers.folds={setting}", s][key] for s in results["seeds"]])
                for a in (name, "control")
            )
            pairs[key] = asdict(stats.paired(ours, theirs))
        gain, loss = difference(pairs.get(metric), 100, "+.2f"), difference(pairs.get("loss"), 1, "+.4f")
        lines.append(
            f"| `{name}` | {row['mean']:.4f} | {gain} | {row['mean_loss']:.4f} | {loss} | {row['mean_ece']:.3f} |"
        )
    return "\n".join(lines)


def line(*cells: object) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def head(*cells: object) -> list[str]:
    """Its first two rows."""
    return [line(*cells), "|" + "---|" * len(cells)]


def speed(results: dict[str, Any]) -> str:
    """Ratios to the floor, one column a workload and thread count; then other tools beside ours; then the commands."""
    runs = list(results.values())
    rows = [{r["way"]: r for r in run["rows"]} for run in runs]
    titles = [f"{run['workload']}, {run['threads']} thread{'s' * (run['threads'] > 1)}, {run['amp']}" for run in runs]
    lines = head("ratio to the floor", "target", *titles)
    for name in dict.fromkeys(name for row in rows for name in row):
        target = next((row[name]["target"] for row in rows if name in row), None)
        ratios = [f"{row[name]['ratio']:.2f}" if name in row else "" for row in rows]
        lines.append(line(name, target or "", *ratios))
    lines.append(line("the floor, examples/s", "", *(f"{row['floor']['examples_per_s']:.0f}" for row in rows)))
    lines.append(line("load of the machine at the end", "", *(f"{run['load']:.1f}" for run in runs)))
    lines += ["", *head("ratio to the same loop as transformers computes it (`fast=false`)", *titles)]
    for name in (name for name, row in rows[0].items() if "to_plain" in row and not name.startswith("TextBrewer")):
        lines.append(line(name, *(f"{row[name]['to_plain']:.2f}" for row in rows)))
    peers: list[str] = []
    for run, row in zip(runs, rows, strict=True):
        for r in (r for r in run["rows"] if "distance" in r):
            ours = [row[f"all teachers, {kind}"]["examples_per_s"] / r["examples_per_s"] for kind in ("stored", "live")]
            named = f"{run['workload']}, {run['threads']}", r["way"], f"{r['examples_per_s']:.0f}"
            losses = f"{r['dev_loss']:.5f}", f"{r['our_dev_loss']:.5f}", f"{r['distance']:.0e}"
            peers.append(line(*named, *(f"{x:.2f}" for x in ours), *losses))
    if peers:
        columns = ("examples/s", "ours stored / it", "ours live / it", "its dev loss", "ours", "weights apart")
        lines += ["", *head("workload, threads", "other tool", *columns), *peers]
    return "\n".join([*lines, "", "```", *(run["reproduce"] for run in runs), "```"])


def parts(results: dict[str, Any]) -> str:
    """Milliseconds of a step's parts, and the floor by kind of operation, one column a workload."""
    runs = list(results.values())
    titles = [f"{run['workload']}, {run['threads']}" for run in runs]
    lines = head("milliseconds", *titles)
    lines += [line(name, *(f"{run['parts_ms'][name]:.2f}" for run in runs)) for name in runs[0]["parts_ms"]]
    lines += ["", *head("share of the floor's processor time", *titles)]
    lines += [line(name, *(f"{run['shares'][name]:.0%}" for run in runs)) for name in runs[0]["shares"]]
    return "\n".join(lines)


def fast(results: dict[str, Any]) -> str:
    """Each faster form beside transformers' own: how many times as fast a step and a forward are."""
    lines = head(
        "student, amp", "transformers' step, ms", *(f"{f}: step, forward" for f in ("last layer", "products", "both"))
    )
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in results["rows"]:
        groups.setdefault(f"{row['student']}, {row['amp']}", []).append(row)
    for name, (first, *others) in groups.items():
        lines.append(
            line(name, f"{first['step_ms']:.1f}", *(f"{r['step_gain']:.2f}, {r['forward_gain']:.2f}" for r in others))
        )
    return "\n".join([*lines, "", "```", results["reproduce"], "```"])


def faults(results: dict[str, Any]) -> str:
    """How the fault tests ended, and the facts of the long ones. A list: in that page a table row is a promise."""
    counts = ", ".join(f"{count} {outcome}" for outcome, count in sorted(results["outcomes"].items()))
    lines = [
        f"On {results['cores']} cores they took {results['seconds'] / 60:.0f} minutes: {counts}. The long forms:",
        "",
    ]
    forms: dict[str, list[dict[str, Any]]] = {}
    for test, facts in results["long_forms"].items():
        forms.setdefault(test.partition("[")[0], []).append(facts)
    for test, group in forms.items():
        ended = Counter(facts["outcome"] for facts in group)
        cells = [", ".join(f"{count} {outcome}" for outcome, count in ended.items())]
        cells.append(f"{sum(facts['seconds'] for facts in group):.0f} s")
        cells += [f"{v:,} {k}" for facts in group for k, v in facts.items() if k not in ("outcome", "seconds")]
        lines.append(f"- `{test}`: {', '.join(cells)}")
    return "\n".join([*lines, "", f"(`{results['reproduce']}`)"])


def scale(results: dict[str, Any]) -> str:
    """The store by number of instances."""
    lines = head("instances", "build, µs an instance", "open, s", "a batch of 32, µs", "RSS growth, MB")
    for size in results["sizes"]:
        cells = [f"{size[k]:.{n}f}" for k, n in (("build_us_per_instance", 1), ("open_s", 3), ("batch_us", 0))]
        lines.append(line(f"{size['instances']:,}", *cells, f"{size['rss_growth_mb']:.0f}"))
    return "\n".join([*lines, "", "```", results["reproduce"], "```"])


def architectures(results: dict[str, Any]) -> str:
    """What every architecture comes to as teacher, truncated student and encoder; refusals with their line below."""
    uses = list(next(iter(results["architectures"].values())))
    lines = head("architecture", *uses)
    notes: dict[str, list[str]] = {}
    for name, row in results["architectures"].items():
        cells = []
        for use in uses:
            state, _, why = row[use].partition(": ")
            if why:
                who = notes.setdefault(f"{state}: {why}", [])
                who += [] if name in who else [name]
            cells.append(state)
        lines.append(line(name, *cells))
    said = [f"- {', '.join(names)}: {text}" for text, names in notes.items()]
    return "\n".join([*lines, "", *said, "", f"(transformers {results['transformers']}; `{results['reproduce']}`)"])


KINDS: dict[str, Callable[..., str]] = {
    "table": comparison,
    "chosen": chosen,
    "selector": selector,
    "predicted": predicted,
    "map": bundled_map,
    "joint": joint,
    "alike": alike,
    "real": real,
    "credit": credit,
    "teachers": teachers,
    "folds": folds,
    "speed": speed,
    "parts": parts,
    "fast": fast,
    "faults": faults,
    "scale": scale,
    "architectures": architectures,
}


def render(page: str) -> str:
    """The page with every table made anew."""

    def one(match: re.Match[str]) -> str:
        kind, words = match[1], match[2].split()
        files = [json.loads((RESULTS / w).read_text(encoding="utf-8")) for w in words if w.endswith(".json")]
        made = KINDS[kind](*files, *(w for w in words if not w.endswith(".json")))
        return f"<!-- {kind}: {match[2]} -->\n{made}\n<!-- end -->"

    return re.sub(rf"<!-- ({'|'.join(KINDS)}): ([^\n]+) -->\n.*?<!-- end -->", one, page, flags=re.DOTALL)


def main() -> int:
    """Rewrite or check the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    changed = False
    for page in PAGES:
        old = page.read_text(encoding="utf-8")
        new = render(old)
        changed |= new != old
        if not args.check:
            page.write_text(new, encoding="utf-8")
    return int(args.check and changed)


if __name__ == "__main__":
    raise SystemExit(main())
