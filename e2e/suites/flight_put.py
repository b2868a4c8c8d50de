"""Owns writing through Arrow Flight, and consumer groups: DoPut with its results, DoExchange with acks, by pyarrow."""
import json
import threading

from lib.cases import case
from lib.flight import INVALID, Flight, check_refused
from lib.process import Failure, check, check_equal, eventually
from lib.tables import Reader, check_no_errors, check_rows, libraries, payloads
from suites.flight import ORDERS, READ, check_numbers, numbered, order_types, store_orders

PARTITIONS = 2


class Put:
    """One DoPut. Its results are read in a thread of their own, or not at all."""

    def __init__(self, client, what, schema, reads=True):
        self.writer, self.reader = client.client.do_put(client.descriptor(what), schema, client.within(120))
        self.results, self.thread = [], threading.Thread(target=self._read, daemon=True)
        if reads:
            self.thread.start()

    def _read(self):
        try:
            while (result := self.reader.read()) is not None:
                self.results.append(json.loads(result.to_pybytes()))
        except libraries().ArrowException:
            pass  # the writer is told as well

    def end(self):
        """Everything is stored when this returns."""
        self.writer.done_writing()
        if self.thread.ident:
            self.thread.join(120)
            check(not self.thread.is_alive(), "the results do not end")
        self.writer.close()
        return self.results


def put(client, what, table, size=None):
    putting = Put(client, what, table.schema)
    putting.writer.write_table(table, size)
    return putting.end()


def stored(karrow, topic, count):
    """The values of partition 0."""
    return [message.value() for message in karrow.kafka_client().values(topic, count)] if count else []


@case("flight-put", "put")
def put_a_table(context):
    """Envelope columns say key, headers, time and partition; a result for each batch has its rows and the offsets that
    Kafka gave them; read back, it is the same."""
    pa, karrow, topic = libraries(), context.karrow, context.topic("put", PARTITIONS)
    numbers = pa.array([{"n": number} for number in range(20)], pa.struct([("n", pa.int64())]))
    table = pa.table({
        "payload": numbers, "partition": pa.array([number % 2 for number in range(20)], pa.int32()),
        "key": pa.array([b"k\xff%d" % number for number in range(20)], pa.binary()),
        "timestamp": pa.array([1_700_000_000_000 + number for number in range(20)], pa.timestamp("ms", "UTC"))})
    with Flight(karrow) as client:
        check_equal(put(client, topic, table, 8), [
            {"rows": 8, "offsets": {"0": [0, 3], "1": [0, 3]}}, {"rows": 8, "offsets": {"0": [4, 7], "1": [4, 7]}},
            {"rows": 4, "offsets": {"0": [8, 9], "1": [8, 9]}}], "results")
        back = client.read(topic).table()
        check_numbers(back, range(20), PARTITIONS)
        back = back.sort_by([("offset", "ascending"), ("partition", "ascending")])
        for name in ("key", "timestamp", "partition"):
            check_equal(back.column(name).to_pylist(), table.column(name).to_pylist(), name)
        # What was read is what can be put: a copy of a topic, of many types, with a tombstone.
        source, copy = context.topic("source", 1), context.topic("copy", 1)
        store_orders(karrow, source)
        orders = client.read(source).table().slice(0, 4)
        check_equal(put(client, copy, orders), [{"rows": 4, "offsets": {"0": [0, 3]}}], "results of the copy")
        again = client.read(copy).table()
        check_no_errors(again)
        check_rows(payloads(again), READ[:4])
        for name in ("offset", "timestamp", "key", "headers"):
            check_rows(again.column(name).to_pylist(), orders.column(name).to_pylist(), name)


def without_nulls(value):
    """An object as karrow writes it."""
    if not isinstance(value, dict):
        return value
    return {name: without_nulls(one) for name, one in value.items() if one is not None}


@case("flight-put", "put-columns")
def put_columns(context):
    """Without a payload the columns form an object, whose nulls are left out; texts and bytes are values as they are; no rows are fine."""
    pa, karrow = libraries(), context.karrow
    with Flight(karrow) as client:
        topic = context.topic("objects", 1)
        rows = [{name: value for name, value in order.items() if name != "mixed"} for order in ORDERS]
        types = {name: kind for name, kind in order_types().items() if name != "mixed"}
        put(client, topic, pa.Table.from_pylist(rows, pa.schema(list(types.items()))))
        got = [json.loads(value) for value in stored(karrow, topic, 3)]
        check_rows(got, [without_nulls({**row, "price": float(row["price"])}) for row in rows], "object")
        for values in (["Zoë", "", None], [b"\xff\x00", b"", None]):
            topic = context.topic("values", 1)
            check_equal(put(client, topic, pa.table({"payload": values})), [{"rows": 3, "offsets": {"0": [0, 2]}}], "results")
            check_equal(stored(karrow, topic, 3),
                        [value.encode() if isinstance(value, str) else value for value in values], "values")
        topic = context.topic("nothing", 1)
        check_equal(put(client, topic, pa.table({"payload": pa.array([], pa.string())}))[:1],
                    [], "results of a table without a batch")
        empty = pa.record_batch({"payload": pa.array([], pa.string())})
        putting = Put(client, topic, empty.schema)
        putting.writer.write_batch(empty)
        check_equal(putting.end(), [{"rows": 0, "offsets": {}}], "results of an empty batch")


@case("flight-put", "put-much")
def put_much(context):
    """200,000 rows in 200 batches, with results read and left unread: OK means that all are stored, each once, and the
    results tile the partitions without a gap."""
    pa, karrow, count = libraries(), context.karrow, 200_000
    with Flight(karrow) as client:
        for reads in (True, False):
            topic = context.topic("much", PARTITIONS)
            putting = Put(client, topic, pa.schema([("n", pa.int64()), ("partition", pa.int32())]), reads)
            for begin in range(0, count, 1000):
                putting.writer.write_batch(pa.record_batch({
                    "n": pa.array(range(begin, begin + 1000), pa.int64()),
                    "partition": pa.array([number % 2 for number in range(1000)], pa.int32())}))
            results = putting.end()
            check_numbers(client.read(topic, 120).table(), range(count), PARTITIONS, f"rows, with results read: {reads}")
            if reads:
                check_equal([result["rows"] for result in results], [1000] * 200, "rows of the results")
                for partition in ("0", "1"):
                    check_equal([result["offsets"][partition] for result in results],
                                [[begin, begin + 499] for begin in range(0, count // 2, 500)], f"offsets of {partition}")


@case("flight-put", "put-refusals")
def put_refusals(context):
    """What cannot be produced is refused with its reason; of a batch that is refused nothing is stored, and batches before
    it are."""
    pa, karrow, topic = libraries(), context.karrow, context.topic("refused", 1)
    good = pa.table({"payload": ["a", "b"]})
    with Flight(karrow) as client:
        for what in ({"topic": topic}, [], [topic, "more"], "a b/c"):
            check_refused(lambda: put(client, what, good), INVALID, what=f"descriptor {what}")
        for name, table in {"payload": pa.table({"payload": [1, 2]}), "nothing left": pa.table({"key": ["a"]})}.items():
            check_refused(lambda: put(client, topic, table), INVALID, what=name)
        putting = Put(client, topic, pa.schema([("payload", pa.string()), ("partition", pa.int32())]), reads=False)
        for partitions in ([0, 0], [0, -1], [0, 0]):
            putting.writer.write_batch(pa.record_batch({
                "payload": pa.array(["x", "y"]), "partition": pa.array(partitions, pa.int32())}))
        check_refused(putting.end, INVALID, "row 3", what="a partition that there is not")
        check_equal(stored(karrow, topic, 2), [b"x", b"y"], "what was stored")
        check_equal(put(client, topic, good), [{"rows": 2, "offsets": {"0": [2, 3]}}], "a good one after it")


# ---- consumer groups


class Exchange:
    """A member of a consumer group, by DoExchange."""

    def __init__(self, client, group, topics, name="one", seconds=60, **fields):
        command = {"group": group, "name": name, "topics": topics, **fields}
        self.writer, self.reader = client.client.do_exchange(client.descriptor(command), client.within(seconds))
        self.acked = []

    def message(self):
        """The next batch, and what is said beside it."""
        chunk = self.reader.read_chunk()
        check(chunk.data is not None, "a message without a batch")
        return chunk.data, json.loads(chunk.app_metadata.to_pybytes()) if chunk.app_metadata else {}

    def until(self, rows):
        """So many rows in all, and not one more."""
        batches = []
        while sum(len(batch) for batch in batches) < rows:
            batch, said = self.message()
            check("acked" not in said, f"an ack that nobody sent: {said}")
            batches.append(batch)
        table = libraries().Table.from_batches(batches)
        check_equal(len(table), rows, "rows")
        return table

    def ack(self, text):
        """The answer to acks; batches that come before it are a failure of the case."""
        self.writer.write_metadata(text.encode())
        batch, said = self.message()
        check_equal(len(batch), 0, "rows of an answer")
        return said

    def end(self):
        self.writer.done_writing()
        while True:
            try:
                self.message()
            except StopIteration:
                break
        self.writer.close()


@case("flight-put", "exchange")
def exchange(context):
    """Batches come down, acks go up and are answered with their count; another session goes on behind them, by Flight or
    by Redis; what is not acked comes again."""
    karrow, topic, group = context.karrow, context.topic("numbers", 1), context.unique("group")
    numbered(karrow, topic, range(30))
    with Flight(karrow) as client:
        first = Exchange(client, group, [topic])
        check_numbers(first.until(30), range(30))
        check_equal(first.ack(f"{topic}:0:9"), {"acked": 1}, "an ack")
        check_equal(first.ack(f"{topic}:0:9"), {"acked": 0}, "the same again")
        check_equal(first.ack(f"{topic}:0:3,{topic}:0:14"), {"acked": 1}, "two in one")
        refused = first.ack(f"{topic}:0:999")
        check("acked" not in refused and "999" in json.dumps(refused), f"an ack of what was not delivered: {refused}")
        numbered(karrow, topic, range(30, 35))
        check_numbers_from(first.until(5), range(30, 35))
        first.end()
        second = Exchange(client, group, [topic])
        check_numbers_from(second.until(20), range(15, 35))
        check_equal(second.ack(f"{topic}:0:19"), {"acked": 1}, "an ack of the second session")
        second.end()
        eventually(lambda: karrow.kafka_client().committed(group, topic, 1) == {0: 20}, "the ack is committed")
        with Reader(karrow, group, topic) as reader:
            table = reader.all(15)
            check_numbers_from(table[0] if len(table) == 1 else libraries().concat_tables(table), range(20, 35))
            reader.ack(table[-1])
            # Its name is free when this is answered; of a connection that is just closed, karrow hears a moment later.
            check(reader.redis.execute_command("QUIT"), "QUIT is answered")
        third = Exchange(client, group, [topic])
        numbered(karrow, topic, range(35, 36))
        check_numbers_from(third.until(1), range(35, 36))
        third.end()


def check_numbers_from(table, numbers):
    check_equal([(row["offset"], row["payload"]["n"]) for row in table.select(["offset", "payload"]).to_pylist()],
                [(number, number) for number in numbers], "offsets and numbers")


@case("flight-put", "exchange-refusals")
def exchange_refusals(context):
    """Commands that are wrong, by name; a name that is taken, by either protocol, until its owner has gone."""
    karrow, topic, group = context.karrow, context.topic("numbers", 1), context.unique("group")
    numbered(karrow, topic, range(3))
    with Flight(karrow) as client:
        def first_of(command):
            writer, reader = client.client.do_exchange(client.descriptor(command), client.within(20))
            with writer:
                return reader.read_chunk()
        good = {"group": group, "name": "one", "topics": [topic]}
        for wrong in ({"group": ""}, {"group": 1}, {"group": "a:b"}, {"name": None}, {"topics": []}, {"topics": topic},
                      {"topics": [1]}, {"form": 1}):
            check_refused(lambda: first_of({**good, **wrong}), INVALID, next(iter(wrong)), what=f"command with {wrong}")
        check_refused(lambda: first_of({**good, "topics": ["a b/c"]}), INVALID, "a b/c", what="a name of no topic")
        check_refused(lambda: first_of(topic), INVALID, what="a path")
        holder = Exchange(client, group, [topic])
        check_numbers(holder.until(3), range(3))
        status = None
        try:
            check_refused(lambda: first_of(good), "precondition failed", "taken", what="a name that is taken")
        except Failure as failure:
            status = failure
        with karrow.connect(f"{group}:one") as redis:
            try:
                redis.call("BLPOP", f"topics:{topic}", "1")
            except Exception as error:
                check("taken" in str(error), f"Redis: {error}")
            else:
                raise Failure("a Redis client took the name of an exchange")
        holder.end()
        if status:
            raise status
        again = Exchange(client, group, [topic])
        check_numbers(again.until(3), range(3))
        again.end()
