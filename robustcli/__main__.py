"""`python -m robustcli` is `robust`."""

from robustcli.cli import main

main()
