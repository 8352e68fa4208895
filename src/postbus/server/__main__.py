"""``python -m postbus.server``: see ``postbus.server.main``."""

from __future__ import annotations

import sys

from postbus.server.main import main

if __name__ == "__main__":
    sys.exit(main())
