"""Owns the proof that what other people's serializers wrote comes out of karrow's Arrow columns as it was: the exact
types, and every value. Avro, Protobuf and JSON Schema by Confluent's library for Python, Avro by Kafka's Java client,
JSON and Avro by kafkajs; plain JSON, CSV, text, bytes, tombstones and Arrow itself."""
import datetime
import decimal
import json
import os
import struct
import sys
import uuid

from lib import install
from lib.cases import case
from lib.process import check, check_equal, run
from lib.registry import RegistryProxy, registry_client
from lib.servers import KAFKA
from lib.tables import (
    Reader, as_stream, check_no_errors, check_rows, check_types, errors, libraries, payloads, whole)

UTC = datetime.timezone.utc
DECIMAL = decimal.Decimal


def gateway(context, registry=None, config=None):
    """A karrow of the case's own; `registry` is a URL, `config` the text of karrow.toml."""
    karrow = context.new_karrow(label=context.unique("karrow"))
    if registry:
        karrow.arguments += ["--schema-registry", registry]
    if config:
        path = karrow.folder / "karrow.toml"
        path.write_text(config)
        karrow.arguments += ["-c", path]
    return karrow.start()


def fill(karrow, topic, records, partitions=1):
    """Creates the topic and stores the records in its first partition, without karrow."""
    libraries()
    client = karrow.kafka_client()
    client.create_topic(topic, partitions)
    client.store(topic, records)
    return topic


def read(context, karrow, topic, count, **options):
    """The next `count` records of the topic, in one batch, by a group of its own."""
    with Reader(karrow, context.unique("group"), topic, **whole(count), **options) as reader:
        return reader.table()


# ---- Avro


def field(name, kind, **more):
    return {"name": name, "type": kind, **more}


def logical(kind, name, **more):
    return {"type": kind, "logicalType": name, **more}


ORDER = {"type": "record", "name": "Order", "namespace": "shop", "fields": [
    field("id", "long"), field("count", "int"), field("ratio", "float"), field("price", "double"),
    field("paid", "boolean"), field("name", "string"), field("data", "bytes"),
    field("state", {"type": "enum", "name": "State", "symbols": ["NEW", "PAID", "SENT"]}),
    field("digest", {"type": "fixed", "name": "Digest", "size": 4}),
    field("tags", {"type": "array", "items": "string"}), field("stock", {"type": "map", "values": "long"}),
    field("note", ["null", "string"], default=None), field("choice", ["null", "long", "string"]),
    field("customer", {"type": "record", "name": "Customer", "fields": [
        field("name", "string"), field("age", ["null", "int"])]}),
    field("lines", {"type": "array", "items": {"type": "record", "name": "Line", "fields": [
        field("sku", "string"), field("price", logical("bytes", "decimal", precision=9, scale=2))]}}),
    field("total", logical("bytes", "decimal", precision=20, scale=4)),
    field("fee", {"type": "fixed", "name": "Fee", "size": 8, "logicalType": "decimal", "precision": 18, "scale": 2}),
    field("wide", logical("bytes", "decimal", precision=50, scale=10)),
    field("day", logical("int", "date")), field("opens", logical("int", "time-millis")),
    field("closes", logical("long", "time-micros")), field("created", logical("long", "timestamp-millis")),
    field("changed", logical("long", "timestamp-micros")), field("local", logical("long", "local-timestamp-micros")),
    field("trace", logical("string", "uuid"))]}


def order_types():
    pa = libraries()
    return {
        "id": pa.int64(), "count": pa.int32(), "ratio": pa.float32(), "price": pa.float64(), "paid": pa.bool_(),
        "name": pa.string(), "data": pa.binary(), "state": pa.string(), "digest": pa.binary(4),
        "tags": pa.list_(pa.string()), "stock": pa.map_(pa.string(), pa.int64()), "note": pa.string(),
        "choice": pa.struct([("long", pa.int64()), ("string", pa.string())]),
        "customer": pa.struct([("name", pa.string()), ("age", pa.int32())]),
        "lines": pa.list_(pa.struct([("sku", pa.string()), ("price", pa.decimal128(9, 2))])),
        "total": pa.decimal128(20, 4), "fee": pa.decimal128(18, 2), "wide": pa.decimal256(50, 10), "day": pa.date32(),
        "opens": pa.time32("ms"), "closes": pa.time64("us"), "created": pa.timestamp("ms", "UTC"),
        "changed": pa.timestamp("us", "UTC"), "local": pa.timestamp("us"), "trace": pa.string()}


def orders():
    """(what is written, what must be read), ordinary and at the edges."""
    ordinary = {
        "id": 2**53 + 1, "count": 3, "ratio": 0.1015625, "price": 19.99, "paid": True, "name": "Zoë 𝄞 \"x\"\n",
        "data": b"\x00\xff\x80", "state": "PAID", "digest": b"\xde\xad\xbe\xef", "tags": ["a", "", "ü"],
        "stock": {"left": 2**60, "right": -1}, "note": "fragile", "choice": 7,
        "customer": {"name": "Ann", "age": 41},
        "lines": [{"sku": "x-1", "price": DECIMAL("9.99")}, {"sku": "x-2", "price": DECIMAL("-0.01")}],
        "total": DECIMAL("1234567890123456.7891"), "fee": DECIMAL("-12.30"),
        "wide": DECIMAL("1234567890123456789012345678901234567890.0123456789"),
        "day": datetime.date(2024, 2, 29), "opens": datetime.time(8, 30, 15, 123000),
        "closes": datetime.time(23, 59, 59, 999999),
        "created": datetime.datetime(2024, 2, 29, 12, 30, 15, 123000, tzinfo=UTC),
        "changed": datetime.datetime(1969, 12, 31, 23, 59, 59, 999999, tzinfo=UTC),
        "local": datetime.datetime(2024, 3, 31, 2, 30, 0, 1), "trace": uuid.UUID(int=2**127 + 5)}
    lowest = {
        **ordinary, "id": -2**63, "count": -2**31, "ratio": float("-inf"), "price": float("nan"), "paid": False,
        "name": "", "data": b"", "state": "NEW", "digest": bytes(4), "tags": [], "stock": {}, "note": None,
        "choice": "seven", "customer": {"name": "", "age": None}, "lines": [],
        "total": DECIMAL("-9999999999999999.9999"), "fee": DECIMAL("-9999999999999999.99"), "wide": DECIMAL("0E-10"),
        "day": datetime.date(1, 1, 1), "opens": datetime.time(0), "closes": datetime.time(0),
        "created": datetime.datetime(1, 1, 1, tzinfo=UTC), "changed": datetime.datetime(1, 1, 1, tzinfo=UTC),
        "local": datetime.datetime(1, 1, 1), "trace": uuid.UUID(int=0)}
    highest = {
        **ordinary, "id": 2**63 - 1, "count": 2**31 - 1, "ratio": 3.4028234663852886e38, "price": 5e-324,
        "choice": None, "total": DECIMAL("9999999999999999.9999"), "fee": DECIMAL("9999999999999999.99"),
        "day": datetime.date(9999, 12, 31), "opens": datetime.time(23, 59, 59, 999000),
        "created": datetime.datetime(9999, 12, 31, 23, 59, 59, 999000, tzinfo=UTC),
        "changed": datetime.datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)}
    return [(order, {
        **order, "stock": list(order["stock"].items()), "trace": str(order["trace"]),
        "choice": {7: {"long": 7, "string": None}, "seven": {"long": None, "string": "seven"}}.get(order["choice"]),
    }) for order in (ordinary, lowest, highest)]


def avro_writer(client, schema, topic, **config):
    """Confluent's AvroSerializer: a function from values to bytes (and headers)."""
    libraries()
    from confluent_kafka.schema_registry.avro import AvroSerializer
    from confluent_kafka.serialization import MessageField, SerializationContext
    serializer = AvroSerializer(client, json.dumps(schema), conf=config or None)

    def write(value, headers=None, where=MessageField.VALUE):
        return serializer(value, SerializationContext(topic, where, headers))
    return write


@case("arrow", "avro")
def avro(context):
    """AvroSerializer: all types that are common, at their edges too."""
    registry = context.run.registry()
    karrow, topic = gateway(context, registry.url), context.unique("orders")
    write = avro_writer(registry.client(), ORDER, topic)
    fill(karrow, topic, [write(order) for order, _ in orders()])
    table = read(context, karrow, topic, len(orders()))
    check_no_errors(table)
    check_types(table.schema.field("payload").type, order_types())
    check_rows(payloads(table), [wanted for _, wanted in orders()])


@case("arrow", "avro-two-schemas")
def avro_two_schemas(context):
    """One topic, two versions: a field gone, one new with a default. What a version does not have is null."""
    registry = context.run.registry()
    client = registry.client()
    karrow, topic = gateway(context, registry.url), context.unique("versions")
    old = {"type": "record", "name": "Event", "fields": [
        field("id", "long"), field("legacy", "int"), field("amount", "int")]}
    new = {"type": "record", "name": "Event", "fields": [
        field("id", "long"), field("amount", "long"), field("channel", "string", default="web"),
        field("at", ["null", logical("long", "timestamp-millis")], default=None)]}
    at = datetime.datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
    write_old, write_new = avro_writer(client, old, topic), avro_writer(client, new, topic)
    olds = [write_old({"id": number, "legacy": -number, "amount": number}) for number in range(3)]
    news = [write_new({"id": number, "amount": 2**40 + number, "channel": "app", "at": at}) for number in range(3, 6)]
    check(olds[0][1:5] != news[0][1:5], "both versions have the same id")
    mixed = [olds[0], news[0], olds[1], news[1], news[2], olds[2]]
    fill(karrow, topic, mixed)

    def wanted(number):
        if number < 3:
            return {"id": number, "legacy": -number, "amount": number, "channel": None, "at": None}
        return {"id": number, "legacy": None, "amount": 2**40 + number, "channel": "app", "at": at}
    table = read(context, karrow, topic, 6)
    check_no_errors(table)
    pa = libraries()
    check_types(table.schema.field("payload").type, {
        "id": pa.int64(), "legacy": pa.int32(), "amount": pa.int64(), "channel": pa.string(),
        "at": pa.timestamp("ms", "UTC")})
    check_rows(payloads(table), [wanted(number) for number in (0, 3, 1, 4, 5, 2)])
    # The columns stay those of both, also in a batch that has one version only.
    karrow.kafka_client().store(topic, olds)
    with Reader(karrow, context.unique("group"), topic, **whole(6)) as reader:
        check_rows(payloads(reader.table()), [wanted(number) for number in (0, 3, 1, 4, 5, 2)])
        karrow.kafka_client().store(topic, olds)
        check_rows(payloads(reader.table()), [wanted(number) for number in (0, 1, 2, 0, 1, 2)])


@case("arrow", "avro-references")
def avro_references(context):
    """A schema that refers to one of another subject; a root that is no record is the field `value`."""
    registry = context.run.registry()
    client = registry.client()
    from confluent_kafka.schema_registry import Schema
    from confluent_kafka.schema_registry.schema_registry_client import SchemaReference
    karrow, topic, roots = gateway(context, registry.url), context.unique("refers"), context.unique("roots")
    address = {"type": "record", "name": "Address", "namespace": "shop", "fields": [field("city", "string")]}
    subject = context.unique("address")
    client.register_schema(subject, Schema(json.dumps(address), "AVRO"))
    person = {"type": "record", "name": "Person", "namespace": "shop", "fields": [
        field("name", "string"), field("home", "shop.Address")]}
    number = client.register_schema(f"{topic}-value", Schema(
        json.dumps(person), "AVRO", [SchemaReference("shop.Address", subject, 1)]))
    fill(karrow, topic, [b"\0" + struct.pack(">I", number) + b"\x06Ann\x08Rome"])
    table = read(context, karrow, topic, 1)
    check_no_errors(table)
    check_rows(payloads(table), [{"name": "Ann", "home": {"city": "Rome"}}])
    write = avro_writer(client, {"type": "long"}, roots)
    fill(karrow, roots, [write(2**62), write(-5)])
    check_rows(payloads(read(context, karrow, roots, 2)), [{"value": 2**62}, {"value": -5}])


@case("arrow", "avro-keys")
def avro_keys(context):
    """Keys by AvroSerializer, decoded where karrow.toml says so; a key that is none is a bad row with its payload."""
    registry, topic = context.run.registry(), context.unique("keyed")
    karrow, pa = gateway(context, registry.url, f'[topic.{topic}]\nkey = "avro"\n'), libraries()
    client = registry.client()
    key = avro_writer(client, {"type": "record", "name": "Key", "fields": [field("id", "long")]}, topic)
    value = avro_writer(client, {"type": "record", "name": "Value", "fields": [field("name", "string")]}, topic)
    fill(karrow, topic, [{"key": key({"id": 2**53 + 1}, where="key"), "value": value({"name": "a"})},
                         {"key": key({"id": 2}, where="key"), "value": None},
                         {"key": b"plain", "value": value({"name": "b"})}, {"value": value({"name": "c"})}])
    table = read(context, karrow, topic, 4)
    check_types(table.schema.field("key").type, {"id": pa.int64()}, "key")
    check_rows(table.select(["key", "payload"]).to_pylist(), [
        {"key": {"id": 2**53 + 1}, "payload": {"name": "a"}}, {"key": {"id": 2}, "payload": None},
        {"key": None, "payload": {"name": "b"}}, {"key": None, "payload": {"name": "c"}}], "row")
    found = table.column("error").to_pylist()
    check_equal([row for row, error in enumerate(found) if error], [2], "bad rows")
    check_equal((found[2]["key"], found[2]["message"].startswith("key: ")), (b"plain", True), f"the error {found[2]}")


@case("arrow", "schema-id-in-header")
def schema_id_in_header(context):
    """The serializers' other mode: the schema's GUID in a header, nothing in front of the value."""
    from_pypi = libraries()
    from confluent_kafka.schema_registry import header_schema_id_serializer
    guids = RegistryProxy(context.run.registry())
    try:
        karrow, topic = gateway(context, guids.url), context.unique("headers")
        schema = {"type": "record", "name": "Ping", "fields": [field("id", "long"), field("name", "string")]}
        write = avro_writer(registry_client(guids.url), schema, topic, **{
            "schema.id.serializer": header_schema_id_serializer})
        records, pings = [], [{"id": 2**53 + number, "name": f"ping {number}"} for number in range(3)]
        for ping in pings:
            headers = [("trace", b"7f")]
            records.append({"value": write(ping, headers), "headers": headers})
        check([name for name, _ in records[0]["headers"]] == ["trace", "__value_schema_id"],
              f"the serializer wrote the headers {records[0]['headers']}")
        check(records[0]["value"][0] != 0, "the value has a prefix all the same")
        table = read(context, karrow, fill(karrow, topic, records), 3)
        check_no_errors(table)
        check_types(table.schema.field("payload").type, {"id": from_pypi.int64(), "name": from_pypi.string()})
        check_rows(payloads(table), pings)
        check_rows(table.column("headers").to_pylist(), [
            [{"key": name, "value": value} for name, value in record["headers"]] for record in records], "headers")
    finally:
        guids.stop()


# ---- Protobuf


def compiled(context):
    """order.proto, compiled by Google's compiler for Python; returns the module."""
    python, out = install.python_packages("arrow"), context.run.folder / "protobuf"
    if not out.exists():
        out.mkdir()
        source = install.E2E / "arrow"
        run([python, "-m", "grpc_tools.protoc", f"-I{source}", f"--python_out={out}",
             source / "order.proto", source / "customer.proto"], "compiling order.proto")
        sys.path.insert(0, str(out))
    import order_pb2
    return order_pb2


def protobuf_writer(client, message, topic, **config):
    from confluent_kafka.schema_registry.protobuf import ProtobufSerializer
    from confluent_kafka.serialization import MessageField, SerializationContext
    serializer = ProtobufSerializer(message, client, {"use.deprecated.format": False, **config})
    return lambda value: serializer(value, SerializationContext(topic, MessageField.VALUE))


def by_serializer(context, client, message, topic):
    """ProtobufSerializer registers what it was compiled from: descriptors, in base64."""
    return protobuf_writer(client, message, topic)


def by_text(context, client, message, topic):
    """The registry has the .proto files, as Java's serializers register them; the frame is Confluent's: a zero, the
    id, and which message of the file it is."""
    from confluent_kafka.schema_registry import Schema
    from confluent_kafka.schema_registry.schema_registry_client import SchemaReference
    source = install.E2E / "arrow"
    imported = context.unique("customer")
    client.register_schema(imported, Schema((source / "customer.proto").read_text(), "PROTOBUF"))
    number = client.register_schema(f"{topic}-value", Schema((source / "order.proto").read_text(), "PROTOBUF", [
        SchemaReference("customer.proto", imported, 1)]))
    index = {"Order": b"\x00", "Refund": b"\x02\x02"}[message.DESCRIPTOR.name]
    return lambda value: b"\x00" + struct.pack(">I", number) + index + value.SerializeToString()


@case("arrow", "protobuf")
def protobuf(context):
    """ProtobufSerializer, with an import in the registry: scalars, messages, repeated, maps, oneof, enums,
    well-known types, optional."""
    all_of_protobuf(context, by_text)


@case("arrow", "protobuf-descriptors")
def protobuf_descriptors(context):
    """The same with the schemas that ProtobufSerializer registers by itself."""
    all_of_protobuf(context, by_serializer)


def all_of_protobuf(context, writer):
    pb, pa = compiled(context), libraries()
    import pandas
    from google.protobuf.timestamp_pb2 import Timestamp
    registry = context.run.registry()
    karrow, topic = gateway(context, registry.url), context.unique("orders")
    full = pb.Order(
        id=-2**63, big=2**64 - 1, delta=-7, mask=2**32 - 1, ratio=0.5, price=19.99, paid=True, name="Zoë 𝄞",
        data=b"\x00\xff", state=pb.PAID, customer={"name": "Ann", "age": 0},
        lines=[{"sku": "x-1", "quantity": 2}, {}], numbers=[1, -2, 2**62], stock={"left": 2**60},
        by_number={5: {"sku": "five"}}, voucher=0, created=Timestamp(seconds=1_700_000_000, nanos=123_456_789),
        took={"seconds": 90, "nanos": 1}, limit={"value": 0}, floor=0, history=[pb.SENT, pb.UNKNOWN])
    unknown = pb.Order(barter={"sku": "goat", "quantity": 1}, history=[9], state=8,
                       created=Timestamp(seconds=-1, nanos=999_999_999))
    written = [full, pb.Order(), unknown]
    write = writer(context, registry.client(), pb.Order, topic)
    fill(karrow, topic, [write(order) for order in written])
    table = read(context, karrow, topic, len(written))
    check_no_errors(table)
    line = pa.struct([("sku", pa.string()), ("quantity", pa.uint32())])
    check_types(table.schema.field("payload").type, {
        "id": pa.int64(), "big": pa.uint64(), "delta": pa.int32(), "mask": pa.uint32(), "ratio": pa.float32(),
        "price": pa.float64(), "paid": pa.bool_(), "name": pa.string(), "data": pa.binary(), "state": pa.string(),
        "customer": pa.struct([("name", pa.string()), ("age", pa.int32())]), "lines": pa.list_(line),
        "numbers": pa.list_(pa.int64()), "stock": pa.map_(pa.string(), pa.int64()),
        "by_number": pa.map_(pa.int32(), line), "card": pa.string(), "voucher": pa.int64(), "barter": line,
        "created": pa.timestamp("ns", "UTC"), "took": pa.duration("ns"), "limit": pa.int64(), "floor": pa.int32(),
        "history": pa.list_(pa.string())})
    empty = {
        "id": 0, "big": 0, "delta": 0, "mask": 0, "ratio": 0.0, "price": 0.0, "paid": False, "name": "", "data": b"",
        "state": "UNKNOWN", "customer": None, "lines": [], "numbers": [], "stock": [], "by_number": [], "card": None,
        "voucher": None, "barter": None, "created": None, "took": None, "limit": None, "floor": None, "history": []}
    check_rows(payloads(table), [{
        "id": -2**63, "big": 2**64 - 1, "delta": -7, "mask": 2**32 - 1, "ratio": 0.5, "price": 19.99, "paid": True,
        "name": "Zoë 𝄞", "data": b"\x00\xff", "state": "PAID", "customer": {"name": "Ann", "age": 0},
        "lines": [{"sku": "x-1", "quantity": 2}, {"sku": "", "quantity": 0}], "numbers": [1, -2, 2**62],
        "stock": [("left", 2**60)], "by_number": [(5, {"sku": "five", "quantity": 0})], "card": None, "voucher": 0,
        "barter": None, "created": pandas.Timestamp(1_700_000_000_123_456_789, unit="ns", tz="UTC"),
        "took": pandas.Timedelta(90_000_000_001, unit="ns"), "limit": 0, "floor": 0, "history": ["SENT", "UNKNOWN"],
    }, empty, {
        **empty, "state": "8", "history": ["9"], "barter": {"sku": "goat", "quantity": 1},
        "created": pandas.Timestamp(-1, unit="ns", tz="UTC")}])


@case("arrow", "protobuf-two-messages")
def protobuf_two_messages(context):
    """Two messages of one .proto in one topic: each has a nullable struct of its own, called by its full name."""
    pb, registry = compiled(context), context.run.registry()
    client, topic = registry.client(), context.unique("mixed")
    karrow = gateway(context, registry.url)
    order, refund = (by_text(context, client, message, topic) for message in (pb.Order, pb.Refund))
    fill(karrow, topic, [order(pb.Order(id=1)), refund(pb.Refund(order=1, reason="late")), order(pb.Order(id=2))])
    table = read(context, karrow, topic, 3)
    check_no_errors(table)
    rows = payloads(table)
    check_equal([sorted(row) for row in rows], [["shop.Order", "shop.Refund"]] * 3, "fields of payload")
    check_rows([(row["shop.Order"] and row["shop.Order"]["id"], row["shop.Refund"]) for row in rows],
               [(1, None), (None, {"order": 1, "reason": "late"}), (2, None)])


@case("arrow", "protobuf-file")
def protobuf_file(context):
    """Values without a schema's id: the .proto is a file that karrow.toml names."""
    pb = compiled(context)
    customers = [pb.customer__pb2.Customer(name="Ann", age=0), pb.customer__pb2.Customer()]
    values = [customer.SerializeToString() for customer in customers] + [b"\xff\xff"]
    table = by_file(context, "customer.proto", "shop.Customer", values)
    check_rows(payloads(table), [{"name": "Ann", "age": 0}, {"name": "", "age": None}, None])
    check_equal({row: raw for row, (_, raw) in errors(table).items()}, {2: b"\xff\xff"}, "bad rows")


@case("arrow", "protobuf-file-imports")
def protobuf_file_imports(context):
    """The .proto imports another one that lies beside it."""
    pb = compiled(context)
    refunds = [pb.Refund(order=2**62, reason="late"), pb.Refund()]
    table = by_file(context, "order.proto", "shop.Refund", [refund.SerializeToString() for refund in refunds])
    check_no_errors(table)
    check_rows(payloads(table), [{"order": 2**62, "reason": "late"}, {"order": 0, "reason": ""}])


def by_file(context, proto, message, values):
    topic = context.unique("plain")
    karrow = gateway(context, config=f"""
[topic.{topic}]
payload = "protobuf"
payload-schema = "{install.E2E / 'arrow' / proto}"
payload-message = "{message}"
""")
    return read(context, karrow, fill(karrow, topic, values), len(values))


# ---- JSON


@case("arrow", "json-schema")
def json_schema(context):
    """JSONSerializer: JSON behind a schema's id."""
    libraries()
    from confluent_kafka.schema_registry.json_schema import JSONSerializer
    from confluent_kafka.serialization import MessageField, SerializationContext
    registry = context.run.registry()
    karrow, topic = gateway(context, registry.url), context.unique("readings")
    schema = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Reading", "type": "object",
              "properties": {"sensor": {"type": "string"}, "value": {"type": "number"}, "at": {"type": "integer"},
                             "where": {"type": "object", "properties": {"floor": {"type": "integer"}}}},
              "required": ["sensor"]}
    serializer = JSONSerializer(json.dumps(schema), registry.client())
    readings = [{"sensor": "ä", "value": 20.5, "at": 2**53 + 1, "where": {"floor": -1}}, {"sensor": "b"}]
    fill(karrow, topic, [
        serializer(reading, SerializationContext(topic, MessageField.VALUE)) for reading in readings])
    table = read(context, karrow, topic, 2)
    check_no_errors(table)
    pa = libraries()
    check_types(table.schema.field("payload").type, {
        "sensor": pa.string(), "value": pa.float64(), "at": pa.int64(), "where": pa.struct([("floor", pa.int64())])})
    check_rows(payloads(table), [readings[0], {"sensor": "b", "value": None, "at": None, "where": None}])


@case("arrow", "json")
def plain_json(context):
    """Plain JSON: types from the values; numbers keep every digit, whatever it takes."""
    topic = context.unique("events")
    karrow = gateway(context, config=f'[topic.{topic}]\ntimestamps = ["at", "deep.at"]\n')
    texts = [
        '{"id": 9007199254740993, "half": 1, "wide": 1, "big": 1, "name": "Zoë \\ud834\\udd1e \\u0000", "flag": true,'
        ' "mixed": 1, "list": [1, null, 3], "deep": {"a": {"b": [1]}, "at": "2024-02-29T12:00:00.5+02:00"},'
        ' "lines": [{"sku": "x"}, {"qty": 2}], "at": "2024-02-29T12:00:00Z", "never": null, "void": {}, "none": []}',
        '{"id": -9223372036854775808, "half": 2.5, "wide": 9007199254740993, "big": 18446744073709551616,'
        ' "name": "", "mixed": {"k": [1.50]}, "later": 1}',
        '{"id": 9223372036854775807, "half": -0.0, "wide": 1.5, "big": -1, "mixed": "text", "flag": null}',
        '  {"id" : 0}\r\n']
    fill(karrow, topic, [text.encode() for text in texts])
    table = read(context, karrow, topic, len(texts))
    check_no_errors(table)
    pa = libraries()
    instant = pa.timestamp("us", "UTC")
    check_types(table.schema.field("payload").type, {
        "id": pa.int64(), "half": pa.float64(), "wide": pa.string(), "big": pa.string(), "name": pa.string(),
        "flag": pa.bool_(), "mixed": pa.string(), "list": pa.list_(pa.int64()),
        "deep": pa.struct([("a", pa.struct([("b", pa.list_(pa.int64()))])), ("at", instant)]),
        "lines": pa.list_(pa.struct([("sku", pa.string()), ("qty", pa.int64())])), "at": instant, "later": pa.int64()})
    absent = dict.fromkeys(["half", "wide", "big", "name", "flag", "mixed", "list", "deep", "lines", "at", "later"])
    check_rows(payloads(table), [
        {**absent, "id": 2**53 + 1, "half": 1.0, "wide": "1", "big": "1", "name": "Zoë 𝄞 \0", "flag": True,
         "mixed": "1", "list": [1, None, 3],
         "deep": {"a": {"b": [1]}, "at": datetime.datetime(2024, 2, 29, 10, 0, 0, 500000, tzinfo=UTC)},
         "lines": [{"sku": "x", "qty": None}, {"sku": None, "qty": 2}],
         "at": datetime.datetime(2024, 2, 29, 12, tzinfo=UTC)},
        {**absent, "id": -2**63, "half": 2.5, "wide": "9007199254740993", "big": "18446744073709551616", "name": "",
         "mixed": '{"k": [1.50]}', "later": 1},
        {**absent, "id": 2**63 - 1, "half": -0.0, "wide": "1.5", "big": "-1", "mixed": "text"},
        {**absent, "id": 0}])


@case("arrow", "json-widens")
def json_widens(context):
    """From batch to batch columns come and widen, and never go or narrow again, also for another reader."""
    karrow, topic, pa = gateway(context), context.unique("widens"), libraries()
    texts = [b'{"a": 1}', b'{"b": true}', b'{"a": 2.5}', b'{"a": 9007199254740993}', b'{"a": 4}']
    fill(karrow, topic, texts)
    a, b = ("a", pa.int64()), ("b", pa.bool_())
    with Reader(karrow, context.unique("group"), topic, karrow_batch_rows=1) as reader:
        seen = [reader.table() for _ in texts]
    wanted = [({"a": pa.int64()}, {"a": 1}), (dict([a, b]), {"a": None, "b": True}),
              ({"a": pa.float64(), "b": pa.bool_()}, {"a": 2.5, "b": None}),
              ({"a": pa.string(), "b": pa.bool_()}, {"a": "9007199254740993", "b": None}),
              ({"a": pa.string(), "b": pa.bool_()}, {"a": "4", "b": None})]
    for number, (table, (types, row)) in enumerate(zip(seen, wanted)):
        check_types(table.schema.field("payload").type, types, f"payload {number}")
        check_rows(payloads(table), [row], f"payload {number}")
    table = read(context, karrow, topic, len(texts))
    check_types(table.schema.field("payload").type, wanted[-1][0], "another reader's payload")
    check_rows([row["a"] for row in payloads(table)], ["1", None, "2.5", "9007199254740993", "4"])


@case("arrow", "json-bad-rows")
def json_bad_rows(context):
    """What is no JSON object is a row with its bytes and the reason; its neighbours are whole."""
    karrow, topic = gateway(context), context.unique("bad")
    values = [b'{"a": 1}', b'{"a": 2', b'[1]', b'{"a": 3}', b'{"a": 4, "a": 5}', b'{"a": "\xff"}', b"", b'{"a": 6}',
              b'{"a": 007}', b'{"a": NaN}', b'{"a": 7}{"a": 8}', b'{"a": 9}']
    fill(karrow, topic, values)
    table = read(context, karrow, topic, len(values), karrow_format="json")
    good = {0: 1, 3: 3, 7: 6, 11: 9}
    check_rows(payloads(table), [{"a": good[row]} if row in good else None for row in range(len(values))])
    found = errors(table)
    check_equal(sorted(found), [row for row in range(len(values)) if row not in good], "bad rows")
    for row, (message, raw) in found.items():
        check_equal(raw, values[row], f"bytes of bad row {row}")
        check(message.startswith("payload: ") and len(message) > 12, f"reason of bad row {row}: {message!r}")


# ---- the rest


@case("arrow", "csv")
def csv(context):
    """Lines with the columns that karrow.toml names, written by Python's csv; a line that does not fit is a bad row."""
    import csv as writer
    import io
    topic = context.unique("readings")
    karrow = gateway(context, config=f"""
[topic.{topic}]
payload = "csv"
csv-columns = ["sensor", "value", "count", "zip", "ok"]
csv-delimiter = ";"
""")

    def line(*values):
        text = io.StringIO()
        writer.writer(text, delimiter=";").writerow(values)
        return text.getvalue().encode()
    fill(karrow, topic, [line("a", 1.5, 2**53 + 1, "007", "true"), line('b;"x" ü', 2, -3, "08", "false"),
                         line("", "", "", "", ""), b"only;two", line("c", -0.25, 0, "1", "true")])
    table = read(context, karrow, topic, 5)
    pa = libraries()
    check_types(table.schema.field("payload").type, {
        "sensor": pa.string(), "value": pa.float64(), "count": pa.int64(), "zip": pa.string(), "ok": pa.bool_()})
    nothing = dict.fromkeys(["sensor", "value", "count", "zip", "ok"])
    check_rows(payloads(table), [
        {"sensor": "a", "value": 1.5, "count": 2**53 + 1, "zip": "007", "ok": True},
        {"sensor": 'b;"x" ü', "value": 2.0, "count": -3, "zip": "08", "ok": False}, nothing, None,
        {"sensor": "c", "value": -0.25, "count": 0, "zip": "1", "ok": True}])
    check_equal({row: raw for row, (_, raw) in errors(table).items()}, {3: b"only;two"}, "bad rows")


@case("arrow", "text-and-bytes")
def text_and_bytes(context):
    """UTF-8 is Utf8, anything else Binary, both found out by themselves; `karrow.format` and karrow.toml decide it."""
    karrow, texts, raws, pa = gateway(context), context.unique("texts"), context.unique("raws"), libraries()
    lines, blobs = ["first", "Zoë 𝄞", "", "tab\there"], [b"\x00\x01\xff", bytes(range(256)), b"plain"]
    fill(karrow, texts, [line.encode() for line in lines])
    fill(karrow, raws, blobs)
    table = read(context, karrow, texts, len(lines))
    check_equal(table.schema.field("payload").type, pa.string(), "type of text")
    check_rows(payloads(table), lines)
    table = read(context, karrow, raws, len(blobs))
    check_equal(table.schema.field("payload").type, pa.binary(), "type of bytes")
    check_rows(payloads(table), blobs)
    table = read(context, karrow, texts, len(lines), karrow_format="raw")
    check_rows(payloads(table), [line.encode() for line in lines], "text as raw")
    table = read(context, karrow, raws, len(blobs), karrow_format="text")
    check_rows(payloads(table), [None, None, "plain"], "bytes as text")
    check_equal({row: raw for row, (_, raw) in errors(table).items()}, dict(enumerate(blobs[:2])), "bad rows")


@case("arrow", "envelope")
def envelope(context):
    """The columns around a payload: exact types; keys, headers that repeat or are null, times, tombstones."""
    karrow, topic, pa = gateway(context), context.unique("envelope"), libraries()
    client = karrow.kafka_client()
    client.create_topic(topic, 2)
    at = 1_700_000_000_123
    client.store(topic, [
        {"value": b'{"a": 1}', "key": b"k\xff", "headers": [("trace", b"7f"), ("trace", b"\x00"), ("none", None)],
         "timestamp": at},
        {"value": None, "key": b"gone", "timestamp": at + 1}, {"value": b'{"a": 2}', "timestamp": at + 2}])
    client.store(topic, [{"value": None, "timestamp": at + 3}, {"value": b"{}", "key": b"", "timestamp": at + 4}], 1)
    table = read(context, karrow, topic, 5)
    header = pa.struct([pa.field("key", pa.string(), False), pa.field("value", pa.binary())])
    error = pa.struct([pa.field("message", pa.string(), False), pa.field("key", pa.binary()),
                       pa.field("payload", pa.binary())])
    wanted = pa.schema([
        pa.field("topic", pa.string(), False), pa.field("partition", pa.int32(), False),
        pa.field("offset", pa.int64(), False), pa.field("timestamp", pa.timestamp("ms", "UTC")),
        pa.field("key", pa.binary()),
        pa.field("headers", pa.list_(pa.field("item", header, False)), False),
        pa.field("payload", pa.struct([("a", pa.int64())])), pa.field("error", error)])
    check_equal(table.schema.names, wanted.names, "columns")
    for one in wanted:
        got = table.schema.field(one.name)
        check_equal((got.type, got.nullable), (one.type, one.nullable), f"column {one.name}")

    def when(millis):
        return datetime.datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC) + datetime.timedelta(milliseconds=123 + millis)
    row = {"topic": topic, "partition": 0, "key": None, "headers": [], "payload": None, "error": None}
    check_rows(table.to_pylist(), [
        {**row, "offset": 0, "timestamp": when(0), "key": b"k\xff", "payload": {"a": 1}, "headers": [
            {"key": "trace", "value": b"7f"}, {"key": "trace", "value": b"\x00"}, {"key": "none", "value": None}]},
        {**row, "offset": 1, "timestamp": when(1), "key": b"gone"},
        {**row, "offset": 2, "timestamp": when(2), "payload": {"a": 2}},
        {**row, "partition": 1, "offset": 0, "timestamp": when(3)},
        {**row, "partition": 1, "offset": 1, "timestamp": when(4), "key": b"", "payload": {"a": None}}], "row")
    acks = table.schema.metadata[b"karrow.acks"].decode().split(",")
    check_equal(sorted(acks), [f"{topic}:0:2", f"{topic}:1:1"], "karrow.acks")


@case("arrow", "ipc-payloads")
def ipc_payloads(context):
    """IPC streams that pyarrow wrote as values: each row is a row, under its record's envelope; what is spelled in
    dictionaries, views and large types comes out plain, and streams of different columns share them. One without rows
    is a bad row."""
    karrow, topic, pa = gateway(context), context.unique("streams"), libraries()
    at = datetime.datetime(2024, 2, 29, 12, 0, 0, 123456, tzinfo=UTC)
    first = pa.table({
        "id": pa.array([1, 2**53 + 1, None], pa.int64()), "small": pa.array([1, -128, 127], pa.int8()),
        "half": pa.array([0.5, None, -0.0], pa.float32()),
        "price": pa.array([DECIMAL("1.10"), DECIMAL("-9999999.99"), None], pa.decimal128(9, 2)),
        "at": pa.array([at, None, at], pa.timestamp("us", "UTC")), "day": pa.array([datetime.date(2024, 2, 29)] * 3),
        "word": pa.array(["a", "b", "a"]).dictionary_encode(),
        "view": pa.array(["x", None, "y" * 40], pa.string_view()),
        "list": pa.array([[1], [], None], pa.list_(pa.int64())),
        "map": pa.array([[("k", 1)], [], None], pa.map_(pa.string(), pa.int64())),
        "deep": pa.array([{"a": [{"b": 1}]}, None, {"a": None}])})
    second = pa.table({"id": pa.array([7], pa.int64()), "new": pa.array(["only here"])})
    none = first.slice(0, 0)
    fill(karrow, topic, [
        {"value": as_stream(first), "key": b"first"}, {"value": as_stream(none), "key": b"none"},
        {"value": as_stream(second, compression="zstd"), "key": b"second"}, {"value": None, "key": b"gone"},
        {"value": as_stream(first.slice(1, 2), compression="lz4"), "key": b"sliced"},
        {"value": as_stream(second)[:-20], "key": b"cut"}])
    table = read(context, karrow, topic, 6)
    plain = {one.name: one.type for one in first.schema}
    check_types(table.schema.field("payload").type, {
        **plain, "word": pa.string(), "view": pa.string(), "new": pa.string()})
    rows = [{**row, "new": None} for row in first.to_pylist()]
    other = {**dict.fromkeys(plain), "id": 7, "new": "only here"}
    got = [(row["key"], row["offset"], row["payload"]) for row in table.to_pylist()]
    check_rows(got, [(b"first", 0, row) for row in rows]
               + [(b"none", 1, None), (b"second", 2, other), (b"gone", 3, None)]
               + [(b"sliced", 4, row) for row in rows[1:]] + [(b"cut", 5, None)], "key, offset, payload")
    # A stream without rows would leave no trace of its key and headers else.
    check_equal({row: raw for row, (_, raw) in errors(table).items()},
                {3: as_stream(none), 8: as_stream(second)[:-20]}, "bad rows")
    check_equal(table.schema.metadata[b"karrow.acks"], f"{topic}:0:5".encode(), "karrow.acks")


@case("arrow", "tombstones")
def tombstones(context):
    """A topic that begins with tombstones: Binary until something can be seen, then what it is."""
    karrow, topic, pa = gateway(context), context.unique("tombstones"), libraries()
    fill(karrow, topic, [{"key": b"k", "value": None}] * 3)
    with Reader(karrow, context.unique("group"), topic, **whole(3)) as reader:
        table = reader.table()
        check_equal(table.schema.field("payload").type, pa.binary(), "type of nothing")
        check_rows(payloads(table), [None] * 3)
        karrow.kafka_client().store(topic, [None, b'{"a": 1}', None])
        table = reader.table()
        check_types(table.schema.field("payload").type, {"a": pa.int64()})
        check_rows(payloads(table), [None, {"a": 1}, None])
        check_no_errors(table)


@case("arrow", "transactions", brokers=(KAFKA,))
def transactions(context):
    """A producer with transactions: what it aborted does not come, and offsets without a record hold nothing up."""
    karrow, topic = context.karrow, context.topic("transactions", 1)
    producer = karrow.kafka_client().producer(transactional_id=topic)
    producer.init_transactions(60)
    for part in range(6):
        producer.begin_transaction()
        for number in range(10):
            producer.produce(topic, b'{"part": %d, "number": %d}' % (part, number))
        producer.flush(60)
        producer.commit_transaction(60) if part % 2 == 0 else producer.abort_transaction(60)
    with Reader(karrow, context.unique("group"), topic) as reader:
        tables = reader.all(30)
        check_rows(sum((payloads(table) for table in tables), []),
                   [{"part": part, "number": number} for part in (0, 2, 4) for number in range(10)])
        # Each transaction ends with a mark that has an offset.
        check_equal(tables[-1].schema.metadata[b"karrow.acks"], f"{topic}:0:53".encode(), "karrow.acks")
        check_equal(reader.ack(tables[-1]), 1, "ack")
        reader.nothing()


# ---- other languages


COMPRESSIONS = ("none", "gzip", "snappy", "lz4", "zstd")


def java(compression):
    """Kafka's Java client with Apache Avro; keys, headers and times as it sent them."""
    @case("arrow", f"java-{compression}")
    def one(context):
        registry, count = context.run.registry(), 50
        command = install.java_program("kafka-clients", "Producer")
        karrow, client, pa = gateway(context, registry.url), registry.client(), libraries()
        from confluent_kafka.schema_registry import Schema
        schema = json.dumps({"type": "record", "name": "Trade", "namespace": "shop", "fields": [
            field("id", "long"), field("name", "string"),
            field("state", {"type": "enum", "name": "State", "symbols": ["NEW", "PAID"]}),
            field("price", logical("bytes", "decimal", precision=20, scale=4)),
            field("at", logical("long", "timestamp-micros")), field("note", ["null", "string"]),
            field("tags", {"type": "array", "items": "string"}), field("stock", {"type": "map", "values": "long"}),
            field("data", "bytes")]})
        topic = context.unique("trades")
        karrow.kafka_client().create_topic(topic, 1)
        number = client.register_schema(f"{topic}-value", Schema(schema, "AVRO"))
        said = run(command, "the Java producer", seconds=120, env={
            **os.environ, "BOOTSTRAP": karrow.bootstrap, "TOPIC": topic, "SCHEMA": schema, "SCHEMA_ID": str(number),
            "COUNT": str(count), "COMPRESSION": compression})
        check_equal(said.splitlines(), [f"stored 0 {offset}" for offset in range(count)], "what Java stored")
        table = read(context, karrow, topic, count)
        check_no_errors(table)
        check_types(table.schema.field("payload").type, {
            "id": pa.int64(), "name": pa.string(), "state": pa.string(), "price": pa.decimal128(20, 4),
            "at": pa.timestamp("us", "UTC"), "note": pa.string(), "tags": pa.list_(pa.string()),
            "stock": pa.map_(pa.string(), pa.int64()), "data": pa.binary()})
        instant = datetime.datetime(2023, 11, 14, 22, 13, 20, tzinfo=UTC)
        check_rows(table.select(["offset", "timestamp", "key", "headers", "payload"]).to_pylist(), [{
            "offset": n, "timestamp": instant + datetime.timedelta(milliseconds=n), "key": b"key-%d" % n,
            "headers": [{"key": "number", "value": b"%d" % n}], "payload": {
                "id": 2**63 - 1 - n, "name": f"Zoë {n}", "state": "PAID" if n % 2 else "NEW",
                "price": DECIMAL("123456789012.3400") + n,
                "at": instant + datetime.timedelta(seconds=n, microseconds=123456),
                "note": f"note {n}" if n % 3 else None, "tags": ["a", f"b{n}"], "stock": [("left", n)],
                "data": bytes([0, n, 255])}} for n in range(count)], "row")


for name in COMPRESSIONS:
    java(name)


def librdkafka(compression):
    """librdkafka's batches, compressed."""
    @case("arrow", f"librdkafka-{compression}")
    def one(context):
        karrow, topic = context.karrow, context.topic("compressed", 1)
        rows = [{"number": number, "text": "the same again and again"} for number in range(500)]
        karrow.kafka_client().store(topic, [json.dumps(row).encode() for row in rows], compression_type=compression)
        table = read(context, karrow, topic, len(rows))
        check_no_errors(table)
        check_rows(payloads(table), rows)


for name in COMPRESSIONS:
    librdkafka(name)


@case("arrow", "kafkajs")
def kafkajs(context):
    """kafkajs: plain JSON, and Avro by its client of the schema registry."""
    modules, count = install.npm_packages("kafkajs"), 20
    registry = context.run.registry()
    karrow, plain, framed = gateway(context, registry.url), context.unique("plain"), context.unique("framed")
    client, pa = karrow.kafka_client(), libraries()
    for topic in (plain, framed):
        client.create_topic(topic, 1)
    said = run(["node", install.E2E / "clients" / "kafkajs" / "produce.js"], "kafkajs", seconds=120, env={
        **os.environ, "NODE_PATH": str(modules), "BOOTSTRAP": karrow.bootstrap, "JSON_TOPIC": plain,
        "AVRO_TOPIC": framed, "REGISTRY": registry.url, "COUNT": str(count)})
    check(said.strip().endswith("done"), f"kafkajs said {said!r}")
    table = read(context, karrow, plain, count)
    check_no_errors(table)
    check_rows(table.select(["key", "headers", "payload"]).to_pylist(), [{
        "key": b"key-%d" % n, "headers": [{"key": "number", "value": b"%d" % n}],
        "payload": {"number": n, "half": n / 2, "name": f"Zoë {n}", "deep": {"list": [n, None]}}}
        for n in range(count)], "row")
    table = read(context, karrow, framed, count)
    check_no_errors(table)
    check_types(table.schema.field("payload").type, {
        "number": pa.int32(), "half": pa.float64(), "name": pa.string(), "note": pa.string()})
    check_rows(payloads(table), [{
        "number": n, "half": n / 2, "name": f"Zoë {n}", "note": "odd" if n % 2 else None} for n in range(count)])
