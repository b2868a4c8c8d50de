"""Owns the live streams of Arrow Flight: follows while records come, slow readers beside fast ones, schemas that change,
brokers and gateways that are started again."""
import json
import threading

from lib.cases import case
from lib.flight import OUT_OF_RANGE, Flight, check_refused
from lib.process import check, check_equal
from lib.servers import KAFKA
from lib.tables import check_no_errors, check_rows, check_types, errors, libraries, payloads
from suites.flight import check_numbers, numbered, places
from suites.flight_reading import check_history, text


@case("flight", "follow")
def follow(context):
    """From earliest, latest and positions, in all layouts, while records come; with a limit it ends."""
    pa, karrow, topic = libraries(), context.karrow, context.topic("numbers", 2)
    numbered(karrow, topic, range(20), 2)
    with Flight(karrow) as client:
        readers = {"earliest": client.follow(topic), "positions": client.follow(topic, {"0": 3, "1": 4}),
                   "latest": client.get({"topic": topic, "from": "latest", "to": "follow"}),
                   "flat": client.follow(topic, layout="flat", columns=["_partition", "_offset", "n"]),
                   "limit": client.follow(topic, limit=33)}
        first = {"earliest": 0, "positions": 7, "latest": 20}
        readers["earliest"].until(20)
        for part in range(4):
            numbered(karrow, topic, range(20 + part * 10, 30 + part * 10), 2)
        wanted = {"earliest": range(60), "latest": range(20, 60),
                  "positions": [number for number in range(60) if number // 2 >= (3, 4)[number % 2]]}
        for name in first:
            check_numbers(readers[name].until(len(wanted[name])).table(), wanted[name], 2, f"rows from {name}")
        flat = readers["flat"].until(60).table()
        check_equal(sorted(zip(*(flat.column(name).to_pylist() for name in ("_partition", "_offset", "n")))),
                    places(range(60), 2), "flat rows")
        limited = readers["limit"].rest()
        check_equal(len(limited), 33, "rows of a follow with a limit")
        rest = client.read({"topic": topic, "from": {"positions": limited.positions}})
        check_numbers(pa.concat_tables([limited.table(), rest.table()]), range(60), 2, "limited and the rest")
        for name in ("earliest", "positions", "latest", "flat"):
            readers[name].cancel()


@case("flight", "follow-an-empty-topic")
def follow_an_empty_topic(context):
    """A topic that has no record yet is followed, and its first records come."""
    karrow, topic = context.karrow, context.topic("later", 2)
    with Flight(karrow) as client:
        following = client.follow(topic)
        numbered(karrow, topic, range(10), 2)
        # What columns there are was not known: it ends before the first row, and a new plan goes on.
        tables = []
        while sum(len(table) for table in tables) < 10:
            batch = next(following, None)
            if batch is not None:
                tables.append(libraries().Table.from_batches([batch]))
                continue
            check(following.schema_changed, "the follow ended without a change of the schema")
            following = client.follow(topic, following.positions if following.said else {})
        typed = [table for table in tables if len(table)]
        check_numbers(libraries().concat_tables(typed), range(10), 2)
        following.cancel()


RATE_SIZE, STREAMED = 2_000, 75_000  # 150 MB


class Producing(threading.Thread):
    """Stores records over two partitions, as fast as the broker takes them."""

    def __init__(self, karrow, topic, count, first=0, size=RATE_SIZE):
        super().__init__(daemon=True)
        self.karrow, self.topic, self.numbers, self.size = karrow, topic, range(first, first + count), size
        self.failure = None
        self.start()

    def run(self):
        try:
            kafka = self.karrow.kafka_client()
            for begin in range(self.numbers.start, self.numbers.stop, 1000):
                part = range(begin, min(begin + 1000, self.numbers.stop))
                kafka.produce(self.topic, [
                    json.dumps({"n": number, "text": text(number, self.size)}, ensure_ascii=False).encode()
                    for number in part], 2)
        except Exception as error:
            self.failure = error

    def end(self):
        self.join(120)
        check(not self.is_alive() and self.failure is None, f"producing: {self.failure or 'not done'}")


def resident(pid):
    """(resident memory, its peak) of a process, in MiB."""
    with open(f"/proc/{pid}/status") as status:
        fields = dict(line.split(":", 1) for line in status)
    return int(fields["VmRSS"].split()[0]) >> 10, int(fields["VmHWM"].split()[0]) >> 10


def with_broker(context, *arguments):
    """(karrow on its own, the broker to store records in): the embedded broker in another process, so that karrow's
    memory is its own."""
    broker = context.karrow
    return context.new_karrow(arguments, kind=KAFKA, bootstrap=broker.bootstrap).start(), broker


@case("flight", "slow-reader")
def slow_reader(context):
    """150 MB through a window of 1 MiB: a reader that does not read holds nobody up, and then gets everything, from Kafka;
    karrow's memory stays bounded."""
    karrow, broker = with_broker(context, "--buffer-limit", "1MiB")
    topic = context.topic("stream", 2)
    broker.kafka_client().produce(topic, [json.dumps({"n": number, "text": text(number)}).encode() for number in (0, 1)], 2)
    with Flight(karrow) as fast_client, Flight(karrow) as slow_client:
        fast, slow = fast_client.follow(topic, seconds=400), slow_client.follow(topic, seconds=400)
        fast.until(2)
        base, _ = resident(karrow.server.pid)
        producing = Producing(broker, topic, STREAMED - 2, 2)
        seen = {"fast": [], "slow": []}

        def take(name, reader):
            for batch in reader:
                seen[name] += check_history(batch, RATE_SIZE, STREAMED)
                reader.batches.clear()
                if len(seen[name]) >= STREAMED:
                    return
        # The two records that the stream began with were taken above.
        seen["fast"] = [(number, 0, number) for number in (0, 1)]
        fast.batches.clear()
        take("fast", fast)
        producing.end()
        check_equal(sorted(seen["fast"]), places(range(STREAMED), 2), "rows of the fast reader")
        window = fast_client.flights()[topic,]
        check(window.total_bytes <= 4 << 20, f"the window holds {window.total_bytes} bytes")
        take("slow", slow)
        check_equal(sorted(seen["slow"]), places(range(STREAMED), 2), "rows of the slow reader")
        now, peak = resident(karrow.server.pid)
        print(f"        resident: {base} MiB before, {now} MiB after, {peak} MiB at most", flush=True)
        check(peak - base < 120, f"karrow has grown from {base} MiB to {peak} MiB")
        fast.cancel()
        slow.cancel()


@case("flight", "a-reader-that-goes")
def a_reader_that_goes(context):
    """Readers that vanish in the middle, without a word or by cancelling: others get everything."""
    karrow, broker = with_broker(context, "--buffer-limit", "1MiB")
    topic, count = context.topic("stream", 2), 10_000
    producing = Producing(broker, topic, count)
    producing.end()
    with Flight(karrow) as client:
        staying = client.follow(topic)
        for turn in range(12):
            leaving = Flight(karrow)
            messages = leaving.follow(topic)
            next(messages)
            if turn % 2:
                messages.cancel()
            leaving.client.close()
        for batch in staying:
            check_history(batch, RATE_SIZE, count)
            if len(staying) >= count:
                break
        check_numbers(staying.table(), range(count), 2)
        staying.cancel()


# ---- schemas that change


@case("flight", "evolution-of-a-follow")
def evolution_of_a_follow(context):
    """A new field, and one that widens: the follow ends before the first row that does not fit, with schema_changed; a
    new plan goes on from its positions, with the new column. Rows that fit in spite of it just come."""
    pa, karrow, topic = libraries(), context.karrow, context.topic("growing", 1)
    kafka = karrow.kafka_client()
    turns = [  # what is stored, and the columns that the next plan has
        ([{"n": number} for number in range(10)], {"n": pa.int64()}),
        ([{"n": 10}, {"n": 11, "new": "x"}, {"n": 12}], {"n": pa.int64(), "new": pa.string()}),
        ([{"n": 13}, {"new": None}, {"n": 2.5}, {"n": 16}], {"n": pa.float64(), "new": pa.string()}),
        ([{"n": 17, "new": {"a": 1}}, {"n": 18, "new": "y"}], None),
        ([{"n": 19, "deep": {"a": 1}}], {"n": pa.float64(), "new": pa.string(), "deep": pa.struct([("a", pa.int64())])}),
        ([{"n": 20, "deep": {"a": 1, "b": [1]}}], {"n": pa.float64(), "new": pa.string(), "deep": pa.struct(
            [("a", pa.int64()), ("b", pa.list_(pa.int64()))])})]
    misfits = {1: 11, 2: 15, 4: 19, 5: 20}  # the offset at which the follow ends, by turn
    offset, got = 0, []
    with Flight(karrow) as client:
        following = None
        for turn, (records, types) in enumerate(turns):
            kafka.store(topic, [json.dumps(record).encode() for record in records])
            offset += len(records)
            if turn == 0:
                following = client.follow(topic)
            if turn in misfits:
                following.rest()
                check(following.schema_changed is True, f"turn {turn}: it ended without schema_changed")
                check_equal(following.positions, {"0": misfits[turn]}, f"turn {turn}: positions at the end")
                check_no_errors(following.table())
                got += following.table().select(["offset", "payload"]).to_pylist()
                following = client.follow(topic, following.positions)
            if types is not None:
                check_types(following.schema.field("payload").type, types, f"payload of turn {turn}")
            following.until(offset - len(got))
            check_equal(following.schema_changed, False, f"schema_changed behind turn {turn}")
        got += following.table().select(["offset", "payload"]).to_pylist()
        following.cancel()
        check_equal([row["offset"] for row in got], list(range(offset)), "offsets")
        stored = sum((records for records, _ in turns), [])
        for row, record in zip(got, stored):
            want = {name: json.dumps(value) if name == "new" and isinstance(value, dict) else value
                    for name, value in record.items()}
            have = {name: value for name, value in row["payload"].items() if value is not None}
            if isinstance(have.get("deep"), dict):
                have["deep"] = {name: value for name, value in have["deep"].items() if value is not None}
            check_equal(have, {name: value for name, value in want.items() if value is not None}, f"row {row['offset']}")


@case("flight", "evolution-of-a-bounded-read")
def evolution_of_a_bounded_read(context):
    """What a plan has not seen, because it lies in the middle: the fields that fit come, `error` says what does not; a plan from there has the column."""
    pa, karrow, topic = libraries(), context.karrow, context.topic("growing", 1)
    records = [{"n": number} for number in range(500)]
    records[250] = {"n": 250, "late": "x"}
    records[260] = {"n": "many"}
    records[270] = {"n": 270, "late": None}
    karrow.kafka_client().store(topic, [json.dumps(record).encode() for record in records])
    with Flight(karrow) as client:
        whole = client.read({"topic": topic, "from": "earliest"})
        table = whole.table()
        check_types(table.schema.field("payload").type, {"n": pa.int64()})
        check_equal(table.column("offset").to_pylist(), list(range(500)), "offsets")
        check_rows(payloads(table), [{"n": None if number == 260 else number} for number in range(500)])
        bad = errors(table)
        check_equal(sorted(bad), [250, 260], "rows that do not fit")
        check("late" in bad[250][0], f"error of row 250: {bad[250][0]}")
        check("payload.n" in bad[260][0], f"error of row 260: {bad[260][0]}")
        check_equal(whole.schema_changed, False, "schema_changed")
        later = client.read({"topic": topic, "from": {"positions": {"0": 250}}})
        check_types(later.schema.field("payload").type, {"n": pa.string(), "late": pa.string()})
        check_no_errors(later.table())
        check_rows(payloads(later.table())[:21], [
            {"n": "many" if number == 260 else str(number), "late": "x" if number == 250 else None}
            for number in range(250, 271)])


# ---- starting again


@case("flight", "broker-restarted")
def broker_restarted(context):
    """The broker ends (SIGTERM, then kill -9) and starts again in the middle of follows: they go on, and miss nothing."""
    if context.kind == KAFKA:
        broker = context.new_kafka().start()
        karrow = context.new_karrow(bootstrap=broker.bootstrap).start()
        kafka = karrow.kafka_client()
    else:
        broker = context.new_karrow(label="broker").start()
        karrow = context.new_karrow(kind=KAFKA, bootstrap=broker.bootstrap).start()
        kafka = broker.kafka_client()
    topic = context.unique("restarts")
    kafka.create_topic(topic, 2)

    class Store:  # the broker's own client, for `numbered`
        @staticmethod
        def kafka_client():
            return kafka
    numbered(Store, topic, range(1000), 2)
    with Flight(karrow) as client:
        following, slow = client.follow(topic, seconds=240), client.follow(topic, seconds=240)
        following.until(1000)
        for turn, stop in enumerate((broker.stop, broker.kill), 1):
            stop()
            broker.start()
            numbered(Store, topic, range(turn * 1000, turn * 1000 + 1000), 2)
            following.until(turn * 1000 + 1000)
        check_numbers(following.table(), range(3000), 2, "rows of the follow")
        check_numbers(slow.until(3000).table(), range(3000), 2, "rows of the one that read late")
        check_numbers(client.read({"topic": topic, "from": "earliest"}).table(), range(3000), 2, "rows of a new read")
        following.cancel()
        slow.cancel()


@case("flight", "karrow-restarted")
def karrow_restarted(context):
    """karrow ends (SIGTERM, then kill -9) and starts again: from the positions of the last message a follow goes on, by
    another connection, and misses and repeats nothing. SIGTERM does not wait for followers."""
    pa, karrow = libraries(), context.new_karrow(["--batch-size", "50"]).start()
    topic = context.unique("restarts")
    karrow.kafka_client().create_topic(topic, 2)
    tables, positions, count = [], {}, 0
    for turn, stop in enumerate((karrow.stop, karrow.kill, None)):
        numbered(karrow, topic, range(turn * 1000, turn * 1000 + 1000), 2)
        with Flight(karrow) as client:
            following = client.follow(topic, positions)
            while count + len(following) < turn * 1000 + 700:
                next(following)
            if stop is None:
                following.until(3000 - count).cancel()
            else:
                code = stop()
                if stop == karrow.stop:
                    check_equal(code, 0, "exit code after SIGTERM")
                try:
                    following.rest()
                except (client.flight.FlightUnavailableError, client.flight.FlightInternalError, pa.ArrowException):
                    pass
            tables.append(following.table())
            count += len(following)
            positions = following.positions
        if stop is not None:
            karrow.start()
    check_numbers(pa.concat_tables(tables), range(3000), 2)


@case("flight", "deleted-before-read", brokers=(KAFKA,))  # the embedded broker cannot delete records
def deleted_before_read(context):
    """Records that are deleted before a follow reads them are an error that says so, not a gap."""
    karrow, topic = context.karrow, context.topic("cut", 1)
    numbered(karrow, topic, range(100))
    with Flight(karrow) as client:
        ticket = client.ticket({"topic": topic, "from": {"positions": {"0": 10}}, "to": "follow"})
        karrow.kafka_client().delete_records(topic, 50)
        check_refused(lambda: client.get(ticket).until(90), OUT_OF_RANGE, topic, "50")
        following = client.follow(topic).until(50)
        check_numbers(following.table(), range(50, 100))
        following.cancel()
