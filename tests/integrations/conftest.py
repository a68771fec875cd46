from __future__ import annotations

import sys
from pathlib import Path

# What runs several processes, and the systems they run, is shared with the lifecycle's rows.
_shared = Path(__file__).parents[1] / "lifecycle"
if str(_shared) not in sys.path:
    sys.path.insert(0, str(_shared))
