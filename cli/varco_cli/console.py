"""What commands print with: answers on standard output, notes on standard error, nothing that upsets a terminal."""

from __future__ import annotations

import io
import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Literal, TextIO

# C0 and C1 controls, line and paragraph separators, bidirectional overrides, surrogates that no encoding takes.
_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_CONTROLS_IN_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
# The same beyond ASCII's own, which JSON always escapes: within strings alone, so that an escape stands for each.
_CONTROLS_IN_JSON = re.compile("[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
GAP = 3  # blanks between columns
LONG_WORD = 24  # a longer one, such as a path, is cut where its column ends
PIPED_WIDTH = 500
"""Columns where there is no terminal: enough for any line, so that nothing is wrapped or cut."""


def one_line(text: str) -> str:
    """Return `text` with control characters spelled out (`\\n`, `\\x1b`), for one line of a terminal."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def printable(text: str) -> str:
    """Return a model's text for a terminal: like `one_line`, but line breaks and tabs stay."""
    return _CONTROLS_IN_TEXT.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def write_text(text: str) -> None:
    """Put a model's text on standard output: as it is into a file or pipe, made harmless for a terminal."""
    write(printable(text) if is_terminal(sys.stdout) else text)


def write_document(text: str) -> None:
    """Put a JSON, COCO or hOCR document on standard output, in UTF-8 whatever the terminal's encoding.

    Characters that a terminal obeys come as JSON's escapes, which mean the same; hOCR has none of them left.
    """
    text = _CONTROLS_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    write(text if text.endswith("\n") else text + "\n", encoding="utf-8")


def write(text: str, encoding: str | None = None) -> None:
    """Write to standard output and flush; what its encoding lacks is spelled out."""
    stream = sys.stdout
    if stream is None:  # closed by whoever started the command
        return
    stream.flush()
    stream.buffer.write(text.encode(encoding or stream.encoding, errors="backslashreplace"))
    stream.flush()


def discard_stdout() -> None:
    """Send what is still buffered nowhere, so that Python's own flush at exit does not complain."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    with suppress(OSError, ValueError, AttributeError):  # closed, or no real file
        os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def note(text: str, faint: bool = False) -> None:
    """Write one line to standard error: what happens, a warning, or with `faint` a timing."""
    line = one_line(text)
    _write_error(f"\x1b[2m{line}\x1b[0m" if faint and _is_colourful() else line)


def error(message: str) -> None:
    """Write the one line of an error to standard error."""
    _write_error(f"varco: {one_line(message)}")


def _write_error(line: str) -> None:
    if sys.stderr is not None:  # print would take standard output for one that was closed
        print(line, file=sys.stderr, flush=True)


def open_missing_streams() -> None:
    """Let standard streams that were closed by whoever started the command lead nowhere.

    The next files to be opened would get their numbers, and what libraries print would go into these files.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


def shows_bars() -> bool:
    """Return whether standard error is a terminal, where a line can be drawn again and again."""
    return is_terminal(sys.stderr)


def is_terminal(stream: TextIO | None) -> bool:
    """Return whether a standard stream, None where it was closed, is a terminal."""
    return stream is not None and stream.isatty()


def _is_colourful() -> bool:
    return is_terminal(sys.stderr) and not os.environ.get("NO_COLOR")


def print_facts(title: str, facts: Iterable[tuple[str, str]]) -> None:
    """Print a heading and `name  value` lines."""
    print_table(title, (), [[name, value] for name, value in facts])


def print_table(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Print a heading and aligned columns on standard output, after a blank line if the heading begins with one.

    Args:
        title: The heading.
        header: The columns' names.
        rows: As many texts as there are columns, per row.
        right: The columns that are aligned to the right, counted from 0.
    """
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Colours and wrapping on a terminal, neither into a file or pipe.
    terminal = is_terminal(sys.stdout)
    lines = io.StringIO()
    console = Console(file=lines, force_terminal=terminal, width=None if terminal else PIPED_WIDTH, highlight=False)
    cells = [[one_line(cell) for cell in row] for row in rows]
    columns = list(zip(*([header] if header else []), *cells, strict=True))
    natural = [max(map(cell_len, column)) for column in columns]
    least = list(natural)  # names and numbers keep to their line; a long value or heading goes on below itself
    for index in range(1, len(columns)):
        words = [cell_len(word) for cell in columns[index] for word in cell.split()]
        least[index] = min(LONG_WORD, max(words, default=0))
        if index in right:
            least[index] = max(least[index], *(cell_len(cell) for cell in columns[index][bool(header) :]), 0)
    widths = _narrowed(natural, least, console.width - GAP * len(columns))
    # A terminal too narrow for whole words wraps the lines itself: better than columns of two letters.
    console.width = max(console.width, sum(widths) + GAP * len(columns))
    table = Table(box=None, show_header=bool(header), pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
    for index, width in enumerate(widths):
        justify: Literal["left", "right"] = "right" if index in right else "left"
        table.add_column(header[index] if header else "", justify=justify, width=width, overflow="fold")
    for first, *rest in cells:
        table.add_row(Text(first, style="" if header else "dim"), *(Text(cell) for cell in rest))
    if title.startswith("\n"):
        console.print()
    console.print(Text(one_line(title.strip()), style="bold"))
    console.print(table)
    write("".join(f"{line.rstrip()}\n" for line in lines.getvalue().splitlines()))


def _narrowed(natural: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """Return widths that fit into `room`, the widest narrowed first; more where all are at their `least` width."""
    widths = list(natural)
    while sum(widths) > room:
        wide = [index for index, width in enumerate(widths) if width > least[index]]
        if not wide:
            break
        widths[max(wide, key=widths.__getitem__)] -= 1
    return widths


def size_text(num_bytes: int) -> str:
    """Return bytes for people, in decimal units: `30.4 GB`."""
    value = float(num_bytes)
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if value < 1000 or unit == "TB":
            break
        value /= 1000
    return f"{num_bytes} bytes" if unit == "bytes" else f"{value:.3g} {unit}" if value < 100 else f"{value:,.0f} {unit}"


def count_text(count: int) -> str:
    """Return a large count for people: `15.2 billion`."""
    for limit, word in ((10**9, "billion"), (10**6, "million")):
        if count >= limit:
            return f"{count / limit:.3g} {word}"
    return f"{count:,}"
