"""Command lines of agents/compare.py."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
AGENTS = 'agents=[best_single,"reinforce agent.episodes=1"]'


def command(*arguments: str, folder: Path) -> list[str]:
    return [sys.executable, str(ROOT / "agents/compare.py"), *arguments, f"hydra.run.dir={folder}"]
