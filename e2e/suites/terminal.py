"""Owns redis-cli in a terminal, where it first asks for COMMAND DOCS, and its other ways to be run."""
import os
import pty
import select
import subprocess
import time

from lib import install
from lib.cases import case
from lib.process import Failure, check, eventually


class Terminal:
    """A program in a pseudo-terminal: types only when the prompt is there."""

    def __init__(self, command):
        self.shown, self.seen = "", 0
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.environ.update(TERM="xterm", COLUMNS="200", LINES="50")
            os.execvp(command[0], command)

    def wait_for(self, text, seconds=15):
        """Reads until `text` shows up behind what was already waited for; returns what came before it."""
        deadline = time.monotonic() + seconds
        while True:
            found = self.shown.find(text, self.seen)
            if found >= 0:
                before, self.seen = self.shown[self.seen:found], found + len(text)
                return before
            readable, _, _ = select.select([self.terminal], [], [], max(0, deadline - time.monotonic()))
            if not readable:
                raise Failure(f"redis-cli never showed {text!r}: {self.shown[-300:]!r}")
            data = os.read(self.terminal, 65536)
            # linenoise asks where the cursor is when the terminal has no size: answer as a terminal does.
            if b"\x1b[6n" in data:
                os.write(self.terminal, b"\x1b[1;1R")
            self.shown += data.decode("utf-8", "replace")

    def type(self, line):
        os.write(self.terminal, line.encode() + b"\r")

    def end(self):
        os.close(self.terminal)
        os.waitpid(self.pid, 0)


@case("redis-cli", "terminal")
def interactive(context):
    """At a prompt: hints from COMMAND DOCS, and replies in redis-cli's own notation."""
    install.debian("redis-tools")
    topic, karrow = context.topic("terminal"), context.karrow
    prompt = f"127.0.0.1:{karrow.port}> "
    terminal = Terminal(["redis-cli", "-p", str(karrow.port)])
    try:
        for typed, answer in [
            (f"RPUSH topics:{topic} m0", "(integer) 1"),
            (f"CLIENT SETNAME {context.unique('group')}:terminal", "OK"),
            (f"BLPOP topics:{topic} 10", '"m0"'),
            (f"RPUSH acks {topic}:0:0", "(integer) 1"),
            (f"BLPOP topics:{topic} 0.2", "(nil)"),
            ("NOSUCH", "(error) ERR unknown command `NOSUCH`"),
        ]:
            terminal.wait_for(prompt)
            terminal.type(typed)
            terminal.wait_for(answer)
        terminal.wait_for(prompt)
        terminal.type("quit")
    finally:
        terminal.end()


@case("redis-cli", "command-docs")
def command_docs(context):
    """COMMAND DOCS answers for every command that COMMAND LIST names, and HELLO tells a version: no fallback needed."""
    with context.karrow.connect() as redis:
        names = {name.decode().lower() for name in redis.call("COMMAND", "LIST")}
        check({"blpop", "lpop", "rpush", "rpushx", "dump", "keys", "client"} <= names, f"COMMAND LIST: {names}")
        flat = redis.call("COMMAND", "DOCS")
        described = {name.decode().lower() for name in flat[0::2]}
        check(described == names, f"COMMAND DOCS differs from COMMAND LIST: {described ^ names}")
        for name, entry in zip(flat[0::2], flat[1::2]):
            check(dict(zip(entry[0::2], entry[1::2])).get(b"summary"), f"no summary of {name.decode()}")


@case("redis-cli", "pipe")
def mass_insertion(context):
    """`redis-cli --pipe` stores 5,000 messages and counts 5,000 replies without an error."""
    install.debian("redis-tools")
    topic, karrow = context.topic("pipe"), context.karrow
    stream = b"".join(b"*3\r\n$6\r\nRPUSHX\r\n$%d\r\n%s\r\n$5\r\n%05d\r\n" % (len(key), key, number)
                      for key in [f"topics:{topic}".encode()] for number in range(5000))
    done = subprocess.run(["redis-cli", "-p", str(karrow.port), "--pipe"], input=stream, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=60)
    check(b"errors: 0, replies: 5000" in done.stdout, f"redis-cli --pipe said: {done.stdout.decode()!r}")
    with karrow.connect() as redis:
        eventually(lambda: redis.call("LLEN", f"topics:{topic}") == 5000, "LLEN is 5000")
