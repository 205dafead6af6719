"""Tab completion of `%qnb` and `%%task`."""

from __future__ import annotations

import re

from IPython.core.completer import CompletionContext, SimpleCompletion, SimpleMatcherResult, context_matcher

from qnb.notebook.magics import COMMANDS, MAGIC
from qnb.notebook.task_magic import TASK

_LINE = re.compile(rf"^\s*(?P<magic>%{MAGIC}|%%{TASK})\s+(?P<before>(?:\S+\s+)*)(?P<word>\S*)$")
_OPTIONS = ("--backend", "--workers")
_TASK_OPTIONS = ("-o", "--retries", "--timeout", "--name")


@context_matcher(identifier="qnb")  # type: ignore[untyped-decorator]
def complete_qnb(context: CompletionContext) -> SimpleMatcherResult:
    """Commands, then the options and URL schemes of connect; nothing else on such a line."""
    line = _LINE.match(context.text_until_cursor)
    if line is None:
        return {"completions": []}
    word, before = line["word"], line["before"].split()
    candidates = _task_candidates(before) if line["magic"] == f"%%{TASK}" else _candidates(before)
    found = [text for text in candidates if text.startswith(word)]
    return {
        "completions": [SimpleCompletion(text=text, type="magic") for text in found],
        "matched_fragment": word,
        "suppress": True,
        "ordered": True,
    }


def _task_candidates(before: list[str]) -> list[str]:
    if before and before[-1] in _TASK_OPTIONS:
        return []
    return [option for option in _TASK_OPTIONS if option not in before]


def _candidates(before: list[str]) -> list[str]:
    if not before:
        return list(COMMANDS)
    if before[0] in ("results", "cancel") and len(before) == 1:
        return _runs()
    if before[0] != "connect" or before[-1] == "--workers":
        return []
    if before[-1] == "--backend":
        return _schemes("backend")
    options = [option for option in _OPTIONS if option not in before]
    return options if _has_url(before[1:]) else [*_schemes("broker"), *options]


def _runs() -> list[str]:
    """The runs that this session has, newest first; the backend is not asked for a key press."""
    from qnb.session.session import current_session

    session = current_session()
    return [] if session is None else sorted(session.batches, key=lambda run: -session.batches[run].created_at)


def _has_url(words: list[str]) -> bool:
    pairs = zip(["", *words], words, strict=False)
    return any(not word.startswith("--") and before not in _OPTIONS for before, word in pairs)


def _schemes(kind: str) -> list[str]:
    """The URL schemes one can type; two slashes where a host follows."""
    from qnb.registry import schemes

    return sorted(f"{scheme}:" if scheme in ("sqlite", "memory", "rpc") else f"{scheme}://" for scheme in schemes(kind))
