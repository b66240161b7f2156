"""Runs of the command line begin with these flags, and a child hears Ctrl-C."""

from __future__ import annotations

import signal

SEARCH = (
    "--width 2 --latent-dim 5 --batch-size 4 --epochs 2 --weight-steps 2 --architecture-steps 1 "
    "--validation-steps 1 --final-steps 2"
).split()
"""Flags of a search that is over at once."""


def heed_ctrl_c() -> None:
    """A shell starts what runs in the background with SIGINT ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
