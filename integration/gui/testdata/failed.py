"""What is to be seen when a script failed."""

import sys

from desk import desk, shot

shot(f"failed-{sys.argv[1]}")
desk().dump()
