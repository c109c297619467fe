"""Regular expressions out of a checkpoint's config, matched where they can neither hang the exporter nor fill memory.

Python's matcher tries every way to divide a text among the quantifiers of a pattern: `(a+)+b` takes years on the name
of a linear. Which patterns do so cannot be told from their form without refusing good ones, so all of a config are
matched at once in a child process whose time and memory are bounded by the kernel.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence

from varco_runtime.errors import CheckpointError

MAX_CPU_S = 5
"""A real config's patterns take some ten milliseconds of it, most of them for the start of the child."""
_MAX_MEMORY_BYTES = 1 << 30

# Prints for each pattern the numbers of the names that it fits, or null where it is no regular expression.
_MATCH = """
import json, re, resource, sys, warnings
for kind, most in ((resource.RLIMIT_CPU, int(sys.argv[1])), (resource.RLIMIT_AS, int(sys.argv[2]))):
    own = resource.getrlimit(kind)[1]
    most = most if own == resource.RLIM_INFINITY else min(own, most)
    resource.setrlimit(kind, (most, most))
warnings.simplefilter("ignore")
patterns, names = json.load(sys.stdin)
fits = []
for text in patterns:
    try:
        match = re.compile(text).match
    except (re.error, RecursionError, OverflowError):
        fits.append(None)
    else:
        fits.append([number for number, name in enumerate(names) if match(name)])
json.dump(fits, sys.stdout)
"""


def match_names(patterns: Collection[str], names: Sequence[str], where: str) -> Mapping[str, frozenset[str]]:
    """Match patterns at the beginning of names, as `re.match` does.

    Args:
        patterns: Regular expressions.
        names: Names of modules.
        where: Where the patterns stand, for messages.

    Returns:
        By pattern, the names that it fits.

    Raises:
        CheckpointError: A pattern is no regular expression, or matching takes too much time or memory.
    """
    asked = sorted(set(patterns))
    if not asked:
        return {}
    command = [sys.executable, "-I", "-S", "-c", _MATCH, str(MAX_CPU_S), str(_MAX_MEMORY_BYTES)]
    done = subprocess.run(command, input=json.dumps([asked, names]), capture_output=True, text=True, check=False)
    if done.returncode:
        raise CheckpointError(
            f"{where}: its {len(asked)} regular expressions take more than {MAX_CPU_S} s or {_MAX_MEMORY_BYTES >> 30} "
            "GiB to match with the names of the linears, expected a few milliseconds. Write the names out, or use "
            "simpler patterns."
        )
    fits = dict(zip(asked, json.loads(done.stdout), strict=True))
    for pattern, numbers in fits.items():
        if numbers is None:
            raise CheckpointError(
                f"{where} holds {pattern[:60]!r}, expected a regular expression. Compare the file with its original "
                "repository."
            )
    return {pattern: frozenset(names[number] for number in numbers) for pattern, numbers in fits.items()}
