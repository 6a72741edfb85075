"""What a command said on stderr, without the lines that show its progress."""

from __future__ import annotations

import re

PROGRESS = re.compile(r".+: \d+ (of \d+ )?\w+ in \d\d:\d\d\b")
NOTE = "note: teachers are fitted now"


def without_progress(text: str) -> list[str]:
    """The lines of `text` that are neither empty nor progress."""
    return [x for x in text.splitlines() if x.strip() and not PROGRESS.match(x) and not x.startswith(NOTE)]
