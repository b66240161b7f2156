"""``python -m nni_autorecon`` is the command line."""

from .cli.main import console

if __name__ == "__main__":
    console()
