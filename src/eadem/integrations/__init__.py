"""What keeps ties where another library saves, loads, splits or changes a model: one file a
library, which imports it on use.
"""
