"""The one part of the package's metadata that is made from a file: README.md, with absolute links for package indexes."""

import re
from pathlib import Path

from setuptools import setup

SITE = "https://github.com/teacher-select/teacher-select"


def absolute(text: str) -> str:
    """Markdown with its relative links and pictures made absolute."""
    text = re.sub(r"!\[([^\]]*)\]\((?!https?:|#)([^)]+)\)", rf"![\1]({SITE}/raw/main/\2)", text)
    return re.sub(r"(?<!!)\[([^\]]*)\]\((?!https?:|#)([^)]+)\)", rf"[\1]({SITE}/blob/main/\2)", text)


if __name__ == "__main__":  # as a build runs it; tests import `absolute`
    readme = Path(__file__).resolve().parent / "README.md"
    setup(long_description=absolute(readme.read_text(encoding="utf-8")), long_description_content_type="text/markdown")
