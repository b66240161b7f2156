"""A process that NNI started as a trial gets its parameters and reports its metrics here."""

from __future__ import annotations

import logging
import os
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import nni
import nni.trial
import requests
from nni.runtime.trial_command_channel import get_default_trial_command_channel

from ..errors import AutoReConError
from .loopback import open_address

log = logging.getLogger(__name__)

CHANNEL = "NNI_TRIAL_COMMAND_CHANNEL"  # this environment variable has the address at which NNI listens to its trials
LOOK_EVERY = 10.0
"""A trial checks once in so many seconds that it still has a manager."""


class Trial:
    """The tuner's parameters, the output folder, and a channel to NNI that works even during a search in the trial.

    NNI's sequential engine, on which a one-shot search runs, replaces the channel and the parameter record of the
    process while it works, and restores only the channel. This object keeps both as they were at the start and sends
    every report through them.  Raises AutoReConError if there is no manager any more.
    """

    def __init__(self) -> None:
        _warn_of_an_open_port()
        try:
            self.parameters = plain_parameters(nni.get_next_parameter() or {})
        except requests.ConnectionError as error:
            raise AutoReConError("NNI's manager is gone; nni-autorecon continue starts this trial again") from error
        self._record = nni.trial._params
        self._channel = get_default_trial_command_channel()
        self._looked = time.monotonic()

    @property
    def output(self) -> Path | None:
        """Return NNI's folder for this trial, or None outside an experiment."""
        folder = os.environ.get("NNI_OUTPUT_DIR")
        return Path(folder) if folder else None

    def show_events(self, folder: Path) -> None:
        """Link ``folder`` to the place where the TensorBoard button of the web UI looks for it.

        NNI 3.0 looks in a folder into which its local trials do not write.
        """
        experiment, trial = os.environ.get("NNI_EXP_ID"), nni.get_trial_id()
        root = next((parent for parent in folder.parents if parent.name == experiment), None)
        if root is None:  # the trial runs on another machine, from which NNI fetches no files
            return
        link = root / "trials" / trial / "output" / folder.name
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(folder)

    def report_intermediate(self, metrics: Mapping[str, Any], sequence: int) -> None:
        """Send the metrics of one epoch; ``sequence`` counts from 0.

        A manager that does not answer is a warning. Raises AutoReConError if there is no manager any more.
        """
        try:
            self._send("PERIODICAL", sequence, metrics)
        except requests.ConnectionError as error:
            raise self._gone() from error
        except requests.RequestException as error:
            log.warning("NNI's manager does not answer (%s); this epoch is in metrics.csv only", type(error).__name__)

    def require_manager(self) -> None:
        """Raise AutoReConError if there is no manager any more.

        Steps between reports call this; it looks once in ``LOOK_EVERY`` seconds.
        """
        if time.monotonic() < self._looked + LOOK_EVERY:
            return
        self._looked = time.monotonic()
        channel = urlsplit(os.environ.get(CHANNEL, ""))
        if channel.port is None:
            return
        try:
            socket.create_connection((channel.hostname, channel.port), timeout=1).close()
        except ConnectionRefusedError as error:
            raise self._gone() from error
        except OSError:  # the manager is there, or cannot be asked now
            return

    def _gone(self) -> AutoReConError:
        return AutoReConError(
            f"NNI's manager is gone; nni-autorecon continue ID, or --resume --output {self.output}, goes on from here"
        )

    def report_final(self, metrics: Mapping[str, Any]) -> None:
        """Send the result. Raises AutoReConError if NNI's manager does not answer.

        Raises ValueError unless ``default`` is a number: without it, NNI's dispatcher would die without a message.
        """
        if not isinstance(metrics.get("default"), (int, float)):
            raise ValueError(f"the final metrics need a number under 'default', got {metrics.get('default')!r}")
        try:
            self._send("FINAL", 0, metrics)
        except requests.RequestException as error:
            raise AutoReConError(
                f"NNI's manager does not answer ({type(error).__name__}); the result is in {self.output}"
            ) from error

    def _send(self, kind: Literal["PERIODICAL", "FINAL"], sequence: int, metrics: Mapping[str, Any]) -> None:
        self._channel.send_metric(
            type=kind,
            parameter_id=self._record["parameter_id"] if self._record else None,
            trial_job_id=nni.get_trial_id(),
            sequence=sequence,
            value=dict(metrics),
        )


def _warn_of_an_open_port() -> None:
    """Warn on stderr, in the first trial of a local experiment, if other machines can reach NNI's manager."""
    port = urlsplit(os.environ.get(CHANNEL, "")).port
    if port is None or (os.environ.get("NNI_PLATFORM"), os.environ.get("NNI_TRIAL_SEQ_ID")) != ("local", "0"):
        return
    if address := open_address(port):
        print(
            f"nni-autorecon: warning: NNI listens on {address}:{port} without a login, and whoever reaches it can run "
            "code as you; nni-autorecon start lets only this machine reach it",
            file=sys.stderr,
        )


def plain_parameters(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten NNI's nested choices into settings side by side.

    ``{"method": {"_name": "gdfq", "generator": "searched"}}`` sets ``method`` to gdfq and ``generator`` to searched.
    """
    plain: dict[str, Any] = {}
    for name, value in parameters.items():
        if isinstance(value, Mapping) and "_name" in value:
            inner = {key: choice for key, choice in value.items() if key != "_name"}
            plain |= {name: value["_name"], **plain_parameters(inner)}
        else:
            plain[name] = value
    return plain
