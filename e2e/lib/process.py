"""Owns processes and waiting: free ports, servers with a log file and a deadline, and `eventually`.

Nothing here sleeps and hopes: every wait looks at a fact, again and again, until a deadline.
"""
import atexit
import os
import random
import signal
import socket
import subprocess
import time


class Failure(AssertionError):
    """A case failed; the text is what the reader needs."""


class Hopeless(Failure):
    """A failure that waiting cannot mend: `eventually` lets it through."""


def check(condition, text):
    """Asserts, also under `python -O`."""
    if not condition:
        raise Failure(text)


def check_equal(got, want, what):
    if got != want:
        raise Failure(f"{what}: got {got!r}, want {want!r}")


def eventually(fact, what, seconds=20, every=0.05):
    """Waits until `fact()` is true (returns its value) or says after `seconds` what never came true."""
    deadline = time.monotonic() + seconds
    last = None
    while True:
        try:
            value = fact()
            if value:
                return value
            last = None
        except Hopeless:
            raise
        except (OSError, Failure) as error:
            last = error
        if time.monotonic() > deadline:
            raise Failure(f"not within {seconds} s: {what}" + (f" (last: {last})" if last else ""))
        time.sleep(every)


_handed_out = set()


def free_port(count=1):
    """A free port of 127.0.0.1, or the first of `count` neighbours that are all free; never the same twice.

    Below the range from which the system takes ports for outgoing connections: a client that tries and tries to
    reach a stopped server would else sooner or later be given that server's port, and connect to itself.
    """
    for _ in range(500):
        first = random.randrange(15000, 32000)
        wanted = range(first, first + count)
        if not _handed_out.isdisjoint(wanted):
            continue
        try:
            for port in wanted:
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        _handed_out.update(wanted)
        return first
    raise Failure("no free port on 127.0.0.1")


class Server:
    """A process with its own log file, stopped by its pid whatever happens."""

    running = []

    def __init__(self, name, command, log_path, env=None, cwd=None):
        self.name, self.command, self.log_path = name, [str(c) for c in command], str(log_path)
        self.log_start = os.path.getsize(self.log_path) if os.path.exists(self.log_path) else 0
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=env, cwd=cwd,
                start_new_session=True)
        Server.running.append(self)

    @property
    def pid(self):
        return self.process.pid

    def log(self):
        """What this process wrote, not what an earlier one wrote to the same file."""
        with open(self.log_path, "rb") as log:
            log.seek(self.log_start)
            return log.read().decode("utf-8", "replace")

    def log_tail(self, lines=15):
        return "\n".join("    | " + line for line in self.log().splitlines()[-lines:])

    def wait_until(self, fact, what, seconds):
        """Waits for `fact`, but not for a process that has already died."""
        def alive_and_true():
            code = self.process.poll()
            if code is not None:
                raise SystemError(code)
            return fact()
        try:
            return eventually(alive_and_true, f"{self.name}: {what}", seconds)
        except SystemError as gone:
            raise Failure(f"{self.name} ended with code {gone} before: {what}\n{self.log_tail()}") from None
        except Failure as late:
            raise Failure(f"{late}\n{self.log_tail()}") from None

    def kill(self):
        """kill -9, and wait until it is gone."""
        self.stop(signal.SIGKILL)

    def stop(self, how=signal.SIGTERM, seconds=30):
        """Sends the signal and returns the exit code; kill -9 after `seconds`."""
        if self.process.poll() is None:
            self.process.send_signal(how)
            try:
                self.process.wait(seconds)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        if self in Server.running:
            Server.running.remove(self)
        return self.process.returncode


def stop_all():
    for server in list(Server.running)[::-1]:
        server.stop(seconds=10)


def _interrupted(number, _frame):
    raise SystemExit(128 + number)  # so that atexit and every `finally` run


def install_cleanup():
    atexit.register(stop_all)
    signal.signal(signal.SIGTERM, _interrupted)
    signal.signal(signal.SIGHUP, _interrupted)


def run(command, what, cwd=None, env=None, seconds=900):
    """Runs a command to its end and returns its output; a failure says in one line what did not work."""
    command = [str(c) for c in command]
    try:
        done = subprocess.run(command, cwd=cwd, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, timeout=seconds)
    except FileNotFoundError:
        raise Failure(f"{what}: the program `{command[0]}` is not installed") from None
    except subprocess.TimeoutExpired:
        raise Failure(f"{what}: not done within {seconds} s: {' '.join(command)}") from None
    output = done.stdout.decode("utf-8", "replace")
    if done.returncode != 0:
        tail = "\n".join("    | " + line for line in output.splitlines()[-15:])
        raise Failure(f"{what}: `{' '.join(command)}` ended with code {done.returncode}\n{tail}")
    return output
