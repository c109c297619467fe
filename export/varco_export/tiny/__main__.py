"""`python -m varco_export.tiny OUT`."""

from __future__ import annotations

import sys

from varco_export.tiny.command import main

sys.exit(main())
