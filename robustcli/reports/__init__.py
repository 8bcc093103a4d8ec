"""Results as tables, Markdown and pictures."""
