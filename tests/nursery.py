"""Starts a Python program as a process of its own, without the quarter of a second that its imports take.

A nursery is a process that has imported what the program imports, and forks for each start: the child runs the program
from its first line, with arguments, folder, environment, standard files, signals and an exit status of its own. There
is one for each program and each of pytest's processes; it ends with those. What such a program starts by
multiprocessing's "spawn" are children of its own that were forked before its first line, and waited. Elsewhere than on
Linux it is subprocess.Popen that starts.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import types
from pathlib import Path
from typing import Any, TextIO

STANDARD_FILES = ("stdin", "stdout", "stderr")
CHEAP_PASSWORDS = {"n": 16, "r": 1, "p": 1}  # hashing them is slow on purpose, which only its own tests need


def start(program: Path, arguments: list[Any], folder: Path, environment: dict[str, str], **files: Any) -> Any:
    """Starts a program with these standard files, which are text: what subprocess.Popen returns, or much like it."""
    if sys.platform == "linux":
        return Process(program, arguments, folder, environment, **files)
    return subprocess.Popen(
        [sys.executable, program, *map(str, arguments)], cwd=folder, env=environment, text=True, **files
    )


def run(program: Path, arguments: list[Any], folder: Path, text: str = "", timeout: float = 60) -> Any:
    """Runs a program in our environment, with the text as its standard input: what subprocess.run returns."""
    with start(program, arguments, folder, dict(os.environ), **dict.fromkeys(STANDARD_FILES, subprocess.PIPE)) as one:
        try:
            printed = one.communicate(text, timeout=timeout)
        finally:
            one.kill()
    return subprocess.CompletedProcess(arguments, one.returncode, *printed)


@functools.cache
def nursery_of(program: Path) -> tuple[socket.socket, subprocess.Popen]:
    """The way to a new nursery, and its process, which starts as the program would where nothing steers Python."""
    ours, theirs = socket.socketpair()
    environment = {name: value for name, value in os.environ.items() if not re.match("PYTHON|COLUMNS|LINES", name)}
    command = [sys.executable, __file__, program, str(theirs.fileno())]
    with theirs:
        options = {"stdin": subprocess.DEVNULL, "env": environment, "pass_fds": [theirs.fileno()]}
        return ours, subprocess.Popen(command, **options)


class Process:
    """A process that a nursery has started, with those of subprocess.Popen's verbs that tests use."""

    stdin: TextIO | None = None
    stdout: TextIO | None = None
    stderr: TextIO | None = None
    returncode: int | None = None

    def __init__(self, program: Path, arguments: list[Any], folder: Path, environment: dict[str, str], **files: Any):
        self.args = [program, *arguments]
        read, write = os.pipe()
        self.status = os.fdopen(read)
        with contextlib.ExitStack() as theirs, tempfile.TemporaryFile("w+") as request:
            theirs.callback(os.close, write)
            json.dump([list(map(str, arguments)), str(folder), environment], request)
            request.flush()
            passed = [self._file(name, files.get(name), theirs) for name in STANDARD_FILES]
            socket.send_fds(nursery_of(program)[0], [b"."], [request.fileno(), *passed, write])
        self.pid = int(self.status.readline())

    def _file(self, name: str, given: Any, theirs: contextlib.ExitStack) -> int:
        """What the process gets as its standard file of that name; `theirs` closes what is only for it."""
        if given == subprocess.PIPE:
            read, write = os.pipe()
            mine, its = (write, read) if name == "stdin" else (read, write)
            setattr(self, name, os.fdopen(mine, "w" if name == "stdin" else "r"))
        elif given == subprocess.DEVNULL:
            its = os.open(os.devnull, os.O_RDWR)
        elif given is None:
            return STANDARD_FILES.index(name)
        else:
            return given if isinstance(given, int) else given.fileno()
        theirs.callback(os.close, its)
        return its

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *error: object) -> None:
        for stream in filter(None, (self.stdin, self.stdout, self.stderr)):
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        self.wait()
        self.status.close()

    def poll(self) -> int | None:
        """The exit status, or minus the number of the signal that ended it; None while it runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(0)

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self.status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(self.args, timeout)
            self.returncode = int(self.status.readline())
        return self.returncode

    def communicate(self, text: str | None = None, timeout: float | None = None) -> tuple[str | None, str | None]:
        """Writes the text, reads all that comes, and waits for the end: standard output and standard error."""
        read: dict[str, str] = {}

        def write() -> None:
            with contextlib.suppress(BrokenPipeError), self.stdin:
                self.stdin.write(text or "")

        def read_all(name: str) -> None:
            read[name] = getattr(self, name).read()

        work = [(read_all, name) for name in ("stdout", "stderr") if getattr(self, name)]
        work += [(write,)] if self.stdin and not self.stdin.closed else []
        threads = [threading.Thread(target=function, args=args, daemon=True) for function, *args in work]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout)
            if thread.is_alive():
                raise subprocess.TimeoutExpired(self.args, timeout)
        self.wait(timeout)
        return read.get("stdout"), read.get("stderr")

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and the one that watches has not said so yet
                os.kill(self.pid, number)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


# ── The nursery ───────────────────────────────────────────────────────────────────────────────────────────────────────


def next_child(way: socket.socket) -> list[int]:
    """Forks for each request, and returns in the new process that is to run the program: the request's files."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody asks for those that watch
    while True:
        _, files, _, _ = socket.recv_fds(way, 1, 5)
        if not files:
            sys.exit()  # whoever sent requests has ended
        if os.fork() == 0:
            break
        for file in files:
            os.close(file)
    way.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if child := os.fork():
        *others, status = files
        for file in others:
            os.close(file)
        os.write(status, b"%d\n" % child)
        os.write(status, b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        os._exit(0)
    os.close(files.pop())
    return files


def take_over(files: list[int]) -> list[str]:
    """Makes the process what its request says; returns the arguments."""
    request, *standard = files
    for number, file in enumerate(standard):
        os.dup2(file, number)
        os.close(file)
    with open(request) as file:
        file.seek(0)
        arguments, folder, environment = json.load(file)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, name in enumerate(STANDARD_FILES):
        old, mode = getattr(sys, name), "w" if number else "r"
        line_buffering = {"line_buffering": True} if number == 2 or (number and os.isatty(number)) else {}
        new = open(number, mode, encoding=old.encoding, errors=old.errors, closefd=False)  # noqa: SIM115
        new.reconfigure(**line_buffering)
        setattr(sys, name, new)
        setattr(sys, f"__{name}__", new)
    return arguments


def spare() -> tuple[int, socket.socket]:
    """Forks a child that waits for what it is to run: its process id, and the way to it. It ends with its parent."""
    mine, its = socket.socketpair()
    if child := os.fork():
        its.close()
        return child, mine
    for way in [mine, *(way for _, way in spares)]:
        way.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    request, files, _, _ = socket.recv_fds(its, 1 << 16, 10)
    if not request:
        os._exit(0)
    be_executed(its, files, **json.loads(request))
    sys.exit()


def be_executed(way: socket.socket, files: list[int], arguments: list[str], numbers: list[int], ignored: list[int]):
    """Does what these arguments of Python say, with these files under these numbers, as if Python began with them."""
    way.close()
    high = max(*numbers, *files) + 1  # where none of them is in the way of another
    for place, file in enumerate(files):
        os.dup2(file, high + place)
        os.close(file)
    for place, number in enumerate(numbers):
        os.dup2(high + place, number)
        os.close(high + place)
    signal.signal(signal.SIGINT, signal.SIG_IGN if signal.SIGINT in ignored else signal.default_int_handler)
    at = arguments.index("-c")
    sys.argv = arguments[at : at + 1] + arguments[at + 2 :]
    exec(arguments[at + 1], {"__name__": "__main__"})


def hand_to_spare(path: bytes, arguments: list[Any], files: list[int]) -> int:
    """What multiprocessing starts a process by (`util.spawnv_passfds`): a spare child takes it over, if one is left."""
    if not spares:
        return spawnv_passfds(path, arguments, files)
    child, way = spares.pop()
    ignored = [number for number in (signal.SIGINT,) if signal.getsignal(number) == signal.SIG_IGN]
    texts = [os.fsdecode(argument) for argument in arguments]
    request = {"arguments": texts, "numbers": list(files), "ignored": ignored}
    with way:
        socket.send_fds(way, [json.dumps(request).encode()], files)
    return child


def run_compiled(path: str) -> None:
    """What multiprocessing finds the functions of the program by (`spawn._fixup_main_from_path`)."""
    module = types.ModuleType("__mp_main__")
    module.__file__ = path
    sys.modules["__main__"] = sys.modules["__mp_main__"] = module
    exec(code, module.__dict__)


spares: list[tuple[int, socket.socket]] = []
SPARES = 5  # a crew of four, and what looks after their semaphores; a larger one is started without us

if __name__ == "__main__":
    program = Path(sys.argv[1])
    sys.path[0] = str(program.parent)
    module = importlib.import_module(program.stem)
    several = "multiprocessing" in vars(module)
    if several:
        from multiprocessing import popen_spawn_posix, queues, resource_tracker, spawn, synchronize, util  # noqa: F401
    code = compile(program.read_bytes(), program, "exec")
    if program.stem == "tracker":
        module.dialects(), importlib.import_module("pages")  # which it imports later
        importlib.import_module("attempts").SCRYPT = CHEAP_PASSWORDS
    else:
        del sys.modules[program.stem]  # it is not there while it runs, unlike a tracker, which imports itself
    gc.freeze()
    sys.argv = [str(program), *take_over(next_child(socket.socket(fileno=int(sys.argv[2]))))]
    if several:
        spawn._fixup_main_from_path = run_compiled
        spawnv_passfds, util.spawnv_passfds = util.spawnv_passfds, hand_to_spare
        for _ in range(SPARES):
            spares.append(spare())
    main = types.ModuleType("__main__")
    main.__file__ = str(program)
    sys.modules["__main__"] = main
    exec(code, main.__dict__)
