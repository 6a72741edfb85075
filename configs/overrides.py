"""Overrides as they are typed, `key=value`: checked one by one, with messages that say how to quote."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

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
_FLAGS_WITH_VALUE = {*_CONFIG_DIR, "--config-path", "-cp", "--config-name", "-cn", "--package", "-p"} | {
    *("--cfg", "-c", "--info", "--experimental-rerun")
}


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


def of_command(arguments: Sequence[str]) -> list[str]:
    """The overrides among the words of a command line, without Hydra's flags and their values."""
    found, value = [], False
    for word in arguments:
        if not value and not word.startswith("-"):
            found.append(word)
        value = not value and word in _FLAGS_WITH_VALUE
    return found


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
            parser.parse_override(override)
        except HydraException:
            raise UserError(_unreadable(parser, key, value)) from None


def quoted(key: str, value: str) -> str:
    """The override of one text, in quotes for Hydra and for the shell."""
    quote = Quote.double if "'" in value else Quote.single
    word = f"{key}={QuotedString(value, quote).with_quotes()}"
    return f'"{word}"' if quote is Quote.single and not set(word) & set('$`"\\!') else shlex.quote(word)


def _unreadable(parser: OverridesParser, key: str, value: str) -> str:
    """The message for a value that Hydra cannot read. Advice is given only if Hydra can read the advice."""
    inner = value.startswith(("[", "{"))
    fixed = f"{key}={_with_quotes(value)}" if inner else f"{key}={QuotedString(value, Quote.double).with_quotes()}"
    try:
        parser.parse_override(fixed)
    except HydraException:
        return f"{key}={value} cannot be read; check its brackets, commas and quotes, {OWN_FILE}"
    return f"{key}={value} cannot be read; quote it: {shlex.quote(fixed) if inner else quoted(key, value)}, {OWN_FILE}"


def _with_quotes(value: str) -> str:
    """A list or group with quotes around those of its texts that need them."""
    out = []
    for i, part in enumerate(_PARTS.split(value)):
        text = part.strip()
        if i % 2 or _PLAIN.fullmatch(text):
            out.append(part)
            continue
        match = re.fullmatch(r"([\w.-]+\s*:\s*)(.*)", text)
        name, text = (match[1], match[2]) if match else ("", text)
        out.append(f" {name}{QuotedString(text, Quote.double).with_quotes()}" if text else part)
    return "".join(out)
