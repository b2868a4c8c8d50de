"""Owns reading through Arrow Flight as an application does it, with pyarrow.flight, and what every message must keep to:
a batch in the columns that were promised, under 4 MB, and positions that are exactly behind its rows."""
import json
import re

from .process import Failure, check, check_equal
from .tables import ENOUGH, libraries

MESSAGE_BYTES_MAX = 4 << 20  # what a gRPC client takes by default
INVALID, NOT_FOUND, OUT_OF_RANGE = "invalid argument", "not found", "out-of-range"
REFUSAL = re.compile(r"(?:Flight|gRPC) returned (.+?) error, with message: (.*)", re.DOTALL)


def library():
    libraries()
    import pyarrow.flight
    return pyarrow.flight


def refusal(call, what):
    """How a call is refused, in pyarrow's words: (status, message)."""
    pyarrow = libraries()
    try:
        answer = call()
    except (pyarrow.ArrowException, NotImplementedError, KeyError, OSError) as error:
        text = str(error.args[0]) if error.args else str(error)
        found = REFUSAL.search(text)
        if not found:
            raise Failure(f"{what}: this is no status of a server: {type(error).__name__}: {text}") from None
        return found.group(1), found.group(2)
    raise Failure(f"{what}: not refused, but answered with {answer!r:.200}")


def check_refused(call, status, *words, what="refusal"):
    """That a call is refused with this status, and that its message has these words."""
    got, message = refusal(call, what)
    check(got == status, f"{what}: refused as {got} ({message}), want {status}")
    for word in words:
        check(word in message, f"{what}: {word!r} is not in {message!r}")


class Flight:
    """A client. What is read is the name of a topic, or the fields of a request."""

    def __init__(self, karrow):
        self.flight = library()
        self.client = self.flight.connect(f"grpc://127.0.0.1:{karrow.flight_port}")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.client.close()

    def descriptor(self, what):
        if isinstance(what, str):
            return self.flight.FlightDescriptor.for_path(what)
        if isinstance(what, list):
            return self.flight.FlightDescriptor.for_path(*what)
        return self.flight.FlightDescriptor.for_command(what if isinstance(what, bytes) else json.dumps(what))

    def within(self, seconds):
        return self.flight.FlightCallOptions(timeout=seconds)

    def flights(self, pattern=""):
        """{path: FlightInfo}."""
        found = list(self.client.list_flights(pattern.encode(), self.within(20)))
        return {tuple(part.decode() for part in info.descriptor.path): info for info in found}

    def info(self, what):
        return self.client.get_flight_info(self.descriptor(what), self.within(ENOUGH))

    def schema(self, what):
        return self.client.get_schema(self.descriptor(what), self.within(ENOUGH)).schema

    def tickets(self, what):
        return [endpoint.ticket for endpoint in self.info(what).endpoints]

    def ticket(self, what):
        tickets = self.tickets(what)
        check_equal(len(tickets), 1, "endpoints")
        return tickets[0]

    def get(self, what, seconds=ENOUGH):
        """The messages of a request, or of a ticket; all of them must come within `seconds`."""
        ticket = what if isinstance(what, self.flight.Ticket) else self.ticket(what)
        return Messages(self.client.do_get(ticket, self.within(seconds)))

    def read(self, what, seconds=ENOUGH):
        """All messages of a read that ends."""
        messages = self.get(what, seconds)
        for _ in messages:
            pass
        return messages

    def follow(self, topic, positions=None, seconds=ENOUGH, **fields):
        """The messages of a topic from its beginning or from `positions` on, without an end."""
        where = "earliest" if positions is None else {"positions": positions}
        return self.get({"topic": topic, "from": where, "to": "follow", **fields}, seconds)


class Messages:
    """What a read has given so far: its batches, and the positions behind each of them."""

    def __init__(self, reader):
        self.reader, self.schema = reader, reader.schema
        self.batches, self.said = [], []
        self.schema_changed = False

    def __iter__(self):
        return self

    def __next__(self):
        batch, metadata = self.reader.read_chunk()
        check(not self.schema_changed, "a message behind the one with schema_changed")
        self._check(batch, metadata)
        return batch

    def _check(self, batch, metadata):
        check(batch is not None, "a message without a batch")
        batch.validate(full=True)
        check_equal(batch.schema, self.schema, "schema of a batch")
        size = libraries().ipc.get_record_batch_size(batch)
        check(size < MESSAGE_BYTES_MAX, f"a message of {size} bytes, with {len(batch)} rows")
        check(metadata is not None, "a message without app_metadata")
        said = json.loads(metadata.to_pybytes())
        self.schema_changed = said.pop("schema_changed", False)
        positions = {int(partition): offset for partition, offset in said.pop("positions").items()}
        check_equal(said, {}, "other fields of app_metadata")
        before = self.said[-1] if self.said else {}
        check(all(positions.get(partition, 0) >= offset for partition, offset in before.items()),
              f"positions go back from {before} to {positions}")
        names = "_partition" if "_partition" in batch.schema.names else "partition", \
            "_offset" if "_offset" in batch.schema.names else "offset"
        if all(name in batch.schema.names for name in names):
            reached = dict(before)
            for partition, offset in zip(*(batch.column(name).to_pylist() for name in names)):
                check(reached.get(partition, 0) <= offset < positions.get(partition, 0),
                      f"offset {offset} of partition {partition} between the positions {before} and {positions}, "
                      f"where {reached.get(partition, 0)} was next")
                reached[partition] = offset + 1
        self.batches.append(batch)
        self.said.append(positions)

    @property
    def positions(self):
        """Behind all that came, as a request has them."""
        check(self.said, "there was no message")
        return as_positions(self.said[-1])

    def __repr__(self):
        return f"{len(self)} rows in {len(self.batches)} messages"

    def __len__(self):
        return sum(len(batch) for batch in self.batches)

    def until(self, rows):
        """Takes messages until there are so many rows in all, and not one more."""
        while len(self) < rows:
            check(next(self, None) is not None, f"the stream ended at {len(self)} of {rows} rows")
        check_equal(len(self), rows, "rows")
        return self

    def rest(self):
        """Takes messages until the stream ends."""
        for _ in self:
            pass
        return self

    def table(self):
        return libraries().Table.from_batches(self.batches, self.schema)

    def cancel(self):
        self.reader.cancel()


def as_positions(positions):
    return {str(partition): offset for partition, offset in positions.items()}
