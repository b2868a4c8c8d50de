"""Owns what applications do with Arrow batches: polars and DuckDB read them, acks move the group on, options choose
columns, layout and compression, and tables go back into topics."""
import datetime
import decimal
import json

from lib.cases import case
from lib.process import check, check_equal
from lib.tables import (
    Reader, as_stream, as_table, check_no_errors, check_rows, check_types, client, errors, libraries, payloads, whole)
from suites.arrow import UTC, avro_writer, field, fill, gateway, logical, read

SALE = {"type": "record", "name": "Sale", "fields": [
    field("id", "long"), field("price", logical("bytes", "decimal", precision=12, scale=2)),
    field("at", logical("long", "timestamp-micros")), field("shop", "string"),
    field("tags", {"type": "array", "items": "string"}), field("note", ["null", "string"])]}


def sales(count):
    start = datetime.datetime(2024, 2, 29, 23, 59, 59, 999000, tzinfo=UTC)
    return [{"id": 2**53 + number, "price": decimal.Decimal(number * 101 + 1) / 100,
             "at": start + datetime.timedelta(microseconds=number * 333), "shop": "ab"[number % 2],
             "tags": ["x"] * (number % 3), "note": None if number % 4 else f"ä{number}"} for number in range(count)]


def sold(context, count, **options):
    """A batch of sales as Avro; returns (what was written, the IPC stream)."""
    registry, topic = context.run.registry(), context.unique("sales")
    karrow, rows = gateway(context, registry.url), sales(count)
    write = avro_writer(registry.client(), SALE, topic)
    fill(karrow, topic, [write(row) for row in rows])
    with Reader(karrow, context.unique("group"), topic, **whole(count), **options) as reader:
        return rows, reader.stream()


@case("arrow", "polars")
def read_by_polars(context):
    """polars.read_ipc_stream: the types are its own, every value as it was written; compressed streams too."""
    libraries()
    import polars
    for compression in ("none", "lz4", "zstd"):
        rows, stream = sold(context, 200, karrow_ipc_compression=compression)
        frame = polars.read_ipc_stream(stream)
        check_equal(frame["payload"].dtype, polars.Struct({
            "id": polars.Int64, "price": polars.Decimal(12, 2), "at": polars.Datetime("us", "UTC"),
            "shop": polars.String, "tags": polars.List(polars.String), "note": polars.String}), "type of payload")
        check_equal((frame["timestamp"].dtype, frame["key"].dtype),
                    (polars.Datetime("ms", "UTC"), polars.Binary), "types of timestamp and key")
        check_rows([{**row, "at": row["at"].astimezone(UTC)} for row in frame["payload"].to_list()], rows)


@case("arrow", "duckdb")
def read_by_duckdb(context):
    """DuckDB queries a table of pyarrow: 64-bit integers, decimals and instants are exact."""
    libraries()
    import duckdb
    rows, stream = sold(context, 200)
    batch = as_table(stream)
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    connection.register("batch", batch)
    types = connection.execute("SELECT typeof(payload.id), typeof(payload.price), typeof(payload.at),"
                               " typeof(payload.tags) FROM batch").fetchone()
    check_equal(types, ("BIGINT", "DECIMAL(12,2)", "TIMESTAMP WITH TIME ZONE", "VARCHAR[]"), "types")
    got = connection.execute("SELECT payload.shop, sum(payload.id), sum(payload.price), max(payload.at),"
                             " count(payload.note) FROM batch GROUP BY 1 ORDER BY 1").fetchall()
    wanted = []
    for shop in "ab":
        of_shop = [row for row in rows if row["shop"] == shop]
        wanted.append((shop, sum(row["id"] for row in of_shop), sum(row["price"] for row in of_shop),
                       max(row["at"] for row in of_shop), sum(row["note"] is not None for row in of_shop)))
    groups = [(shop, int(ids), price, at.astimezone(UTC), notes) for shop, ids, price, at, notes in got]
    check_rows(groups, wanted, "groups")


def numbers(context, karrow, count, partitions=1):
    topic = context.unique("numbers")
    return fill(karrow, topic, [b'{"n": %d}' % number for number in range(count)], partitions)


def ns(table):
    return [row["n"] for row in payloads(table)]


@case("arrow", "acks")
def acks(context):
    """`karrow.acks` of a batch moves the group on: the next session gets only what follows. `last` does as well."""
    karrow = context.karrow
    topic, group = numbers(context, karrow, 30), context.unique("group")
    options = whole(10)
    with Reader(karrow, group, topic, **options) as reader:
        first, second = reader.table(), reader.table()
        check_equal((ns(first), ns(second)), (list(range(10)), list(range(10, 20))), "first session")
        check_equal(second.schema.metadata[b"karrow.acks"], f"{topic}:0:19".encode(), "karrow.acks")
        check_equal(reader.ack(first), 1, "ack of the first batch")
        check_equal(reader.ack(first), 0, "the same ack again")
    with Reader(karrow, group, topic, **options) as reader:
        check_equal(ns(reader.table()), list(range(10, 20)), "second session: unacked come again")
        check_equal(reader.redis.rpush("acks", "last"), 1, "ack of `last`")
        # A part of a batch may be acked, too.
        check_equal(ns(reader.table()), list(range(20, 30)), "the rest")
        check_equal(reader.redis.rpush("acks", f"{topic}:0:24"), 1, "ack of a part")
    with Reader(karrow, group, topic, karrow_batch_rows=5) as reader:
        check_equal(sum((ns(table) for table in reader.all(5)), []), list(range(25, 30)), "third session")
        reader.nothing()
        check_equal(reader.redis.rpush("acks", "last"), 0, "`last` after a null")


@case("arrow", "everything-that-is-ready")
def everything_ready(context):
    """Without options: several partitions, all rows exactly once and in order; LPOP ends with null."""
    karrow, count = context.karrow, 20_000
    topic = context.topic("ready", 3)
    rows = [json.dumps({"n": number}).encode() for number in range(count)]
    for partition in range(3):
        karrow.kafka_client().store(topic, rows[partition::3], partition)
    with Reader(karrow, context.unique("group"), topic) as reader:
        tables = reader.all(count)
        seen = {}
        for table in tables:
            check(len(table) <= 8192, f"a batch of {len(table)} rows")
            of_batch = [(row["partition"], row["offset"], row["payload"]["n"]) for row in table.to_pylist()]
            for partition, offset, number in of_batch:
                check_equal((offset, number), (seen.get(partition, 0), seen.get(partition, 0) * 3 + partition),
                            f"the next row of partition {partition}")
                seen[partition] = offset + 1
        check(reader.redis.lpop(reader.key) is None, "LPOP at the end is null")
        karrow.kafka_client().store(topic, [b'{"n": -1}'])
        while True:
            stream = reader.redis.lpop(reader.key)
            if stream is not None:
                break
        check_equal(ns(as_table(stream)), [-1], "LPOP gives the stream alone")


@case("arrow", "topics-take-turns")
def turns(context):
    """A batch is of one topic; the next one is of the other while both have records."""
    karrow, names = context.karrow, []
    for word in ("left", "right"):
        names.append(context.topic(word, 1))
        karrow.kafka_client().store(names[-1], [b'{"%s": %d}' % (word.encode(), number) for number in range(50)])
    with Reader(karrow, context.unique("group"), names, karrow_batch_rows=5) as reader:
        tables = reader.all(100)
    order, seen = [], {name: [] for name in names}
    for table in tables:
        topics = set(table.column("topic").to_pylist())
        check_equal(len(topics), 1, f"topics of a batch: {topics}")
        name = topics.pop()
        order.append(name)
        seen[name] += [row["left" if name == names[0] else "right"] for row in payloads(table)]
    check_equal([seen[name] for name in names], [list(range(50))] * 2, "rows of each topic")
    # Which one was fetched first is chance; once both are there they alternate.
    first_of_other = next(at for at, name in enumerate(order) if name != order[0])
    both = order[first_of_other - 1:]
    until = min(len(both) - 1 - both[::-1].index(name) for name in names)
    check(all(a != b for a, b in zip(both[:until], both[1:until])), f"turns: {order}")


@case("arrow", "columns")
def columns(context):
    """`karrow.columns`: only these, in the envelope and inside of the payload; what is left out is not even decoded."""
    topic, pa = context.unique("columns"), libraries()
    karrow = gateway(context)
    fill(karrow, topic, [b'{"id": 1, "price": 1.5, "deep": {"a": 1, "b": 2}}', b"no JSON", b'{"id": 2, "price": 2}'])
    wanted = ["offset", "payload.price", "payload.deep.b"]
    table = read(context, karrow, topic, 3, karrow_format="json", karrow_columns=wanted)
    check_equal(table.schema.names, ["offset", "payload"], "columns")
    check_types(table.schema.field("payload").type, {"price": pa.float64(), "deep": pa.struct([("b", pa.int64())])})
    rows = [{"price": 1.5, "deep": {"b": 2}}, None, {"price": 2.0, "deep": None}]
    check_rows(payloads(table), rows)
    table = read(context, karrow, topic, 3, karrow_format="json", karrow_columns="partition,offset")
    check_rows(table.to_pylist(), [{"partition": 0, "offset": offset} for offset in range(3)], "row")
    check_equal(table.schema.metadata[b"karrow.acks"], f"{topic}:0:2".encode(), "karrow.acks")
    table = read(context, karrow, topic, 3, karrow_format="json", karrow_columns=["error", "payload.id"])
    check_equal(list(errors(table)), [1], "bad rows")
    check_rows(payloads(table), [{"id": 1}, None, {"id": 2}])


@case("arrow", "flat")
def flat(context):
    """`karrow.layout=flat`: the payload's fields at the top, the envelope's names with `_`; columns chosen, too."""
    topic, pa = context.unique("flat"), libraries()
    karrow = gateway(context)
    fill(karrow, topic, [b'{"id": 1, "offset": 7, "_topic": "own", "deep": {"a": 1}}', None])
    table = read(context, karrow, topic, 2, karrow_layout="flat")
    envelope = ["_topic", "_partition", "_offset", "_timestamp", "_key", "_headers", "_error"]
    check_equal(sorted(table.schema.names), sorted([*envelope, "id", "offset", "_topic_", "deep"]), "columns")
    check_rows(table.select(["_topic", "_offset", "id", "offset", "_topic_", "deep"]).to_pylist(), [
        {"_topic": topic, "_offset": 0, "id": 1, "offset": 7, "_topic_": "own", "deep": {"a": 1}},
        {"_topic": topic, "_offset": 1, "id": None, "offset": None, "_topic_": None, "deep": None}], "row")
    table = read(context, karrow, topic, 2, karrow_layout="flat", karrow_columns=["_offset", "deep.a", "id"])
    deep = pa.struct([("a", pa.int64())])
    check_types(table.schema, {"_offset": pa.int64(), "id": pa.int64(), "deep": deep}, "columns")
    check_rows(table.to_pylist(), [
        {"_offset": 0, "id": 1, "deep": {"a": 1}}, {"_offset": 1, "id": None, "deep": None}], "row")


@case("arrow", "compression")
def compression(context):
    """`karrow.ipc.compression`: lz4 and zstd, smaller and the same."""
    karrow = context.karrow
    topic = context.topic("compression", 1)
    karrow.kafka_client().store(topic, [
        json.dumps({"n": number, "text": "again " * 20, "half": number / 2}).encode() for number in range(2000)])
    streams = {}
    for name in ("none", "lz4", "zstd"):
        with Reader(karrow, context.unique("group"), topic, **whole(2000), karrow_ipc_compression=name) as reader:
            streams[name] = reader.stream()
    plain = as_table(streams["none"])
    check_equal(len(plain), 2000, "rows")
    for name in ("lz4", "zstd"):
        sizes = len(streams[name]), len(streams["none"])
        check(sizes[0] < sizes[1] / 2, f"{name}: {sizes[0]} of {sizes[1]} bytes")
        check(as_table(streams[name]).equals(plain), f"the table of {name} is another one")


@case("arrow", "produce-pyarrow")
def produce_pyarrow(context):
    """`RPUSH arrow:`: a table of pyarrow becomes messages, and they are read back equal."""
    karrow, pa = context.karrow, libraries()
    topic = context.topic("produced", 2)
    start = datetime.datetime(2024, 2, 29, 12, 0, 0, 123000, tzinfo=UTC)
    rows = [{"id": 2**53 + 1, "half": 0.1, "name": "Zoë 𝄞 \"\n", "ok": True, "list": [1, 2],
             "deep": {"a": 4, "b": "x"}},
            {"id": -2**63, "half": -1e300, "name": "", "ok": False, "list": [], "deep": None}, None,
            {"id": None, "half": None, "name": None, "ok": None, "list": None, "deep": {"a": 5, "b": None}}]
    payload = pa.array(rows, pa.struct([
        ("id", pa.int64()), ("half", pa.float64()), ("name", pa.string()), ("ok", pa.bool_()),
        ("list", pa.list_(pa.int64())), ("deep", pa.struct([("a", pa.int64()), ("b", pa.string())]))]))
    table = pa.table({
        "key": pa.array([b"a\xff", b"b", b"gone", None], pa.binary()), "payload": payload,
        "partition": pa.array([1, 1, 1, 1], pa.int32()),
        "timestamp": pa.array([start + datetime.timedelta(seconds=n) for n in range(4)], pa.timestamp("ms", "UTC")),
        "headers": pa.array([[{"key": "h", "value": b"\x00"}, {"key": "h", "value": b"2"}], [], None, []],
                            pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary())])))})
    redis = client(karrow)
    check_equal(redis.rpush(f"arrow:{topic}", as_stream(table)), 4, "RPUSH")
    with Reader(karrow, context.unique("group"), topic, **whole(4)) as reader:
        back = reader.table()
    check_no_errors(back)
    check_types(back.schema.field("payload").type, {one.name: one.type for one in payload.type})
    check_rows(payloads(back), rows)
    check_rows(back.select(["partition", "offset", "key", "headers", "timestamp"]).to_pylist(), [
        {"partition": 1, "offset": n, "key": key, "headers": headers,
         "timestamp": start + datetime.timedelta(seconds=n)} for n, (key, headers) in enumerate([
            (b"a\xff", [{"key": "h", "value": b"\x00"}, {"key": "h", "value": b"2"}]), (b"b", []), (b"gone", []),
            (None, [])])], "row")
    # A batch that karrow handed out is a table that it takes: a copy of the topic.
    copy = context.topic("copy", 2)
    check_equal(redis.rpush(f"arrow:{copy}", as_stream(back)), 4, "RPUSH of a batch")
    with Reader(karrow, context.unique("group"), copy, **whole(4)) as reader:
        again = reader.table()
    same = ["partition", "offset", "timestamp", "key", "headers", "payload", "error"]
    check_rows(again.select(same).to_pylist(), back.select(same).to_pylist(), "row of the copy")


@case("arrow", "produce-pandas")
def produce_pandas(context):
    """A pandas frame: without a payload its columns form a JSON object; bytes and text as a payload stay as they are."""
    karrow, pa = context.karrow, libraries()
    import pandas
    redis, topic, raw = client(karrow), context.topic("frames", 1), context.topic("raw", 1)
    frame = pandas.DataFrame({
        "key": ["k1", "k2", None], "id": [1, 2**53 + 1, -5], "name": ["Zoë", None, ""], "half": [0.5, 1e-7, -0.25],
        "kind": pandas.Categorical(["x", "y", "x"])})
    table = pa.Table.from_pandas(frame, preserve_index=False)
    check_equal(redis.rpush(f"arrow:{topic}", as_stream(table, compression="zstd")), 3, "RPUSH")
    stored = karrow.kafka_client().values(topic, 3)
    check_equal([message.key() for message in stored], [b"k1", b"k2", None], "keys")
    back = read(context, karrow, topic, 3)
    check_no_errors(back)
    got = back.column("payload").combine_chunks()
    check_equal([got.field(name).to_pylist() for name in ("id", "name", "half", "kind")], [
        frame["id"].to_list(), ["Zoë", None, ""], frame["half"].to_list(), ["x", "y", "x"]], "columns")
    for array in (pa.array([b"\x00\xff", b"", None], pa.binary()), pa.array(["ä", "", None], pa.large_string())):
        check_equal(redis.rpush(f"arrow:{raw}", as_stream(pa.table({"payload": array}))), 3, "RPUSH of bytes")
    check_equal([message.value() for message in karrow.kafka_client().values(raw, 6)],
                [b"\x00\xff", b"", None, "ä".encode(), b"", None], "values")


@case("arrow", "produce-times-and-decimals")
def produce_times(context):
    """Instants with a zone, as karrow's own columns have them and as pandas makes them, and decimals become JSON that
    says the same."""
    karrow, pa = context.karrow, libraries()
    import pandas
    redis, topic = client(karrow), context.topic("times", 1)
    instant = datetime.datetime(2024, 2, 29, 12, 0, 0, 123456, tzinfo=UTC)
    table = pa.table({
        "utc": pa.array([instant], pa.timestamp("us", "UTC")), "nano": pa.array([instant], pa.timestamp("ns", "UTC")),
        "berlin": pa.array([instant], pa.timestamp("us", "Europe/Berlin")),
        "offset": pa.array([instant], pa.timestamp("ms", "+02:00")),
        "pandas": pa.array(pandas.Series([pandas.Timestamp(instant)])),
        "local": pa.array([instant.replace(tzinfo=None)], pa.timestamp("us")),
        "day": pa.array([datetime.date(2024, 2, 29)]),
        "price": pa.array([decimal.Decimal("-12.30")], pa.decimal128(9, 2))})
    check_equal(redis.rpush(f"arrow:{topic}", as_stream(table)), 1, "RPUSH")
    text = karrow.kafka_client().values(topic, 1)[0].value()
    stored = json.loads(text, parse_float=decimal.Decimal)
    millis = instant.replace(microsecond=123000)
    zoned = {"utc": instant, "nano": instant, "berlin": instant, "offset": millis, "pandas": instant}
    for name, wanted in zoned.items():
        got = datetime.datetime.fromisoformat(stored[name].replace("Z", "+00:00"))
        check(got.tzinfo is not None and got == wanted, f"{name}: {stored[name]!r}, want the instant {wanted}")
    check_equal((datetime.datetime.fromisoformat(stored["local"]), stored["day"], decimal.Decimal(stored["price"])),
                (instant.replace(tzinfo=None), "2024-02-29", decimal.Decimal("-12.30")), "local, day, price")


@case("arrow", "produce-a-batch-of-avro")
def produce_avro_batch(context):
    """A batch that karrow handed out, with its typed columns, is produced as it is."""
    rows, stream = sold(context, 3)
    karrow, topic = context.karrow, context.topic("mirror", 1)
    check_equal(client(karrow).rpush(f"arrow:{topic}", stream), 3, "RPUSH")
    stored = [json.loads(message.value()) for message in karrow.kafka_client().values(topic, 3)]
    check_equal([(row["id"], row["shop"], row["tags"]) for row in stored],
                [(row["id"], row["shop"], row["tags"]) for row in rows], "rows")


@case("arrow", "produce-all-or-nothing")
def produce_all_or_nothing(context):
    """A stream that cannot be produced whole is refused whole, with the reason, and the connection goes on."""
    karrow, pa = context.karrow, libraries()
    from redis.exceptions import ResponseError
    redis, topic = client(karrow), context.topic("refused", 1)
    good = as_stream(pa.table({"payload": [b"1", b"2"]}))
    bad = {
        "cut": good[:-30], "no stream": b"hello", "payload": as_stream(pa.table({"payload": [1, 2]})),
        "partition": as_stream(pa.table({"payload": ["x", "y"], "partition": pa.array([0, -1], pa.int32())})),
        "nothing left": as_stream(pa.table({"key": ["a"]}))}
    for name, stream in bad.items():
        try:
            answer = redis.rpush(f"arrow:{topic}", stream)
        except ResponseError as refused:
            check(str(refused).startswith("PROD "), f"{name}: {refused}")
        else:
            check(False, f"{name}: RPUSH was answered {answer!r}")
    check_equal(redis.rpush(f"arrow:{topic}", good), 2, "RPUSH of a good one")
    check_equal([message.value() for message in karrow.kafka_client().values(topic, 2)], [b"1", b"2"], "values")
    check_equal(redis.llen(f"topics:{topic}"), 2, "LLEN: nothing of the others was stored")
