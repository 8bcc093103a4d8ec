"""One file per command: what happens after the options are parsed."""
