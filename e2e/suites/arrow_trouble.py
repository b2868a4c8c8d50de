"""Owns what may go wrong between a topic and its columns: the registry goes away and comes back, ids and bytes that are
none, karrow dies while a client drains batches."""
import json
import os
import signal
import struct
import time
import urllib.error

from lib.cases import case
from lib.ledger import Worker
from lib.process import Failure, check, check_equal, eventually
from lib.registry import RegistryProxy
from lib.resp import Redis, ReplyError
from lib.tables import Reader, as_table, check_no_errors, check_rows, check_types, errors, libraries, payloads, whole
from suites.arrow import avro_writer, field, fill, gateway, read
from suites.loss import EARLIEST, PACE, Scene, TAKEN, kill_and_start

ITEM = {"type": "record", "name": "Item", "fields": [
    field("id", "long"), field("name", "string"), field("state", {"type": "enum", "name": "S", "symbols": ["A", "B"]})]}


def item(number):
    return {"id": number, "name": f"Zoë {number}", "state": "AB"[number % 2]}


def ready(karrow):
    """The status of /readyz and its text."""
    try:
        return 200, karrow.http("/readyz")
    except urllib.error.HTTPError as answer:
        return answer.code, answer.read().decode()


def with_registry_away(context, leave, come_back):
    registry = context.new_registry().start()
    client, karrow = registry.client(), gateway(context, registry.url)
    pa, known, new = libraries(), context.unique("known"), context.unique("new")
    write = avro_writer(client, ITEM, known)
    fill(karrow, known, [write(item(number)) for number in range(10)])
    write_new = avro_writer(client, {**ITEM, "name": "Newer", "fields": [*ITEM["fields"], field("more", "int")]}, new)
    rows = [{**item(number), "more": number} for number in range(10)]
    fresh = [write_new(row) for row in rows]
    types = {"id": pa.int64(), "name": pa.string(), "state": pa.string(), "more": pa.int32()}
    with Reader(karrow, context.unique("group"), known, **whole(10)) as old_reader, \
            Reader(karrow, context.unique("group"), new, karrow_batch_rows=10) as new_reader:
        check_rows(payloads(old_reader.table()), [item(number) for number in range(10)])
        check_equal(ready(karrow)[0], 200, "/readyz before")
        leave(registry)
        fill(karrow, new, fresh[:5])
        new_reader.nothing(3)
        eventually(lambda: ready(karrow)[0] == 503, "/readyz answers 503", 40)
        check("registry" in ready(karrow)[1], f"/readyz says {ready(karrow)[1]!r}")
        # What is known needs no registry.
        karrow.kafka_client().store(known, [write(item(number)) for number in range(10, 20)])
        check_rows(payloads(old_reader.table()), [item(number) for number in range(10, 20)])
        karrow.kafka_client().store(new, fresh[5:])
        new_reader.nothing(1)
        come_back(registry)
        tables = new_reader.all(10)
        for table in tables:
            check_no_errors(table)
            check_types(table.schema.field("payload").type, types)
        check_rows(sum((payloads(table) for table in tables), []), rows)
        check_equal(sum((table.column("offset").to_pylist() for table in tables), []), list(range(10)), "offsets")
        eventually(lambda: ready(karrow)[0] == 200, "/readyz is well again", 20)
        check_equal(new_reader.redis.rpush("acks", f"{new}:0:9"), 1, "ack")


@case("arrow", "registry-stopped")
def registry_stopped(context):
    """The registry ends: pops of what it must explain wait and time out with null, /readyz answers 503, known schemas
    go on. It is back: the same records come, typed."""
    with_registry_away(context, lambda registry: registry.stop(), lambda registry: registry.start())


@case("arrow", "registry-hangs")
def registry_hangs(context):
    """The same with a registry that takes connections and does not answer."""
    stopped = []

    def leave(registry):
        stopped.append(registry.server.pid)
        os.kill(registry.server.pid, signal.SIGSTOP)

    def come_back(_registry=None):
        while stopped:
            os.kill(stopped.pop(), signal.SIGCONT)
    try:
        with_registry_away(context, leave, come_back)
    finally:
        come_back()


@case("arrow", "registry-slow")
def registry_slow(context):
    """A registry that needs longer for an answer than a pop waits: the pops time out, and one of them has the records."""
    registry = context.run.registry()
    slow = RegistryProxy(registry, delay=3)
    try:
        karrow, topic = gateway(context, slow.url), context.unique("slow")
        write = avro_writer(registry.client(), ITEM, topic)
        fill(karrow, topic, [write(item(number)) for number in range(5)])
        with Reader(karrow, context.unique("group"), topic, **whole(5)) as reader:
            stream = eventually(lambda: reader.stream(1), "a pop of one second has the records", 30, every=0)
            check_rows(payloads(as_table(stream)), [item(number) for number in range(5)])
    finally:
        slow.stop()


@case("arrow", "bad-rows-of-avro")
def bad_rows(context):
    """An id that no registry knows, and bytes that are cut, longer, or garbled: each is one bad row with its bytes and
    its reason; neighbours are whole."""
    registry = context.run.registry()
    karrow, topic, unknown = gateway(context, registry.url), context.unique("garbled"), 987_654
    write = avro_writer(registry.client(), ITEM, topic)
    values = [write(item(number)) for number in range(40)]
    bad = {3: b"\0" + struct.pack(">I", unknown) + values[3][5:], 8: values[8][:-3], 13: values[13] + b"\0",
           18: values[18][:-1] + b"\x08", 23: values[23][:5], 28: b"\0\0", 33: b"plain text",
           36: values[36].replace("ë".encode(), b"\xff\xff")}
    fill(karrow, topic, [bad.get(row, value) for row, value in enumerate(values)])
    table = read(context, karrow, topic, 40)
    check_rows(payloads(table), [None if row in bad else item(row) for row in range(40)])
    found = errors(table)
    check_equal({row: raw for row, (_, raw) in found.items()}, bad, "bytes of bad rows")
    check(str(unknown) in found[3][0], f"the unknown id is not in {found[3][0]!r}")
    check(all(message.startswith("payload: ") for message, _ in found.values()), f"reasons: {found}")


@case("arrow", "bad-rows-dead-letter")
def dead_letter(context):
    """on-bad-record = "dead-letter": the copy is in <topic>.dlq when the batch is answered, its bytes as they were."""
    registry, topic = context.run.registry(), context.unique("letters")
    karrow = gateway(context, registry.url, f'[topic.{topic}]\non-bad-record = "dead-letter"\n')
    write = avro_writer(registry.client(), ITEM, topic)
    values = [write(item(number)) for number in range(5)]
    values[2] = values[2][:-2]
    karrow.kafka_client().create_topic(f"{topic}.dlq", 1)
    fill(karrow, topic, [{"value": value, "key": b"k%d" % row} for row, value in enumerate(values)])
    table = read(context, karrow, topic, 5)
    check_equal(list(errors(table)), [2], "bad rows")
    letter = karrow.kafka_client().values(f"{topic}.dlq", 1, seconds=5)[0]
    check_equal((letter.key(), letter.value()), (b"k2", values[2]), "the letter")
    headers = b" ".join(name.encode() + b"=" + (value or b"") for name, value in letter.headers() or [])
    check(topic.encode() in headers and b"2" in headers, f"headers of the letter: {headers}")


@case("arrow", "bad-rows-fail")
def bad_rows_fail(context):
    """on-bad-record = "fail": what is before the bad record comes, then an error that names it, until it is acked."""
    from redis.exceptions import ResponseError
    topic = context.unique("strict")
    karrow = gateway(context, config=f'[topic.{topic}]\npayload = "json"\non-bad-record = "fail"\n')
    fill(karrow, topic, [b'{"n": 0}', b'{"n": 1}', b"oops", b'{"n": 3}'])
    with Reader(karrow, context.unique("group"), topic) as reader:
        check_rows(sum((payloads(table) for table in reader.all(2)), []), [{"n": 0}, {"n": 1}])
        for _ in range(2):
            try:
                reader.nothing()
            except ResponseError as refused:
                check(f"{topic}:0:2" in str(refused), f"the error does not name the record: {refused}")
            else:
                raise Failure("a pop at the bad record is no error")
        check_equal(reader.redis.rpush("acks", f"{topic}:0:2"), 1, "ack of the bad record")
        check_rows(payloads(reader.table()), [{"n": 3}])


# ---- kill -9


class Drainer(Worker):
    """Drains batches and acks each by its schema's metadata."""

    def __init__(self, ledger, port, group, name, seed, **settings):
        options = {**json.loads(settings.pop("options")), "karrow.batch.rows": 250}
        super().__init__(ledger, port, group, name, seed, **settings)
        self.key = f"arrow:{ledger.topic}:{json.dumps(options)}"

    def _one_connection(self):
        self.doing = "connecting"
        self.redis = redis = Redis(self.port, seconds=60)
        try:
            redis.call("CLIENT", "SETNAME", self.id)
            self.connections += 1
            while not self.ending.is_set():
                self.doing = "popping"
                redis.send("BLPOP", self.key, "1")
                reply = redis.read()
                if isinstance(reply, ReplyError):
                    self._tolerate(reply, self.tolerate)
                elif reply:
                    self._batch(redis, as_table(reply[1]))
        finally:
            redis.close()

    def _batch(self, redis, table):
        places = []
        for row in table.to_pylist():
            check(row["error"] is None, f"{self.id} got a bad row: {row}")
            place = row["partition"], row["offset"]
            # The text that was written, from typed columns.
            self.ledger.delivered(place, json.dumps(row["payload"]).encode(), self.id)
            places.append(place)
            self.received += 1
        self.doing = "acking"
        self.ledger.ack_sent(places)
        redis.send("RPUSH", "acks", table.schema.metadata[b"karrow.acks"])
        reply = redis.read()
        if isinstance(reply, ReplyError):
            self._tolerate(reply, self.tolerate_acks)
            self.ledger.ack_refused(places)
        else:
            check(isinstance(reply, int) and reply >= 0, f"{self.id}: an ack was answered with {reply!r}")
            self.ledger.ack_accepted(places)
        self.due = max(self.due, time.monotonic()) + len(places) / PACE
        self.ending.wait(self.due - time.monotonic())


class BatchScene(Scene):
    def values(self, count, prefix=b"m"):
        return [json.dumps({"n": 2**53 + number, "text": f"Zoë {number}", "half": number + 0.5}).encode()
                for number in range(count)]

    def worker(self, name):
        drainer = Drainer(self.ledger, self.karrow.port, self.group, name, self.context.random.random(),
                          options=EARLIEST, tolerate=(TAKEN,), tolerate_acks=("CONS ",))
        self.workers.append(drainer)
        drainer.start()


@case("arrow", "kill-9")
def kill_9(context):
    """50,000 JSON records over four partitions, two clients that drain and ack batches, four kill -9 of karrow: every
    record is seen, and only unacked ones and those of the last commit interval come again."""
    libraries()
    play = BatchScene(context, context.new_karrow().start())
    try:
        play.produce()
        for name in ("a", "b"):
            play.worker(name)
        for moment in play.moments(4):
            play.reach(moment)
            kill_and_start(play)
        play.finish()
    finally:
        play.end()
