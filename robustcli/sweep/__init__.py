"""Many specs in one file: a base, and rows that say how they differ from it; one table at the end."""
