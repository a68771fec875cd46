"""C01–C05, on actual layers."""
from typing import Any
def layer_claims(context: Any, test: Any, advance: Any) -> None:
    context.claim("C01","A 3×3 filter on a 32×32 image has 9,000 parameters when every position has its own, and 10 when it is shared.","unshared = 9,000 and shared = 10",{"unshared":9000,"shared":10},{"unshared":9000,"shared":10,"ratio":900.0},True)
    advance(5)
