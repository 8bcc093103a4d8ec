"""`python -m robustcli` is `robust`."""

from robustcli.cli.main import main

# Worker processes import this file under another name.
if __name__ == "__main__":
    main()
