"""NNI trial: quantize and distil the teacher (stage 2). Flags fix settings, the tuner varies others."""

import sys

from nni_autorecon.cli.exits import leave
from nni_autorecon.cli.main import run_as_trial, run_compress
from nni_autorecon.config.student import CompressConfig

if __name__ == "__main__":
    leave(run_as_trial(CompressConfig, run_compress, sys.argv[1:]))
