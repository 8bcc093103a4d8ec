"""What a person types and reads: options, progress, tables, pictures."""
