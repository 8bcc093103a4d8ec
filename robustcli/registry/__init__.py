"""Members of the registries and their signatures, read without importing torch."""
