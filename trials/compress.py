"""NNI trial: quantize and distil the teacher (stage 2). Flags fix settings, the tuner varies others."""

import sys

from nni_autorecon.cli.exits import leave
from nni_autorecon.cli.stages import run_as_trial, run_compress
from nni_autorecon.config.compress import CompressConfig

if __name__ == "__main__":
    leave(run_as_trial(CompressConfig, run_compress, sys.argv[1:]))
