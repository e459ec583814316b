"""Who asks for tasks: the workers that a project has heard of lately, and what they say that they take.

In memory, and of workers that were let in alone: a restart knows again within a minute who is there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

Takes = Literal["", "commands", "scripts", "all"]  # tasks for a command, jobs that bring a script; "": it does not say

MOST_PROJECTS, MOST_WORKERS = 1000, 100  # of which it knows; of each of them
LATELY = 120.0  # seconds, besides those that a request may wait


class Sign(NamedTuple):
    """The last sign of life of a worker in a project."""

    uptime: float
    takes: Takes


class Heard:
    """The last signs of life, by project and worker. The oldest make room."""

    def __init__(self, uptime: Callable[[], float], lately: float):
        self._uptime, self.lately = uptime, lately + LATELY
        self._signs: dict[int, dict[int, Sign]] = {}

    def note(self, worker: int, projects: Iterable[int], takes: Takes) -> None:
        """The worker, which may have their tasks, has asked these projects for one."""
        sign = Sign(self._uptime(), takes)
        for project in projects:
            signs = self._signs.get(project)
            if signs is None:
                if len(self._signs) >= MOST_PROJECTS:
                    del self._signs[next(iter(self._signs))]
                signs = self._signs[project] = {}
            elif worker in signs:
                del signs[worker]
            elif len(signs) >= MOST_WORKERS:
                del signs[next(iter(signs))]
            signs[worker] = sign

    def takes(self, project: int) -> list[Takes]:
        """What each worker takes that has asked the project lately."""
        since = self._uptime() - self.lately
        return [sign.takes for sign in list(self._signs.get(project, {}).values()) if sign.uptime >= since]


def waits_for(takes: list[Takes], needs: Takes) -> str:
    """What a job waits for that `needs` a worker which takes scripts, or commands, and these ask for tasks."""
    if not takes:
        return "a worker: none has asked for tasks of this project lately"
    able = sum(one in ("", "all", needs) for one in takes)
    if able:
        return "its turn: " + ("a worker asks" if able == 1 else f"{able:,} workers ask") + " for tasks here"
    if needs == "scripts":
        return "a worker that runs scripts: those that ask for tasks here were started without --allow-scripts"
    return "a worker that runs a command: those that ask for tasks here take nothing but jobs that bring a script"
