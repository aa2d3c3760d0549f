"""`python -m orchestrator.index`: builds or updates the search index."""

from __future__ import annotations

import sys

from orchestrator.index.build import main

if __name__ == "__main__":
    sys.exit(main())
