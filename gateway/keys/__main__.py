"""`python -m gateway.keys`: creates API keys."""

from __future__ import annotations

import sys

from gateway.keys.key_file import main

if __name__ == "__main__":
    sys.exit(main())
