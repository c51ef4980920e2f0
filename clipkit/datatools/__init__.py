"""Tools that make and check data sets: what `clipkit data ...` calls."""
