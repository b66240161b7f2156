"""NNI trial: distil the teacher into another architecture. Flags fix settings, the tuner varies others."""

import sys

from nni_autorecon.cli.exits import leave
from nni_autorecon.cli.stages import run_as_trial, run_distill
from nni_autorecon.config.distill import DistillConfig

if __name__ == "__main__":
    leave(run_as_trial(DistillConfig, run_distill, sys.argv[1:]))
