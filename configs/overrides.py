"""Overrides as they are typed, `key=value`: checked one by one, with messages that say how to quote."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from functools import lru_cache
from importlib import resources

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from configs.errors import UserError

OWN_FILE = "or write the setting to a YAML file of your own (--config-dir)"
_KEY = re.compile(r"[~+]{0,2}[A-Za-z_][\w./@:$-]*")
_PLAIN = re.compile(r"[A-Za-z0-9_/\\+.$%*@?|: -]*")  # what Hydra reads without quotes
# Quoted texts and brackets, between the other parts of a list or group.
_PARTS = re.compile(r"""((?<![^\s\[{,:])"(?:\\.|[^"\\])*"|(?<![^\s\[{,:])'(?:\\.|[^'\\])*'|[\[\]{},])""")
_CONFIG_DIR = ("--config-dir", "-cd")
# Hydra's flags, with and without a value.
_WITH_VALUE = {
    *_CONFIG_DIR, "--config-path", "-cp", "--config-name", "-cn", "--package", "-p", "--cfg", "-c", "--info", "-i",
    "--experimental-rerun",
}  # fmt: skip
_WITHOUT_VALUE = {
    "--help", "-h", "--hydra-help", "--version", "--resolve", "--run", "-r", "--multirun", "-m", "--shell-completion", "-sc",
}  # fmt: skip


def without_config_dir(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of a command line without `--config-dir FOLDER`, and the folders that it names.

    Raises:
        UserError: for a folder that is missing.
    """
    rest, folders, wanted = [], [], False
    for word in arguments:
        flag, equals, value = word.partition("=")
        if wanted or (flag in _CONFIG_DIR and equals):
            folders.append(word if wanted else value)
        elif flag not in _CONFIG_DIR:
            rest.append(word)
        wanted = not wanted and flag in _CONFIG_DIR and not equals
    if wanted:
        raise UserError("--config-dir names no folder; write --config-dir FOLDER")
    return rest, folders


def flags_and_overrides(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """The words of a command line: Hydra's flags with their values, and the overrides, which may stand between flags.

    Raises:
        UserError: for an unknown flag.
    """
    flags: list[str] = []
    overrides: list[str] = []
    value = False
    for word in arguments:
        (flags if value or word.startswith("-") else overrides).append(word)
        flag, equals, _ = word.partition("=")
        if not value and word.startswith("-") and flag not in _WITH_VALUE | _WITHOUT_VALUE:
            raise UserError(f"{flag} is not known; write a setting as NAME=VALUE, --help lists all of them")
        value = not value and flag in _WITH_VALUE and not equals
    return flags, overrides


def check_overrides(overrides: Sequence[str]) -> None:
    """Raise `UserError` for an override that Hydra cannot read, or that removes what every run reads."""
    parser = OverridesParser.create()
    for override in overrides:
        key, equals, value = override.partition("=")
        if not _KEY.fullmatch(key):
            raise UserError(f"{override!r} does not begin with the name of a setting; write NAME=VALUE")
        name = key[1:]
        if key.startswith("~") and ("." not in name or name.endswith(".name")):
            raise UserError(f"{key}: {name} cannot be removed; leave it out for its default, or set {name}=...")
        if not equals and not key.startswith("~"):
            raise UserError(f"{key} has no value; write {key}=VALUE")
        try:
            read = parser.parse_override(override)
        except HydraException:
            raise UserError(_unreadable(parser, key, value)) from None
        option = None if read.is_sweep_override() else read.value()
        group = key.lstrip("+~").partition("@")[0]
        if group in _groups() and isinstance(option, bool | int | float | dict):
            raise UserError(f"{override}: {group} takes the name of an option; --help lists them")


@lru_cache(maxsize=1)
def _groups() -> frozenset[str]:
    """The names of the configuration groups."""
    return frozenset(p.name for p in resources.files("configs").iterdir() if p.is_dir())


def quoted(key: str, value: str) -> str:
    """The override of one text, in quotes for Hydra and for the shell."""
    quote = Quote.double if "'" in value else Quote.single
    word = f"{key}={QuotedString(value, quote).with_quotes()}"
    return f'"{word}"' if quote is Quote.single and not set(word) & set('$`"\\!') else shlex.quote(word)


def _unreadable(parser: OverridesParser, key: str, value: str) -> str:
    """The message for a value that Hydra cannot read. Advice is given only if Hydra can read the advice."""
    inner = value.startswith(("[", "{"))
    quotes: list[str] = []
    fixed = f"{key}={_with_quotes(value, quotes) if inner else QuotedString(value, Quote.double).with_quotes()}"
    try:
        parser.parse_override(fixed)
    except HydraException:
        return f"{key}={value} cannot be read; check its brackets, commas and quotes, {OWN_FILE}"
    if inner and len(value) > 300:  # the whole setting twice would be cut in the middle
        return f"{key} cannot be read; use these quotes: {', '.join(quotes)}; {OWN_FILE}"
    return f"{key}={value} cannot be read; quote it: {shlex.quote(fixed) if inner else quoted(key, value)}, {OWN_FILE}"


def _with_quotes(value: str, added: list[str]) -> str:
    """A list or group with quotes around those of its texts that need them; these are put into `added`, too."""
    out = []
    for i, part in enumerate(_PARTS.split(value)):
        text = part.strip()
        if i % 2 or _PLAIN.fullmatch(text):
            out.append(part)
            continue
        match = re.fullmatch(r"(\s*(?:[\w.-]+\s*:\s*)?)(.*?)\s*", part)
        name, text = (match[1], match[2]) if match else ("", text)
        added.append(QuotedString(text, Quote.double).with_quotes())
        out.append(name + added[-1])
    return "".join(out)
