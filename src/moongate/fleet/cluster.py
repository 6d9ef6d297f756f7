"""Workers that are actors of a Ray cluster."""

import contextlib
import logging
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from moongate.errors import MoongateError, OptionError, first_line
from moongate.extras import library
from moongate.fleet.queue import Queue
from moongate.fleet.worker import Work, serve

__all__ = ["Cluster", "connect"]

CONNECT_S = 5
"""Longest wait for the computer of an address to answer."""
ANSWER_S = 20
"""Longest wait for Ray to answer there. `ray.init` itself tries for minutes."""


@dataclass(frozen=True, kw_only=True)
class Worker:
    """An actor that was started."""

    name: str
    actor: Any
    ending: Any
    """The reference to what `Actor.serve` returns."""

    def is_alive(self) -> bool:
        return not library("ray").wait([self.ending], timeout=0)[0]

    def failure(self) -> str:
        """Return why the actor ended; empty if it had nothing left to do.

        Raises:
            MoongateError: The actor raised it, so that another one would too.
        """
        ray = library("ray")
        try:
            ray.get(self.ending)
        except ray.exceptions.RayError as error:
            cause = getattr(error, "cause", None)
            if isinstance(cause, MoongateError):
                raise cause from error
            return first_line(error)
        return ""

    def stop(self) -> None:
        """End the actor at once; its job continues from the last saved state."""
        library("ray").kill(self.actor)

    def join(self) -> None:
        """Return: the actor has ended."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Starts workers on the cluster that this process is connected to."""

    queue: Queue
    work: Work
    names: Collection[str]

    def start(self, name: str, device: str) -> Worker:
        """Start an actor on a computer with a free CPU, and for `cuda` with a free GPU."""
        resources = {"num_cpus": 1, "num_gpus": 1 if device.startswith("cuda") else 0}
        actor = library("ray").remote(**resources)(_Actor).remote()
        ending = actor.serve.remote(self.queue, self.work, self.names, name, device)
        return Worker(name=name, actor=actor, ending=ending)


class _Actor:
    """A worker; what its process has loaded stays from one job to the next."""

    def serve(self, queue: Queue, work: Work, names: Collection[str], name: str, device: str) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):
            serve(queue, work, names=names, worker=name, device=device)


def connect(address: str) -> list[str]:
    """Connect to a cluster and return a device for each worker that it has room for: its GPUs, or else its computers.

    Args:
        address: `HOST:PORT` of the cluster's head, or `auto` for the cluster that this computer belongs to.

    Raises:
        OptionError: The address cannot be used, or no cluster answers there within seconds.
        MissingLibrary: Ray is not installed.
    """
    ray = library("ray")
    if not ray.is_initialized():
        _check(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    gpus = int(ray.cluster_resources().get("GPU", 0))
    return ["cuda"] * gpus or ["cpu"] * len(ray.nodes())


def _check(address: str) -> None:
    """Raise OptionError unless a cluster answers at the address."""
    host, colon, port = address.rpartition(":")
    if address != "auto":
        if not (host and colon and port.isdecimal() and "/" not in host):
            raise OptionError(
                f"The Ray address is {address!r}. Give that of the cluster's head, such as 10.0.0.1:6379, or auto on a "
                "computer of the cluster."
            )
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
        except (OSError, OverflowError) as error:
            raise _silent(address, first_line(error)) from error
    command = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        subprocess.run(command, timeout=ANSWER_S, check=True, capture_output=True)
    except subprocess.TimeoutExpired as error:
        raise _silent(address, f"No answer in {ANSWER_S} seconds.") from error
    except subprocess.CalledProcessError as error:
        lines = error.stderr.decode(errors="replace").strip().splitlines() or ["It is not healthy."]
        raise _silent(address, lines[-1]) from error


def _silent(address: str, why: str) -> OptionError:
    return OptionError(
        f"No Ray cluster answers at {address} ({why}) Start one with `ray start --head`, or leave out --ray to use "
        "this computer alone."
    )
