"""NNI trial: search a generator (stage 1). Flags fix settings, the tuner varies others; see experiment.yml."""

import sys

from nni_autorecon.cli import run_as_trial, run_search
from nni_autorecon.endings import leave
from nni_autorecon.search_config import SearchConfig

if __name__ == "__main__":
    leave(run_as_trial(SearchConfig, run_search, sys.argv[1:]))
