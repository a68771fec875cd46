"""What keeps ties where another library saves, loads or moves a model: one file a library."""
