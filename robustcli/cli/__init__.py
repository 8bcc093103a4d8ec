"""The commands: parse options, call one workflow, print."""
