"""From results to what people read: tables for a terminal, and pages that need no network."""

# from .summary import Summary as Summary
# from .summary import summary as summary
from .summary import summary_of_file as summary_of_file
