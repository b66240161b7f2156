"""NNI trial: search a generator (stage 1). Flags fix settings, the tuner varies others; see experiment.yml."""

import sys

from nni_autorecon.cli.exits import leave
from nni_autorecon.cli.stages import run_as_trial, run_search
from nni_autorecon.config.search import SearchConfig

if __name__ == "__main__":
    leave(run_as_trial(SearchConfig, run_search, sys.argv[1:]))
