"""Command line -> dataclass, by tyro; every mistake in it becomes one line."""

import contextlib
import difflib
import io
import re
import sys
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import tyro

from relive.errors import ConfigError

T = TypeVar("T")

MARKERS = (
    tyro.conf.OmitArgPrefixes,  # --learning-rate, not --config.agent.learning-rate
    tyro.conf.PositionalRequiredArgs,
    tyro.conf.PositionalMetavarFromFieldName,
)


def parse(kind: type[T], args: Sequence[str], *, prog: str, description: str, default: T | None = None) -> T:
    """Read the arguments into a `kind`. Prints help and ends the process where they ask for it.

    Args:
        kind: dataclass; fields without a default are positional, docstrings below fields are their help.
        args: the arguments after the command.
        prog: the command, as the help shows it.
        description: one paragraph for the help.
        default: values of what is not given, in place of the dataclass's own; `tyro.MISSING` makes a field required.

    Raises:
        ConfigError: an unknown option, a value of the wrong type, an argument that is missing.
    """
    given: dict[str, Any] = {} if default is None else {"default": default}
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            options, unknown = tyro.cli(
                kind, prog=prog, description=description, args=args, config=MARKERS, return_unknown_args=True, **given
            )
    except SystemExit as end:
        if not end.code:
            raise
        raise ConfigError(f"{_one_line(complaint.getvalue())} See {prog} --help.") from None
    sys.stderr.write(complaint.getvalue())
    if unknown:
        raise ConfigError(_unknown(kind, unknown, prog))
    result: T = options
    return result


def _one_line(boxed: str) -> str:
    """The words of tyro's message without its frame and without its own pointer to the help."""
    words = re.sub(r"\x1b\[[0-9;]*m|[\u2500-\u257f]|-{4,}", " ", boxed)
    words = re.split(r"For full helptext|Argument helptext", words)[0]
    title = r"^(?:Parsing error|Value error|Required options?|Missing arguments?|Invalid choice)\s*(?:Error parsing )?"
    words = re.sub(title, "", " ".join(words.split()))
    # What may be None too is a union: of each of its types tyro says, in Python's words, why the value is not that.
    words = re.sub(r"no type matching (.+?) could be instantiated from \[(.*?)\]\. Got errors:.*", _expected, words)
    words = re.sub(r"(?<=Expected one of )\([^()]*\)", _in_order, words)  # tyro's is that of a set, another each time
    return words.replace(" (required)", "").rstrip(".") + "."


def _in_order(found: re.Match[str]) -> str:
    """`('b', 'a')` -> a, b."""
    return ", ".join(sorted(re.findall(r"'([^']*)'", found[0]), key=str.lower))


def _expected(found: re.Match[str]) -> str:
    """`{None}|INT` and `'abc'` -> expected None or INT, got 'abc'."""
    return f"expected {re.sub('[{}]', '', found[1]).replace('|', ' or ')}, got {found[2]}"


def _unknown(kind: type[Any], unknown: Sequence[str], prog: str) -> str:
    option = next((word.partition("=")[0] for word in unknown if word.startswith("-")), None)
    if option is None:
        return f"expected no further argument, got {' '.join(unknown)!r}. See {prog} --help."
    close = difflib.get_close_matches(option.replace("_", "-"), _names(kind), n=1)
    remedy = f"Did you mean {close[0]}?" if close else f"See {prog} --help."
    return f"expected an option of {prog}, got {option}. {remedy}"


def _names(kind: type[Any]) -> list[str]:
    """Every option of a dataclass, nested ones too."""
    names = []
    for field in fields(kind):
        inner = getattr(field.type, "__origin__", field.type)  # Annotated[TrainConfig, ...] -> TrainConfig
        if isinstance(inner, type) and is_dataclass(inner):
            names += _names(inner)
        else:
            names.append("--" + field.name.replace("_", "-"))
    return names
