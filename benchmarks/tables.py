"""Writes the tables of docs/results.md from the committed results: between `<!-- table: FILE -->` and `<!-- end -->`.

python benchmarks/tables.py            rewrite
python benchmarks/tables.py --check    exit code 1 if anything would change
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results.md"


def difference(pair: dict[str, Any] | None, factor: float, form: str) -> str:
    """`mean [low, high]`, scaled; empty for the control."""
    if pair is None:
        return ""
    text = f"{factor * pair['mean']:{form}}"
    if pair["interval"] is None:
        return text
    low, high = (factor * x for x in pair["interval"])
    return f"{text} [{low:{form}}, {high:{form}}]"


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


def render(page: str) -> str:
    """The page with every table made anew."""

    def one(match: re.Match[str]) -> str:
        results = json.loads((ROOT / "benchmarks" / "results" / match[1]).read_text(encoding="utf-8"))
        facts = f"{len(results['seeds'])} seeds, {results['data']['train']} training and {results['data']['test']} test instances, "
        facts += f"{results['device']}, {results['threads']} torch thread(s) a cell, amp {results['amp']}."
        body = table(results, results["tests"][0])
        return f"<!-- table: {match[1]} -->\n{facts}\n\n{body}\n\n```\n{results['reproduce']}\n```\n<!-- end -->"

    return re.sub(r"<!-- table: (\S+) -->\n.*?<!-- end -->", one, page, flags=re.DOTALL)


def main() -> int:
    """Rewrite or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    args = parser.parse_args()
    old = PAGE.read_text(encoding="utf-8")
    new = render(old)
    if args.check:
        return int(new != old)
    PAGE.write_text(new, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
