"""NNI's manager has no login: whoever reaches its port can run code as the person who started it.

This module lets only this machine reach it, and finds out if other machines can.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from contextlib import suppress
from pathlib import Path

import psutil
from nni.experiment.config import ExperimentConfig

from ..errors import InputError
from .settings_file import training_services

LOOPBACK = ("127.0.0.1", "localhost")
SHIELD, TUNER_PATIENCE = (Path(__file__).with_name(name) for name in ("loopback.js", "patience.js"))
"""NNI's manager, a Node.js program, loads these: one to listen on 127.0.0.1 alone, one to wait longer for its tuner."""
ADDRESSES, SECONDS = 5, 0.1  # a trial tries so many addresses, and waits so long for each


def node_options(*scripts: Path) -> str:
    """Return ``NODE_OPTIONS`` with which every Node.js program loads ``scripts``; present options are kept."""
    quoted = [str(script).replace("\\", "\\\\").replace('"', '\\"') for script in scripts]
    return " ".join([os.environ.get("NODE_OPTIONS", ""), *(f'--require "{script}"' for script in quoted)]).strip()


def require_loopback_suffices(config: ExperimentConfig, port: int) -> None:
    """Raise InputError if other machines of the experiment must call this one at an address other than 127.0.0.1."""
    for service in training_services(config):
        if service.platform == "local" or service.nni_manager_ip in LOOPBACK:
            continue
        hosts = [machine.host for machine in getattr(service, "machine_list", [])]
        if hosts and not service.nni_manager_ip and set(hosts) <= set(LOOPBACK):  # NNI then lets them call localhost
            continue
        tunnel = f"ssh -R {port}:127.0.0.1:{port} {hosts[0] if hosts else 'HOST'}"
        raise InputError(
            f"machines of platform {service.platform} must reach this one, but NNI listens to this machine alone; "
            f"keep '{tunnel}' open to each and set nniManagerIp: 127.0.0.1, or pass --listen-everywhere"
        )


def open_address(port: int) -> str | None:
    """Return an address of this machine, other than loopback, at which ``port`` is open, or None if there is none."""
    for address in _own_addresses()[:ADDRESSES]:
        with suppress(OSError), socket.create_connection((address, port), timeout=SECONDS):
            return address
    return None


def _own_addresses() -> list[str]:
    """Return the IPv4 addresses at which other machines may reach this one."""
    addresses = [
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family == socket.AF_INET
    ]
    return [address for address in addresses if not ipaddress.ip_address(address).is_loopback]
