"""Owns reading and writing Arrow through karrow as an application does it, with redis-py and pyarrow, and the exact
comparison of what came: types first, then values, with the place where they differ."""
import datetime
import json
import math

from . import install
from .process import Failure, check, check_equal

ENOUGH = 60  # seconds that a batch may take to arrive on a busy machine


def libraries():
    """pyarrow, redis and the rest of arrow/requirements.txt, importable from here on."""
    install.python_packages("arrow")
    import pyarrow
    return pyarrow


def client(karrow, name=None):
    libraries()
    import redis
    return redis.Redis(port=karrow.port, client_name=name, socket_timeout=None, single_connection_client=True)


class Reader:
    """A member of a consumer group that pops batches. `options` are those of the first key."""

    def __init__(self, karrow, group, topics, member="one", **options):
        self.redis = client(karrow, f"{group}:{member}")
        topics = ",".join([topics] if isinstance(topics, str) else topics)
        options = {name.replace("__", "-").replace("_", "."): value for name, value in options.items()}
        self.key = f"arrow:{topics}" + (f":{json.dumps(options)}" if options else "")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self.redis.close()

    def stream(self, seconds=ENOUGH):
        """The bytes of one batch; None when the time is over."""
        reply = self.redis.blpop(self.key, seconds)
        if reply is None:
            return None
        check_equal(reply[0], self.key.encode(), "the key in BLPOP's reply")
        return reply[1]

    def table(self, seconds=ENOUGH):
        """The next batch as a table of pyarrow."""
        stream = self.stream(seconds)
        check(stream is not None, f"no batch of {self.key} within {seconds} s")
        return as_table(stream)

    def all(self, rows, seconds=ENOUGH):
        """As many batches as hold `rows` rows, and not one row more."""
        tables = [self.table(seconds)]
        while sum(len(table) for table in tables) < rows:
            tables.append(self.table(seconds))
        check_equal(sum(len(table) for table in tables), rows, "rows in all batches")
        return tables

    def ack(self, table):
        return self.redis.rpush("acks", table.schema.metadata[b"karrow.acks"])

    def nothing(self, seconds=1):
        """That there is no batch."""
        stream = self.stream(seconds)
        check(stream is None, "a batch where none should be" + (
            f": {as_table(stream).to_pylist()}" if stream is not None else ""))


def whole(count):
    """Options that make one batch of the next `count` records: it waits until it is full."""
    return {"karrow_batch_rows": count, "karrow_batch_wait_ms": 60_000}


def as_table(stream):
    """An IPC stream as a table, every buffer of which was checked."""
    pyarrow = libraries()
    table = pyarrow.ipc.open_stream(stream).read_all()
    table.validate(full=True)
    return table


def as_stream(table, **options):
    """A table as an IPC stream, as pyarrow writes it."""
    pyarrow = libraries()
    sink = pyarrow.BufferOutputStream()
    options = pyarrow.ipc.IpcWriteOptions(**options)
    with pyarrow.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def payloads(table):
    return table.column("payload").to_pylist()


def check_types(struct, wanted, what="payload"):
    """That the columns of `struct`, a type or a schema, are those of `wanted`: {name: type}, in any order."""
    got = {field.name: field.type for field in struct}
    wrong = [f"{name} is {got.get(name, 'not there')}, want {wanted.get(name, 'no such column')}"
             for name in {**wanted, **got} if got.get(name) != wanted.get(name)]
    check(not wrong, f"types of {what}: " + "; ".join(wrong))


def check_rows(got, wanted, what="payload"):
    """That `got` is exactly `wanted`, value by value and Python type by Python type."""
    check_equal(len(got), len(wanted), f"rows of {what}")
    for row, (one, other) in enumerate(zip(got, wanted)):
        difference = differs(one, other, f"{what}[{row}]")
        if difference:
            raise Failure(difference)


def differs(got, want, where):
    """Where and how two values differ; None if they do not. NaN is NaN, and an instant has its zone."""
    if isinstance(got, dict) and isinstance(want, dict):
        missing = [name for name in want if name not in got] + [name for name in got if name not in want]
        if missing:
            return f"{where}: got the fields {sorted(got)}, want {sorted(want)}"
        return next(filter(None, (differs(got[name], want[name], f"{where}.{name}") for name in want)), None)
    if isinstance(got, (list, tuple)) and isinstance(want, (list, tuple)):
        if len(got) == len(want):
            pairs = enumerate(zip(got, want))
            return next(filter(None, (differs(a, b, f"{where}[{at}]") for at, (a, b) in pairs)), None)
    elif isinstance(got, float) and isinstance(want, float):
        if got == want and math.copysign(1, got) == math.copysign(1, want) or got != got and want != want:
            return None
    elif isinstance(got, datetime.datetime) and isinstance(want, datetime.datetime):
        if got.utcoffset() == want.utcoffset() and got == want:
            return None
    elif type(got) is type(want) and got == want:
        return None
    return f"{where}: got {got!r}, want {want!r}"


def errors(table):
    """The rows with an `error`, as {row: (message, bytes of the payload)}."""
    column = table.column("error").to_pylist()
    return {row: (error["message"], error["payload"]) for row, error in enumerate(column) if error is not None}


def check_no_errors(table):
    found = errors(table)
    first = next(iter(found.items()), None)
    check(not found, f"{len(found)} bad rows, the first is row {first and first[0]}: {first and first[1][0][:300]}")
