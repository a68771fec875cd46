"""What becomes of a tie: the rows of the lifecycle, run alike for Eadem and for others.

`python -m benchmarks lifecycle` runs every row for every way of tying, each in a process of
its own, and writes docs/guide/lifecycle-table.md. A verdict is computed by one oracle for
all (`oracle.judge`), from what the model is seen to do after the event.
"""
