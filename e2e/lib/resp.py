"""Owns the raw RESP client of the tests: it decodes strictly and hides nothing that a library would hide."""
import socket
import struct


class ReplyError(Exception):
    """An error reply, with its text."""


class Disconnected(OSError):
    """The server closed the connection."""


class Nil:
    """A null and how it was written: `*-1`, `$-1` or `_`."""

    def __init__(self, written):
        self.written = written

    def __repr__(self):
        return f"Nil({self.written})"

    def __bool__(self):
        return False


class Redis:
    """One connection. `call` raises ReplyError; `read` returns it."""

    def __init__(self, port, name=None, seconds=20):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=seconds)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer, self.at = b"", 0
        if name is not None:
            self.call("CLIENT", "SETNAME", name)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    @staticmethod
    def encode(*arguments):
        parts = [b"*%d\r\n" % len(arguments)]
        for argument in arguments:
            if not isinstance(argument, bytes):
                argument = str(argument).encode()
            parts.append(b"$%d\r\n%s\r\n" % (len(argument), argument))
        return b"".join(parts)

    def send(self, *arguments):
        self.socket.sendall(self.encode(*arguments))

    def send_raw(self, data):
        self.socket.sendall(data)

    def call(self, *arguments, seconds=None):
        if seconds is not None:
            self.socket.settimeout(seconds)
        self.send(*arguments)
        reply = self.read()
        if isinstance(reply, ReplyError):
            raise reply
        return reply

    def _more(self):
        data = self.socket.recv(65536)
        if not data:
            raise Disconnected("the server closed the connection")
        self.buffer, self.at = self.buffer[self.at:] + data, 0

    def _line(self):
        while True:
            end = self.buffer.find(b"\r\n", self.at)
            if end >= 0:
                line, self.at = self.buffer[self.at:end], end + 2
                return line
            self._more()

    def _exactly(self, count):
        while len(self.buffer) - self.at < count + 2:
            self._more()
        data = self.buffer[self.at:self.at + count]
        if self.buffer[self.at + count:self.at + count + 2] != b"\r\n":
            raise ValueError(f"a bulk string of {count} bytes does not end with CRLF")
        self.at += count + 2
        return data

    def read(self, seconds=None):
        if seconds is not None:
            self.socket.settimeout(seconds)
        line = self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"$":
            return Nil("$-1") if rest == b"-1" else self._exactly(int(rest))
        if kind == b":":
            return int(rest)
        if kind == b"*":
            return Nil("*-1") if rest == b"-1" else [self.read() for _ in range(int(rest))]
        if kind == b"+":
            return rest.decode()
        if kind == b"-":
            return ReplyError(rest.decode("utf-8", "replace"))
        if kind == b"_":
            return Nil("_")
        if kind == b"%":
            return {self.read(): self.read() for _ in range(int(rest))}
        if kind in (b">", b"~"):
            return [self.read() for _ in range(int(rest))]
        if kind == b",":
            return float(rest)
        if kind == b"#":
            return rest == b"t"
        if kind == b"=":
            return self._exactly(int(rest))[4:]
        raise ValueError(f"this is no RESP: {line!r}")

    def closed_by_server(self, seconds=5):
        """True when the server closes the connection without another byte."""
        self.socket.settimeout(seconds)
        try:
            return self.at == len(self.buffer) and self.socket.recv(1) == b""
        except ConnectionResetError:
            return True
        except socket.timeout:
            return False

    def close(self):
        self.socket.close()

    def cut(self):
        """Ends the connection with a reset, as a crashed machine or a firewall would."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


def record(reply):
    """A `topics:` reply as (topic, partition, offset, value); anything else is a ValueError."""
    if not (isinstance(reply, list) and len(reply) == 8 and reply[0] == b"topic" and reply[2] == b"partition"
            and reply[4] == b"offset" and reply[6] == b"value" and type(reply[3]) is int and type(reply[5]) is int):
        raise ValueError(f"not `topic, t, partition, int, offset, int, value, bytes`: {reply!r}")
    return reply[1].decode(), reply[3], reply[5], reply[7]
