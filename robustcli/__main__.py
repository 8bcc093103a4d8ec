"""The command `robust`, also as `python -m robustcli`."""

import sys


def main() -> None:
    """Run the command; Ctrl-C while it is imported gives no traceback either."""
    try:
        from robustcli.cli.main import main
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)
    main()


# Worker processes import this file under another name.
if __name__ == "__main__":
    main()
