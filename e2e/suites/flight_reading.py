"""Owns the ranges of Arrow Flight: their bounds, columns and parts, positions from which a read goes on, and what Kafka's
log may have between them: gaps of compaction, aborted transactions, control records, more than fits a message."""
import json

from lib import install
from lib.cases import case
from lib.flight import INVALID, Flight, as_positions, check_refused
from lib.process import Failure, check, check_equal, eventually
from lib.servers import KAFKA
from lib.tables import check_no_errors, check_rows, check_types, libraries, payloads
from suites.flight import ENVELOPE, check_numbers, found, millis, moment, numbered, places

PARTITIONS, COUNT = 3, 90


def of_partitions(ends):
    """The numbers before these offsets, or behind them."""
    return ([number for number in range(COUNT) if number // PARTITIONS < ends[number % PARTITIONS]],
            [number for number in range(COUNT) if number // PARTITIONS >= ends[number % PARTITIONS]])


@case("flight", "ranges")
def ranges(context):
    """from and to as earliest, latest, a time, positions, in each combination; partitions that are not named."""
    karrow, topic = context.karrow, context.topic("numbers", PARTITIONS)
    numbered(karrow, topic, range(COUNT), PARTITIONS)
    middle = {"positions": {"0": 10, "1": 3, "2": 30}}
    before, behind = of_partitions([10, 3, 30])
    begins = [("earliest", range(COUNT)), (None, range(COUNT)), ("latest", []), (middle, behind),
              ({"positions": {}}, range(COUNT)), ({"positions": {"1": 30}}, of_partitions([0, 30, 0])[1])]
    ends = [("now", range(COUNT)), ("latest", range(COUNT)), (None, range(COUNT)), ("earliest", []), (middle, before),
            ({"positions": {"1": 7}}, of_partitions([0, 7, 0])[0])]
    # Times: between two records, exactly at one, before all and behind all of them.
    for seconds, first in ((40.5, 41), (40, 40), (-5, 0), (COUNT, COUNT)):
        time = {"timestamp": millis(moment(seconds))}
        begins.append((time, range(first, COUNT)))
        ends.append((time, range(first)))
    wrong = []
    with Flight(karrow) as client:
        for begin, has in begins:
            for end, may in ends:
                request = {"topic": topic, **({"from": begin} if begin else {}), **({"to": end} if end else {})}
                got = client.read(request)
                try:
                    check_numbers(got.table(), sorted(set(has) & set(may)), PARTITIONS, f"rows of {request}")
                    check(got.said, f"no message, so no positions of {request}")
                except Failure as failure:
                    wrong.append(str(failure))
        check(not wrong, f"{len(wrong)} wrong: " + " | ".join(wrong[:6]))
        whole = client.read(topic)
        check_equal(whole.positions, {"0": 30, "1": 30, "2": 30}, "positions at the end")
        # The end is fixed when the read is planned.
        ticket = client.ticket(topic)
        karrow.kafka_client().store(topic, [{"value": b'{"n": -1}', "timestamp": millis(moment(COUNT))}], 1)
        check_numbers(client.read(ticket).table(), range(COUNT), PARTITIONS, "rows of a ticket of before")
        check_equal(found(client.read({"topic": topic, "from": {"positions": whole.positions}}).table()), [(1, 30, -1)],
                    "rows behind the positions")


@case("flight", "limit")
def limit(context):
    """limit gives so many rows, the first ones; the positions behind them lose and repeat nothing."""
    karrow, topic = context.karrow, context.topic("numbers", PARTITIONS)
    numbered(karrow, topic, range(COUNT), PARTITIONS)
    with Flight(karrow) as client:
        for rows in (*range(1, COUNT, 9), 29, 30, 31, 89, 90, 91, 2**40):
            first = client.read({"topic": topic, "limit": rows})
            check_equal(len(first), min(rows, COUNT), f"rows of limit {rows}")
            check(first.said, f"no message, so no positions of limit {rows}")
            rest = client.read({"topic": topic, "from": {"positions": first.positions}})
            both = libraries().concat_tables([first.table(), rest.table()])
            check_numbers(both, range(COUNT), PARTITIONS, f"rows of limit {rows} and of the rest")
        seen, positions = [], {}
        while True:  # by pages
            page = client.read({"topic": topic, "from": {"positions": positions}, "limit": 7})
            if not len(page):
                break
            seen.append(page.table())
            positions = page.positions
        check_numbers(libraries().concat_tables(seen), range(COUNT), PARTITIONS, "rows of all pages")
        check_equal([len(page) for page in seen], [7] * 12 + [6], "rows of each page")
        nothing = client.read({"topic": topic, "limit": 0})
        check_equal(len(nothing), 0, "rows of limit 0")
        check(nothing.said, "limit 0: no message, so no positions")


@case("flight", "columns-and-layout")
def columns_and_layout(context):
    """columns chooses in the envelope and in the payload, layout lifts the payload's fields: types, values, positions."""
    pa, karrow, topic = libraries(), context.karrow, context.topic("wide", 1)
    karrow.kafka_client().store(topic, [
        b'{"id": 1, "price": 1.5, "deep": {"a": 1, "b": 2}, "offset": 7}', None,
        b'{"id": 2, "price": 2, "deep": null, "offset": 8}', b'{"id": 3}'])
    with Flight(karrow) as client:
        def read(**fields):
            got = client.read({"topic": topic, **fields})
            check_equal(got.positions, {"0": 4}, f"positions of {fields}")
            return got.table()
        some = read(columns=["offset", "payload.price", "payload.deep.b"])
        check_equal(some.schema.names, ["offset", "payload"], "columns")
        check_types(some.schema.field("payload").type, {"price": pa.float64(), "deep": pa.struct([("b", pa.int64())])})
        check_rows(some.to_pylist(), [
            {"offset": 0, "payload": {"price": 1.5, "deep": {"b": 2}}}, {"offset": 1, "payload": None},
            {"offset": 2, "payload": {"price": 2.0, "deep": None}},
            {"offset": 3, "payload": {"price": None, "deep": None}}], "row")
        check_rows(read(columns=["partition"]).to_pylist(), [{"partition": 0}] * 4, "row")
        check_rows(read(columns=["payload.id"], limit=4).to_pylist(),
                   [{"payload": {"id": 1}}, {"payload": None}, {"payload": {"id": 2}}, {"payload": {"id": 3}}], "row")
        flat = read(layout="flat")
        check_equal(sorted(flat.schema.names), sorted([
            *("_" + name for name in ENVELOPE if name != "payload"), "id", "price", "deep", "offset"]), "flat columns")
        check_rows(flat.select(["_offset", "id", "price", "deep", "offset"]).to_pylist(), [
            {"_offset": 0, "id": 1, "price": 1.5, "deep": {"a": 1, "b": 2}, "offset": 7},
            {"_offset": 1, "id": None, "price": None, "deep": None, "offset": None},
            {"_offset": 2, "id": 2, "price": 2.0, "deep": None, "offset": 8},
            {"_offset": 3, "id": 3, "price": None, "deep": None, "offset": None}], "row")
        few = read(layout="flat", columns=["_offset", "deep.a", "id"])
        check_types(few.schema, {"_offset": pa.int64(), "id": pa.int64(), "deep": pa.struct([("a", pa.int64())])})
        check_rows(few.to_pylist(), [{"_offset": 0, "id": 1, "deep": {"a": 1}}, {"_offset": 1, "id": None, "deep": None},
                                     {"_offset": 2, "id": 2, "deep": None}, {"_offset": 3, "id": 3, "deep": None}], "row")


@case("flight", "compression")
def compression(context):
    """compression none, lz4 and zstd give the same table; another one is refused."""
    karrow, topic = context.karrow, context.topic("numbers", 1)
    numbered(karrow, topic, range(1000), text="again " * 20)
    with Flight(karrow) as client:
        plain = client.read(topic).table()
        for name in ("none", "lz4", "zstd"):
            check(client.read({"topic": topic, "compression": name}).table().equals(plain), f"the table of compression {name}")
        check_refused(lambda: client.info({"topic": topic, "compression": "gzip"}), INVALID, "compression", "gzip")


@case("flight", "split")
def split(context):
    """split by partition: an endpoint for each, of its rows alone; all of them together are the topic."""
    karrow, topic = context.karrow, context.topic("numbers", PARTITIONS)
    numbered(karrow, topic, range(COUNT), PARTITIONS)
    with Flight(karrow) as client:
        for fields, numbers in (({}, range(COUNT)), ({"from": {"positions": {"0": 10, "2": 30}}}, of_partitions([10, 0, 30])[1]),
                                ({"to": {"timestamp": millis(moment(50))}}, range(50))):
            tickets = client.tickets({"topic": topic, "split": "partition", **fields})
            check_equal(len(tickets), PARTITIONS, "endpoints")
            for partition, ticket in enumerate(tickets):
                wanted = [number for number in numbers if number % PARTITIONS == partition]
                part = client.read(ticket)
                check_numbers(part.table(), wanted, PARTITIONS, f"rows of endpoint {partition} with {fields}")
        # Where an endpoint has ended, the others have still to begin.
        last = client.read(client.tickets({"topic": topic, "split": "partition"})[0]).said[-1]
        rest = client.read({"topic": topic, "from": {"positions": as_positions(last)}})
        check_numbers(rest.table(), [number for number in range(COUNT) if number % PARTITIONS], PARTITIONS, "rows behind endpoint 0")


@case("flight", "split-follow")
def split_follow(context):
    """Followed, an endpoint of a partition gets what comes to it, and nothing else."""
    karrow, topic = context.karrow, context.topic("numbers", PARTITIONS)
    numbered(karrow, topic, range(COUNT), PARTITIONS)
    with Flight(karrow) as client:
        following = [client.get(ticket, 20) for ticket in client.tickets(
            {"topic": topic, "split": "partition", "from": "earliest", "to": "follow"})]
        numbered(karrow, topic, range(COUNT, COUNT + 30), PARTITIONS)
        for partition, messages in enumerate(following):
            wanted = [number for number in range(COUNT + 30) if number % PARTITIONS == partition]
            check_numbers(messages.until(len(wanted)).table(), wanted, PARTITIONS, f"rows that follow in {partition}")
            messages.cancel()


def check_resumes(client, topic, numbers, partitions, cuts, whole):
    """That a read goes on from the positions of each of these messages, as if it had never ended."""
    pa = libraries()
    for cut in cuts:
        first = pa.Table.from_batches(whole.batches[:cut + 1])
        rest = client.read({"topic": topic, "from": {"positions": as_positions(whole.said[cut])}})
        check_numbers(pa.concat_tables([first, rest.table()]), numbers, partitions, f"rows with a cut behind message {cut}")


@case("flight", "resume-anywhere")
def resume_anywhere(context):
    """Positions of each message of a small topic, and of random ones of a larger: what comes from there on is exactly the
    rest. Read from Kafka, and from a stream's window."""
    karrow = context.new_karrow(["--batch-size", "5"]).start()
    small, large = context.unique("small"), context.unique("large")
    karrow.kafka_client().create_topic(small, 2)
    karrow.kafka_client().create_topic(large, PARTITIONS)
    numbered(karrow, small, range(60), 2)
    numbered(karrow, large, range(15_000), PARTITIONS)
    with Flight(karrow) as client:
        cuts_tried = 0
        for of in ("Kafka", "window"):
            if of == "window":
                window = client.follow(small).until(60)  # as long as it is read, it is a stream
            whole = client.read({"topic": small, "from": "earliest"})
            check_numbers(whole.table(), range(60), 2)
            cuts_tried += len(whole.batches)
            check_resumes(client, small, range(60), 2, range(len(whole.batches)), whole)
        window.cancel()
        whole = client.read(large)
        check_numbers(whole.table(), range(15_000), PARTITIONS)
        cuts = context.random.sample(range(len(whole.batches)), min(8, len(whole.batches)))
        check_resumes(client, large, range(15_000), PARTITIONS, cuts, whole)
        # The same from a follow.
        following = client.follow(large).until(15_000)
        following.cancel()
        check_resumes(client, large, range(15_000), PARTITIONS,
                      context.random.sample(range(len(following.batches)), min(4, len(following.batches))), following)
        check(cuts_tried >= 24, f"two reads of 60 rows came in {cuts_tried} messages, in spite of --batch-size 5")


# ---- what Kafka's log may have


def committed(karrow, topic, partitions):
    """(partition, offset, key, value) of what a reader of committed records is to see, as librdkafka has it."""
    lib = karrow.kafka_client().lib
    consumer = lib.Consumer({
        "bootstrap.servers": karrow.bootstrap, "group.id": "nobody", "enable.auto.commit": False, "log_level": 0,
        "isolation.level": "read_committed", "enable.partition.eof": True, "auto.offset.reset": "earliest"})
    consumer.assign([lib.TopicPartition(topic, partition, 0) for partition in range(partitions)])
    rows, ended = [], set()

    def more():
        message = consumer.poll(0.2)
        if message is None:
            return False
        if message.error():
            check_equal(message.error().code(), lib.KafkaError._PARTITION_EOF, "error of the consumer")
            ended.add(message.partition())
        else:
            rows.append((message.partition(), message.offset(), message.key(), message.value()))
        return len(ended) == partitions
    try:
        eventually(more, f"the end of {topic}", 30, every=0)
        return sorted(rows)
    finally:
        consumer.close()


def rows_of(table):
    """The same of a table; payloads as the JSON that was written."""
    return sorted((row["partition"], row["offset"], row["key"],
                   None if row["payload"] is None else json.dumps(row["payload"]).encode()) for row in table.to_pylist())


def check_is_committed(karrow, topic, partitions, messages, what):
    check_no_errors(messages.table())
    got, want = rows_of(messages.table()), committed(karrow, topic, partitions)
    if got != want:
        surplus, missing = sorted(set(got) - set(want), key=repr)[:5], sorted(set(want) - set(got), key=repr)[:5]
        check(False, f"{what}: {len(got)} rows, want {len(want)}; missing {missing}, surplus {surplus}")
    return want


@case("flight", "compacted", brokers=(KAFKA,))
def compacted(context):
    """A topic with gaps and tombstones: a read ends, also where its last offsets are gaps, and goes on from each."""
    karrow, topic = context.karrow, context.unique("compacted")
    kafka = karrow.kafka_client()
    kafka.create_topic(topic, 1, cleanup_policy="compact", segment_ms=100, min_cleanable_dirty_ratio=0.01,
                       max_compaction_lag_ms=100, delete_retention_ms=3_600_000)

    def records(turn):
        for key in range(20):
            value = None if (turn, key % 5) == (4, 0) else json.dumps({"n": turn * 20 + key}).encode()
            yield {"key": b"k%d" % key, "value": value}
    for turn in range(5):
        kafka.store(topic, records(turn))
    fillers = iter(range(10**6))

    def is_compacted():
        # A segment is closed when a record comes to it that is younger.
        kafka.store(topic, [{"key": b"filler", "value": json.dumps({"n": -next(fillers)}).encode()}])
        return all(offset >= 80 for _, offset, _, _ in committed(karrow, topic, 1))
    eventually(is_compacted, "Kafka has compacted the topic", 60, every=0.5)
    with Flight(karrow) as client:
        ticket = client.ticket({"topic": topic, "from": "earliest"})
        whole = client.read(ticket, 20)
        rows = check_is_committed(karrow, topic, 1, whole, "rows")
        check_equal([(key, value) for _, offset, key, value in rows if offset < 100],
                    [(record["key"], record["value"]) for record in records(4)], "the last of each key")
        # Ranges that lie in gaps wholly, or end in one.
        for begin, end in ((0, 80), (0, 1), (3, 79), (0, 85), (60, 90), (79, 81)):
            got = client.read({"topic": topic, "from": {"positions": {"0": begin}}, "to": {"positions": {"0": end}}}, 20)
            check_equal(rows_of(got.table()), [row for row in rows if begin <= row[1] < end], f"rows from {begin} to {end}")
            check(got.positions["0"] >= end, f"positions behind {begin} to {end}: {got.positions}")
        for begin in range(0, 100, 7):
            got = client.read({"topic": topic, "from": {"positions": {"0": begin}}, "limit": 3}, 20)
            check_equal(rows_of(got.table()), [row for row in rows if row[1] >= begin][:3], f"three rows from {begin}")
        split_up = client.read(client.tickets({"topic": topic, "split": "partition"})[0], 20)
        check_is_committed(karrow, topic, 1, split_up, "rows of the endpoint")


@case("flight", "transactions", brokers=(KAFKA,))
def transactions(context):
    """Committed and aborted transactions, one in the other, with control records at the very end: only what is committed
    comes, the read ends. What an open one has written comes when it is committed."""
    karrow, topic = context.karrow, context.topic("transactions", 2)
    kafka, numbers = karrow.kafka_client(), iter(range(10**6))

    def transactional(name):
        producer = kafka.producer(transactional_id=context.unique(name))
        producer.init_transactions(20)
        return producer

    def write(producer, partition, count):
        for _ in range(count):
            number = next(numbers)
            producer.produce(topic, value=json.dumps({"n": number}).encode(), key=b"k%d" % number, partition=partition)
        check_equal(producer.flush(30), 0, "records that were not stored")
    first, second = transactional("first"), transactional("second")

    def both(end_of_first, end_of_second):
        for producer in (first, second):
            producer.begin_transaction()
        for _ in range(2):
            for producer in (first, second):
                for partition in range(2):
                    write(producer, partition, 3)
        end_of_first(20)
        end_of_second(20)
    both(first.commit_transaction, second.abort_transaction)
    write(kafka.producer(), 0, 2)  # none at all
    both(first.abort_transaction, second.commit_transaction)
    both(first.abort_transaction, second.abort_transaction)
    with Flight(karrow) as client:
        whole = client.read(topic, 20)
        rows = check_is_committed(karrow, topic, 2, whole, "rows")
        check_equal(len(rows), 26, "committed rows")
        # Each of three rounds: twelve records in a partition, two control records.
        check_equal(whole.positions, {"0": 44, "1": 42}, "positions: behind the last control record")
        for begin in range(0, 44, 5):
            for end in range(begin, 45, 11):
                got = client.read({"topic": topic, "from": {"positions": {"0": begin, "1": begin}},
                                   "to": {"positions": {"0": min(end, 44), "1": min(end, 42)}}}, 20)
                check_equal(rows_of(got.table()), [row for row in rows if begin <= row[1] < end], f"rows from {begin} to {end}")
        for endpoint, ticket in enumerate(client.tickets({"topic": topic, "split": "partition"})):
            check_equal(rows_of(client.read(ticket, 20).table()), [row for row in rows if row[0] == endpoint], "rows of an endpoint")
        # An open transaction.
        first.begin_transaction()
        write(first, 0, 4)
        write(kafka.producer(), 0, 1)  # behind it, so not stable
        write(kafka.producer(), 1, 1)
        ticket = client.ticket(topic)
        check_is_committed(karrow, topic, 2, client.read(ticket, 20), "rows beside an open transaction")
        following = client.follow(topic).until(len(rows) + 1)
        check_is_committed(karrow, topic, 2, following, "rows of a follow beside an open transaction")
        first.commit_transaction(20)
        following.until(len(rows) + 6)
        check_equal(len(check_is_committed(karrow, topic, 2, following, "rows of a follow")), len(rows) + 6, "rows")
        second.begin_transaction()
        write(second, 0, 5)
        second.abort_transaction(20)
        write(kafka.producer(), 0, 1)
        check_is_committed(karrow, topic, 2, following.until(len(rows) + 7), "rows of a follow behind an aborted one")
        check_is_committed(karrow, topic, 2, client.read({"topic": topic, "from": "earliest"}, 20), "rows from the window")
        following.cancel()


# ---- much

HISTORY, SIZE = 56_000, 2_000
LETTERS = ("0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZäöü" * 64)


def text(number, size=SIZE):
    return LETTERS[number % 67:number % 67 + size]


def history(karrow, topic, count, size=SIZE):
    """Stores `count` records of about `size` bytes over two partitions, and twenty of almost a megabyte behind them;
    returns how many there are."""
    producer = karrow.kafka_client().producer(queue_buffering_max_kbytes=65_536, linger_ms=20, batch_size=900_000)
    wrong = []

    def delivered(error, _message):
        if error:
            wrong.append(str(error))
    for number in range(count + 20):
        pad = text(number, size) if number < count else "x" * 990_000
        while True:
            try:
                producer.produce(topic, partition=number % 2, on_delivery=delivered,
                                 value=json.dumps({"n": number, "text": pad}, ensure_ascii=False).encode())
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    check(producer.flush(120) == 0 and not wrong, f"not everything was stored: {wrong[:1] or 'timeout'}")
    return count + 20


def check_history(batch, size=SIZE, count=HISTORY):
    """That each row has the text of its number; returns (partition, offset, n) of each."""
    payload = batch.column("payload")
    numbers = payload.field("n").to_pylist()
    for number, got in zip(numbers, payload.field("text").to_pylist()):
        if got != (text(number, size) if number < count else "x" * 990_000):
            check(False, f"the text of number {number} has {len(got or '')} characters, from {got and got[:10]!r} on")
    return list(zip(batch.column("partition").to_pylist(), batch.column("offset").to_pylist(), numbers))


@case("flight", "history")
def read_history(context):
    """More than 100 MB, by ranges of 10,000 rows, each from the positions of the one before, and in one read by arrow-go
    with gRPC's default limits; batches of 16 MiB are split into messages of less than 4 MB."""
    client_program = install.go_program("flight-go")
    karrow = context.new_karrow(["--batch-bytes", "16MiB", "--batch-size", "100000"]).start()
    topic = context.unique("history")
    karrow.kafka_client().create_topic(topic, 2)
    count = history(karrow, topic, HISTORY)
    with Flight(karrow) as client:
        positions, seen, size = {}, [], 0
        while True:
            part = client.get({"topic": topic, "from": {"positions": positions}, "limit": 10_000}, 120)
            for batch in part:
                seen += check_history(batch)
                size += batch.nbytes
            if not len(part):
                break
            check_equal(len(part), min(10_000, count - len(seen) + len(part)), "rows of a range")
            positions = part.positions
    check_equal(sorted(seen), places(range(count), 2), "rows")
    check(size > 100 << 20, f"only {size} bytes")
    from suites.clients import run_program
    results, trouble = run_program([client_program, "history"], {
        "FLIGHT_PORT": str(karrow.flight_port), "TOPIC": topic, "COUNT": str(count)}, context.folder, 180)
    check(trouble is None and results == {"history": None}, f"arrow-go: {results}, {trouble}")
