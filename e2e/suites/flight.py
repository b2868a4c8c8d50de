"""Owns the quick start of Arrow Flight with pyarrow: what is listed, planned and read, with exact types and values; what
is refused, and how; and that a stream is the same over Flight and over Redis's protocol."""
import base64
import datetime
import json
from contextlib import contextmanager

from lib.cases import case
from lib.flight import INVALID, NOT_FOUND, OUT_OF_RANGE, Flight, check_refused
from lib.process import Failure, check, check_equal, eventually
from lib.servers import KAFKA
from lib.tables import Reader, check_rows, check_types, errors, libraries, payloads, whole
from suites.arrow import UTC, avro_writer, field, gateway, logical

START = datetime.datetime(2024, 2, 29, 23, 59, 58, 500000, tzinfo=UTC)
ENVELOPE = ["topic", "partition", "offset", "timestamp", "key", "headers", "payload", "error"]


def millis(when):
    return int(when.timestamp() * 1000)


def moment(number):
    """When the record with this number was written."""
    return START + datetime.timedelta(seconds=number)


def numbered(karrow, topic, numbers, partitions=1, **more):
    """Stores {"n": number}, each in the partition `number % partitions`, at its moment; the topic must be new, and the
    numbers without gaps, so that `places` knows where each is."""
    client = karrow.kafka_client()
    for partition in range(partitions):
        client.store(topic, [
            {"value": json.dumps({"n": number, **more}).encode(), "timestamp": millis(moment(number))}
            for number in numbers if number % partitions == partition], partition)


def places(numbers, partitions=1):
    return sorted((number % partitions, number // partitions, number) for number in numbers)


def found(table):
    """(partition, offset, n) of each row, in the order of partitions and offsets."""
    return sorted(zip(table.column("partition").to_pylist(), table.column("offset").to_pylist(),
                      [row and row["n"] for row in payloads(table)]))


def check_numbers(table, numbers, partitions=1, what="rows"):
    """That a table has exactly these numbers, each at its place."""
    got, want = found(table), places(numbers, partitions)
    if got != want:
        missing, surplus = [row for row in want if row not in set(got)], [row for row in got if row not in set(want)]
        check(False, f"{what}: {len(got)} rows, want {len(want)}; missing {missing[:5]}, surplus {surplus[:5]}, "
                     f"{len(got) - len(set(got))} twice")


ORDERS = [
    {"id": 2**53 + 1, "price": 19.99, "name": "Zoë 𝄞 \"x\"\n", "paid": True, "tags": ["a", ""],
     "deep": {"x": -1, "y": "z"}, "mixed": 1},
    {"id": -2**63, "price": 5, "name": "", "paid": False, "tags": [], "deep": None, "mixed": "one"},
    {"id": 2**63 - 1, "price": -0.0, "name": None, "paid": None, "tags": None, "deep": {"x": None, "y": "w"},
     "mixed": None}]
# Behind these come a tombstone and what is no JSON.
READ = [{**ORDERS[0], "mixed": "1"}, {**ORDERS[1], "price": 5.0}, ORDERS[2], None, None]


def order_types():
    pa = libraries()
    return {"id": pa.int64(), "price": pa.float64(), "name": pa.string(), "paid": pa.bool_(),
            "tags": pa.list_(pa.string()), "deep": pa.struct([("x", pa.int64()), ("y", pa.string())]),
            "mixed": pa.string()}


def store_orders(karrow, topic):
    """Five records: three orders, a tombstone, and one that is no JSON."""
    values = [json.dumps(order).encode() for order in ORDERS] + [None, b"no JSON"]
    karrow.kafka_client().store(topic, [
        {"value": value, "key": b"k\xff%d" % row, "timestamp": millis(moment(row)),
         "headers": [("h", b"\x00"), ("h", None), ("row", b"%d" % row)]} for row, value in enumerate(values)])


@case("flight", "quick-start")
def quick_start(context):
    """for_path, endpoints[0].ticket, read_all().to_pandas(): all types and values of the envelope and of JSON."""
    pa, topic = libraries(), context.topic("orders", 1)
    import pandas
    store_orders(context.karrow, topic)
    with Flight(context.karrow) as client:
        plain = client.flight.FlightClient(f"grpc://127.0.0.1:{context.karrow.flight_port}")  # as the README has it
        info = plain.get_flight_info(client.flight.FlightDescriptor.for_path(topic))
        check_equal([endpoint.locations for endpoint in info.endpoints], [[]], "locations of the endpoints")
        table = plain.do_get(info.endpoints[0].ticket).read_all()
        plain.close()
        messages = client.read(topic)
    check_equal(table.schema.names, ENVELOPE, "columns")
    check_types([one for one in table.schema if one.name in ENVELOPE[:5]], {
        "topic": pa.string(), "partition": pa.int32(), "offset": pa.int64(), "timestamp": pa.timestamp("ms", "UTC"),
        "key": pa.binary()}, "envelope")
    check_types(table.schema.field("headers").type.value_type, {"key": pa.string(), "value": pa.binary()}, "headers")
    check_types(table.schema.field("error").type, {
        "message": pa.string(), "key": pa.binary(), "payload": pa.binary()}, "error")
    check_types(table.schema.field("payload").type, order_types())
    check_equal([table.schema.field(name).nullable for name in ("topic", "partition", "offset", "payload")],
                [False, False, False, True], "nullable")
    check_rows(payloads(table), READ)
    check_rows(table.select(ENVELOPE[:6]).to_pylist(), [
        {"topic": topic, "partition": 0, "offset": row, "timestamp": moment(row), "key": b"k\xff%d" % row,
         "headers": [{"key": "h", "value": b"\x00"}, {"key": "h", "value": None}, {"key": "row", "value": b"%d" % row}]}
        for row in range(5)], "row")
    bad = errors(table)
    check_equal({row: payload for row, (_, payload) in bad.items()}, {4: b"no JSON"}, "bad rows")
    frame = table.to_pandas()
    check_equal(frame["offset"].tolist(), list(range(5)), "offsets of the frame")
    check_equal([row and row["name"] for row in frame["payload"]], [row and row["name"] for row in READ], "names of the frame")
    # pandas' own integers have no nulls.
    frame = table.to_pandas(types_mapper=pandas.ArrowDtype)
    check_equal(frame["payload"].struct.field("id").dropna().tolist(), [row["id"] for row in ORDERS], "ids of the frame")
    check_equal(messages.table().equals(table), True, "read again, it is the same table")
    check_equal(messages.positions, {"0": 5}, "positions")


@case("flight", "schema")
def schema(context):
    """GetSchema, GetFlightInfo and DoGet tell of the same columns, and each batch has them: struct, flat, projections;
    with and without rows."""
    karrow, topic, empty = context.karrow, context.topic("orders", 1), context.topic("empty", 2)
    store_orders(karrow, topic)
    with Flight(karrow) as client:
        for of in (topic, empty):
            for fields in ({}, {"layout": "flat"}, {"columns": ["offset", "payload.deep.x"]}, {"columns": ["topic"]},
                           {"to": {"positions": {"0": 0}}}, {"split": "partition"}):
                request = {"topic": of, **fields}
                info, promised = client.info(request), client.schema(request)
                check(promised.equals(info.schema, check_metadata=True), f"{request}: schemas of GetSchema and FlightInfo")
                for endpoint in info.endpoints:
                    streamed = client.read(endpoint.ticket)
                    check(promised.equals(streamed.schema, check_metadata=False), f"{request}: the schema that is streamed")
                    check(streamed.said, f"{request}: no message, so no positions")
        check_equal(client.schema(empty).names, ENVELOPE, "columns of an empty topic")
        check_equal(client.schema(topic), client.schema({"topic": topic}), "schemas of a path and a command")
        check_equal(len(client.read(empty)), 0, "rows of an empty topic")


@case("flight", "list")
def list_flights(context):
    """Streams with their schema, rows and bytes, by a glob; sessions of Redis clients; nothing that is only a topic."""
    karrow = context.new_karrow()
    names = [context.unique(word) for word in ("shop.orders", "shop.clicks")]
    other, group = context.unique("other"), context.unique("group")
    if context.kind == KAFKA:
        for name in names:
            context.karrow.kafka_client().create_topic(name, 1)
    karrow.arguments += ["--topics", ",".join(names), "--start", "earliest"]
    karrow.start()
    store_orders(karrow, names[0])
    karrow.kafka_client().create_topic(other, 1)
    with Flight(karrow) as client, karrow.connect(f"{group}:one") as redis:
        def listed():
            infos = client.flights()
            return infos if set(infos) == {(name,) for name in names} and infos[names[0],].total_records == 5 else None
        infos = eventually(listed, "both streams are listed, the first with five rows")
        check_types(infos[names[0],].schema.field("payload").type, order_types())
        check(infos[names[0],].total_bytes > 100, f"{infos[names[0],].total_bytes} bytes")
        check_equal((infos[names[1],].total_records, infos[names[1],].total_bytes), (0, 0), "rows and bytes of nothing")
        check_rows(payloads(client.read(infos[names[0],].endpoints[0].ticket).table()), READ)
        check_equal(set(client.flights("*orders*")), {(names[0],)}, "flights like *orders*")
        check_equal(set(client.flights(names[1])), {(names[1],)}, "flights of one name")
        check_equal(client.flights("nothing*"), {}, "flights like nothing*")
        redis.call("BLPOP", f"topics:{names[0]}", "20")
        session = ("sessions", group, "one")
        check_equal(set(client.flights()) - {(name,) for name in names}, {session}, "sessions")
        check_refused(lambda: client.info(list(session)), INVALID, "session")
        # A topic becomes a stream when it is followed, and no earlier.
        client.read(other)
        check((other,) not in client.flights(), "a bounded read has made a stream")
        following = client.follow(other)
        check((other,) in client.flights(), "a followed topic is a stream")
        following.cancel()


@contextmanager
def all_of_it():
    """`check_refused` that tells of all that is wrong at the end, not only of the first."""
    wrong = []

    def gather(*arguments, **named):
        try:
            check_refused(*arguments, **named)
        except Failure as failure:
            wrong.append(str(failure))
    yield gather
    check(not wrong, f"{len(wrong)} wrong: " + " | ".join(wrong))


@case("flight", "refusals")
def refusals(context):
    """An unknown topic, and each field that a request has, wrong: the status says whose fault it is, the text what."""
    karrow, topic, unknown = context.karrow, context.topic("numbers", 2), context.unique("unknown")
    numbered(karrow, topic, range(4), 2)
    with Flight(karrow) as client, all_of_it() as check_refused:
        for call in (client.info, client.schema):
            for what in (unknown, {"topic": unknown}, {"topic": unknown, "to": "follow"},
                         {"topic": unknown, "from": {"positions": {"0": 1}}}):
                check_refused(lambda: call(what), NOT_FOUND, unknown, what=f"{call.__name__} of {what}")
            for what, words in (
                    ("a b/c", ["a b/c"]), ([], ["path"]), ([topic, "more"], ["path"]), (b"", ["command"]),
                    (b"{", ["command"]), (b"[]", ["command"]), (b"\xff\xfe", ["command"]), ({}, ["topic"]),
                    ({"topic": 7}, ["topic"]), ({"topic": ""}, ["topic"]), ({"topic": topic, "form": 1}, ["form"]),
                    ({"topic": topic, "limit": 1, "split": "partition"}, ["limit", "split"]),
                    ({"topic": topic, "limit": -1}, ["limit", "-1"]), ({"topic": topic, "limit": 1.5}, ["limit", "1.5"]),
                    ({"topic": topic, "limit": "1"}, ["limit"]), ({"topic": topic, "split": "rows"}, ["split", "rows"]),
                    ({"topic": topic, "layout": "wide"}, ["layout", "wide"]), ({"topic": topic, "columns": 1}, ["columns"]),
                    ({"topic": topic, "columns": [1]}, ["columns"]), ({"topic": topic, "from": "begin"}, ["from", "begin"]),
                    ({"topic": topic, "from": "follow"}, ["from"]), ({"topic": topic, "to": "window"}, ["to"]),
                    ({"topic": topic, "from": {"timestamp": "x"}}, ["from"]), ({"topic": topic, "to": {"rows": 1}}, ["to"]),
                    ({"topic": topic, "from": {"positions": {"x": 1}}}, ["from"]),
                    ({"topic": topic, "from": {"positions": {"0": -1}}}, ["from"]),
                    ({"topic": topic, "from": {"positions": {"-1": 0}}}, ["from"]),
                    ({"topic": topic, "from": {"positions": {"2": 0}}}, ["positions", "2"]),
                    ({"topic": topic, "from": {"positions": {"2000000": 0}}}, ["from"])):
                check_refused(lambda: call(what), INVALID, *words, what=f"{call.__name__} of {what}")
        check_refused(lambda: client.info({"topic": topic, "from": "window"}), NOT_FOUND, topic, what="window of no stream")
        check_numbers(client.read(topic).table(), range(4), 2)


@case("flight", "forged-tickets")
def forged_tickets(context):
    """What is no ticket of karrow's is refused, or reads what it says; nothing else suffers from it."""
    karrow, topic = context.karrow, context.topic("numbers", 2)
    numbered(karrow, topic, range(40), 2)
    with Flight(karrow) as client, all_of_it() as check_refused:
        def get(ticket):
            return client.read(client.flight.Ticket(ticket), 5)
        good = client.ticket(topic).ticket
        fields = json.loads(good)
        for text in (b"", b"hello", b"\xff\x00", b"{}", b"[1]", good[:-10], good[:len(good) // 2], good + b"}"):
            check_refused(lambda: get(text), INVALID, what=f"ticket {text[:20]}")
        schema = base64.b64decode(fields["schema"])
        for wrong in ({"schema": "AAAA"}, {"schema": "-"}, {"schema": 1}, {"schema": base64.b64encode(schema[:-9]).decode()},
                      {"schema": base64.b64encode(b"\xff" * len(schema)).decode()}, {"topic": 1}, {"from": 7},
                      {"from": {"0": -1}}, {"from": {"x": 1}}, {"to": []}, {"partition": -1}, {"partition": "0"},
                      {"partition": 2**40}, {"limit": -1}, {"layout": 1}, {"from": {"1000000": 1}}, {"partition": 2}):
            check_refused(lambda: get(json.dumps({**fields, **wrong}).encode()), INVALID, what=f"ticket with {wrong}")
        other = context.unique("unknown")
        check_refused(lambda: get(json.dumps({**fields, "topic": other}).encode()), NOT_FOUND, other, what="another topic")
        backwards = get(json.dumps({**fields, "from": {"0": 20, "1": 20}, "to": {"0": 3, "1": 0}}).encode())
        check_equal(len(backwards), 0, "rows of a range whose end lies before its beginning")
        part = get(json.dumps({**fields, "from": {"0": 3}, "to": {"0": 5, "1": 1}}).encode())
        check_equal(found(part.table()), [(0, 3, 6), (0, 4, 8), (1, 0, 1)], "rows of a ticket that was changed")
        for _ in range(100):  # bytes of the schema
            bent = bytearray(schema)
            bent[context.random.randrange(len(bent))] ^= 1 << context.random.randrange(8)
            ticket = json.dumps({**fields, "schema": base64.b64encode(bent).decode()}).encode()
            try:
                client.client.do_get(client.flight.Ticket(ticket), client.within(20)).read_all()
            except client.flight.FlightTimedOutError:
                raise
            except Exception as refused:  # refused, or a schema that pyarrow does not take: karrow must only go on
                check("panic" not in str(refused), f"a bent schema: {refused}")
        check_numbers(get(good).table(), range(40), 2)


@case("flight", "tickets-are-repeatable")
def tickets_are_repeatable(context):
    """A ticket reads the same again, also by another karrow."""
    karrow, topic = context.karrow, context.topic("numbers", 2)
    numbered(karrow, topic, range(40), 2)
    elsewhere = context.new_karrow(kind=KAFKA, bootstrap=karrow.bootstrap).start()
    with Flight(karrow) as client, Flight(elsewhere) as other:
        ticket = client.ticket(topic)
        numbered(karrow, topic, range(40, 50), 2)
        for reader in (client, client, other):
            check_numbers(reader.read(ticket).table(), range(40), 2)


@case("flight", "deleted-records", brokers=(KAFKA,))  # the embedded broker cannot delete records
def deleted_records(context):
    """Records that were deleted are OUT_OF_RANGE with the first offset that there is, not a gap."""
    karrow, topic = context.karrow, context.topic("cut", 2)
    numbered(karrow, topic, range(40), 2)
    with Flight(karrow) as client:
        ticket = client.ticket({"topic": topic, "from": "earliest"})
        karrow.kafka_client().delete_records(topic, 13, 1)
        check_refused(lambda: client.read(ticket), OUT_OF_RANGE, topic, "13")
        check_refused(lambda: client.read({"topic": topic, "from": {"positions": {"1": 12}}}), OUT_OF_RANGE, topic, "13")
        left = [number for number in range(40) if number % 2 == 0 or number // 2 >= 13]
        check_numbers(client.read({"topic": topic, "from": "earliest"}).table(), left, 2)
        check_numbers(client.read({"topic": topic, "from": {"positions": {"1": 13}}}).table(), left, 2)


@case("flight", "deleted-topic")
def deleted_topic(context):
    """The ticket of a topic that was deleted is NOT_FOUND, with its name."""
    karrow, topic = context.karrow, context.topic("gone", 1)
    numbered(karrow, topic, range(3))
    with Flight(karrow) as client:
        ticket = client.ticket(topic)
        check_numbers(client.read(ticket).table(), range(3))
        karrow.kafka_client().delete_topic(topic)
        check_refused(lambda: client.read(ticket, 15), NOT_FOUND, topic)


def act(client, name, body=b""):
    return [result.body.to_pybytes() for result in client.client.do_action((name, body), client.within(20))]


@case("flight", "actions")
def actions(context):
    """health, list-topics, drop-stream, which ends follows; one that there is not."""
    karrow, topic = context.karrow, context.topic("numbers", 1)
    numbered(karrow, topic, range(3))
    with Flight(karrow) as client:
        check_equal(act(client, "health"), [b"ok"], "health")
        check(topic.encode() in act(client, "list-topics"), "list-topics")
        check_refused(lambda: act(client, "dance"), NOT_FOUND, "dance")
        check_refused(lambda: act(client, "drop-stream", topic.encode()), NOT_FOUND, topic)
        following = client.follow(topic).until(3)
        check((topic,) in client.flights(), "a followed topic is a stream")
        act(client, "drop-stream", topic.encode())
        following.rest()
        check((topic,) not in client.flights(), "drop-stream ends it")
        check_numbers(following.table(), range(3))


@case("flight", "actions-that-change")
def actions_that_change(context):
    """ListActions names all that there is; create-topic makes one."""
    karrow, new = context.karrow, context.unique("new")
    with Flight(karrow) as client:
        names = {action.type for action in client.client.list_actions(client.within(20))}
        wanted = {"health", "list-topics", "create-topic", "ack", "drop-stream"}
        check(wanted <= names, f"actions that are missing: {wanted - names}")
        act(client, "create-topic", new.encode())
        eventually(lambda: karrow.kafka_client().partitions(new) >= 1, "create-topic makes a topic")


SALE = {"type": "record", "name": "Sale", "fields": [
    field("id", "long"), field("price", logical("bytes", "decimal", precision=12, scale=2)),
    field("at", logical("long", "timestamp-micros")), field("tags", {"type": "array", "items": "string"}),
    field("note", ["null", "string"])]}


@case("flight", "same-as-redis")
def same_as_redis(context):
    """JSON of many kinds with tombstones and bad rows, Avro, text, bytes: the table of Flight is the table of
    `arrow:`, schema by schema and value by value, in both layouts, with some columns."""
    import decimal
    registry = context.run.registry()
    karrow, client = gateway(context, registry.url), None
    sale = context.unique("sales")
    write = avro_writer(registry.client(), SALE, sale)
    sales = [write({"id": 2**53 + row, "price": decimal.Decimal(row * 101) / 100, "tags": ["x"] * (row % 3),
                    "at": START + datetime.timedelta(microseconds=row), "note": None if row % 4 else f"ä{row}"})
             for row in range(50)]
    topics = {
        sale: [*sales[:20], None, sales[20][:-3], *sales[21:]],
        context.unique("orders"): [*(json.dumps(order).encode() for order in ORDERS * 20), None, b"[]", b"{"],
        context.unique("text"): ["Zoë".encode(), b"", b"two\nlines", None],
        context.unique("bytes"): [b"\xff\x00", None, b"", b"text"],
        context.unique("nothing"): [None, None]}
    kafka = karrow.kafka_client()
    with Flight(karrow) as client:
        for topic, values in topics.items():
            kafka.create_topic(topic, 1)
            kafka.store(topic, [{"value": value, "key": b"%d" % row, "headers": [("h", b"%d" % row)]}
                                for row, value in enumerate(values)])
            for layout in ("struct", "flat"):
                names = {"struct": ["offset", "payload"], "flat": ["_offset", "_error"]}[layout]
                for columns in (None, names):
                    options = {"karrow_layout": layout, **({"karrow_columns": columns} if columns else {})}
                    with Reader(karrow, context.unique("group"), topic, **whole(len(values)), **options) as reader:
                        want = reader.table()
                    got = client.read({"topic": topic, "layout": layout, **({"columns": columns} if columns else {})})
                    what = f"{topic}, {layout}, {columns}"
                    check(got.schema.equals(want.schema), f"{what}: the schema is {got.schema}, of `arrow:` {want.schema}")
                    check_rows(got.table().to_pylist(), want.to_pylist(), what)


@case("flight", "same-window")
def same_window(context):
    """One stream: what `arrow:` pops, what a read of its window gets and what HTTP and ListFlights list are the same rows,
    columns and positions."""
    karrow, topic, count = context.karrow, context.topic("window", 2), 500
    numbered(karrow, topic, range(2), 2)
    with Flight(karrow) as client:
        # The window begins with the first follow: the first row of each partition is from before.
        following = client.follow(topic).until(2)
        numbered(karrow, topic, range(2, count), 2)
        following.until(count)
        window = client.read({"topic": topic, "from": "window"})
        with Reader(karrow, context.unique("group"), topic) as reader:
            tables = reader.all(count)
        by_place = lambda row: (row["partition"], row["offset"])  # noqa: E731
        rows = [sorted((row for table in some for row in table.to_pylist()), key=by_place)
                for some in (tables, [window.table()], [following.table()])]
        check_equal(len(rows[0]), count, "rows of `arrow:`")
        check_rows(rows[1], [row for row in rows[0] if row["offset"] > 0], "the window beside `arrow:`")
        check_rows(rows[2], rows[0], "the follow beside `arrow:`")
        listed = json.loads(karrow.http(f"/v1/streams/{topic}"))
        info = client.flights(topic)[topic,]
        check_equal((listed["rows"], info.total_records), (count - 2, count - 2), "rows that are listed")
        check_equal(listed["bytes"], info.total_bytes, "bytes that are listed")
        check_equal((listed["starts"], listed["ends"]), ({"0": 1, "1": 1}, window.positions), "positions that are listed")
        columns = [(column["name"], column["nullable"]) for column in listed["columns"]]
        for schema, what in ((window.schema, "the window"), (tables[0].schema, "`arrow:`"), (info.schema, "ListFlights")):
            check_equal([(field.name, field.nullable) for field in schema], columns, f"columns of {what} beside HTTP")
        following.cancel()
