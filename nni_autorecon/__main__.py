"""``python -m nni_autorecon``: the command line."""

from .cli.main import console

if __name__ == "__main__":
    console()
