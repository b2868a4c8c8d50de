"""Owns the proof that schemas which users give, or which JSONSerializer registers, are the types of the columns: also of
those that no record has."""
import datetime
import decimal
import json

from lib.cases import case
from lib.process import check, check_equal
from lib.tables import check_no_errors, check_rows, check_types, errors, libraries, payloads
from suites.arrow import UTC, fill, gateway, read

DECIMAL = decimal.Decimal


def order_schema():
    """As an application of pyarrow has it; karrow makes every column nullable, because a JSON field may be absent."""
    pa = libraries()
    return pa.schema([
        pa.field("id", pa.int64(), nullable=False), ("small", pa.int8()), ("count", pa.uint32()),
        ("ratio", pa.float32()), ("paid", pa.bool_()), ("name", pa.string()), ("data", pa.binary()),
        ("price", pa.decimal128(10, 2)), ("wide", pa.decimal256(50, 10)), ("day", pa.date32()),
        ("opens", pa.time64("us")), ("created", pa.timestamp("ms", "UTC")), ("local", pa.timestamp("us")),
        ("tags", pa.list_(pa.string())), ("who", pa.struct([("name", pa.string()), ("age", pa.int16())])),
        ("lines", pa.list_(pa.struct([("sku", pa.string()), ("qty", pa.int32())]))),
        ("stock", pa.map_(pa.string(), pa.int64()))])


@case("arrow", "arrow-schema")
def arrow_schema(context):
    """A schema that pyarrow serializes, given in karrow.toml: the table has it exactly; what does not fit is a bad row."""
    pa, topic = libraries(), context.unique("orders")
    schema, path = order_schema(), context.run.folder / f"{topic}.arrow"
    path.write_bytes(schema.serialize().to_pybytes())
    karrow = gateway(context, config=f'[topic.{topic}]\npayload = "json"\npayload-schema = "{path}"\n')
    nothing = dict.fromkeys(schema.names)
    full = {
        "id": 2**63 - 1, "small": -128, "count": 2**32 - 1, "ratio": 0.25, "paid": False, "name": "Zoë 𝄞",
        "data": "AP+A", "price": "-19.99", "wide": "1234567890123456789012345678901234567890.0123456789",
        "day": "2024-02-29", "opens": "23:59:59.999999", "created": "2024-02-29T12:30:15.123+01:00",
        "local": "2024-03-31T02:30:00.000001", "tags": ["a", None], "who": {"name": "Ann", "age": 41},
        "lines": [{"sku": "x", "qty": 2}, {}], "stock": {"left": 2**60, "right": -1}}
    wrong = [("small", 128), ("count", -1), ("id", 1.5), ("id", "1"), ("ratio", 2**24 + 1), ("price", 19.999),
             ("day", "2023-02-29"), ("created", "2024-02-29T12:30:15.1234Z"), ("local", "2024-02-29T12:30:15Z"),
             ("who", {"age": 40_000}), ("lines", [{"qty": "many"}]), ("stock", {"left": []})]
    records = [{"id": 1}, full, {}] + [{name: value} for name, value in wrong]
    fill(karrow, topic, [json.dumps(record).encode() for record in records])
    table = read(context, karrow, topic, len(records))
    got = table.schema.field("payload").type
    nullable = [field.with_nullable(True) for field in schema]
    check_equal(pa.schema(list(got)), pa.schema(nullable), "the schema of the table")
    check(all(field.nullable for field in got), "every column is nullable")
    check_rows(payloads(table), [
        {**nothing, "id": 1},
        {**full, "data": b"\x00\xff\x80", "price": DECIMAL("-19.99"),
         "wide": DECIMAL("1234567890123456789012345678901234567890.0123456789"), "day": datetime.date(2024, 2, 29),
         "opens": datetime.time(23, 59, 59, 999999),
         "created": datetime.datetime(2024, 2, 29, 11, 30, 15, 123000, tzinfo=UTC),
         "local": datetime.datetime(2024, 3, 31, 2, 30, 0, 1),
         "lines": [{"sku": "x", "qty": 2}, {"sku": None, "qty": None}], "stock": [("left", 2**60), ("right", -1)]},
        nothing] + [None] * len(wrong))
    found = errors(table)
    check_equal(sorted(found), list(range(3, len(records))), "the bad rows")
    for row, (name, value) in enumerate(wrong, 3):
        message, raw = found[row]
        check(message.startswith(f"payload: {name}"), f"row {row} does not name {name}: {message}")
        check_equal(json.loads(raw), {name: value}, f"the bytes of row {row}")


@case("arrow", "arrow-columns")
def arrow_columns(context):
    """Types as pyarrow prints them, pasted into karrow.toml, for JSON and for lines of Python's csv."""
    import csv
    import io
    pa, orders, lines = libraries(), context.unique("orders"), context.unique("lines")
    schema = order_schema()
    table = "\n".join(f'{field.name} = "{field.type}"' for field in schema)
    karrow = gateway(context, config=f"""
[topic.{orders}.columns]
{table}
[topic.{lines}]
payload = "csv"
columns = {{ zip = "string", count = "int32", price = "decimal128(8, 2)", at = "timestamp[s, tz=UTC]" }}
""")
    fill(karrow, orders, [b'{"other": [1.50], "id": 7}'])
    table = read(context, karrow, orders, 1)
    check_no_errors(table)
    struct = table.schema.field("payload").type
    wanted = [field.with_nullable(True) for field in schema] + [pa.field("_more", pa.string())]
    check_equal(pa.schema(list(struct)), pa.schema(wanted), "the schema of the table")
    check_rows(payloads(table), [{**dict.fromkeys(schema.names), "id": 7, "_more": '{"other":[1.50]}'}])

    def line(*values):
        text = io.StringIO()
        csv.writer(text, quoting=csv.QUOTE_NONNUMERIC).writerow(values)
        return text.getvalue().encode()
    fill(karrow, lines, [line("007", 7, 1.5, "2024-02-29T12:00:00Z"), line("08", "9", "0010.00", None),
                         line("1", 2**31, 1, None)])
    table = read(context, karrow, lines, 3)
    check_types(table.schema.field("payload").type, {
        "zip": pa.string(), "count": pa.int32(), "price": pa.decimal128(8, 2), "at": pa.timestamp("s", "UTC")})
    check_equal(sorted(errors(table)), [2], "the bad rows")
    check_rows(payloads(table), [
        {"zip": "007", "count": 7, "price": DECIMAL("1.50"), "at": datetime.datetime(2024, 2, 29, 12, tzinfo=UTC)},
        {"zip": "08", "count": 9, "price": DECIMAL("10.00"), "at": None}, None])


@case("arrow", "json-schema-types")
def json_schema_types(context):
    """JSONSerializer, with a schema of another subject: fields that no record has are typed; two schemas unite."""
    pa = libraries()
    from confluent_kafka.schema_registry import Schema
    from confluent_kafka.schema_registry.json_schema import JSONSerializer
    from confluent_kafka.schema_registry.schema_registry_client import SchemaReference
    from confluent_kafka.serialization import MessageField, SerializationContext
    registry = context.run.registry()
    client, karrow = registry.client(), gateway(context, registry.url)
    topic, person = context.unique("orders"), context.unique("person")
    draft = "http://json-schema.org/draft-07/schema#"
    client.register_schema(person, Schema(json.dumps({
        "$schema": draft, "$id": f"http://karrow.test/{person}.json", "type": "object",
        "properties": {"name": {"type": "string"}, "born": {"type": "string", "format": "date"}}}), "JSON"))

    def write(properties, references=(), **more):
        schema = json.dumps({"$schema": draft, "title": "Order", "type": "object", "properties": properties, **more})
        schema = Schema(schema, "JSON", list(references))
        serializer = JSONSerializer(schema, client, conf={"normalize.schemas": False})
        return lambda value: serializer(value, SerializationContext(topic, MessageField.VALUE))
    reference = SchemaReference(f"http://karrow.test/{person}.json", person, 1)
    first = write({
        "id": {"type": "integer"}, "price": {"type": "integer"}, "note": {"type": ["string", "null"]},
        "at": {"type": "string", "format": "date-time"}, "stock": {"type": "object", "additionalProperties": {
            "type": "integer"}},
        "lines": {"type": "array", "items": {"$ref": "#/definitions/line"}},
        "who": {"$ref": f"http://karrow.test/{person}.json"}},
        [reference], definitions={"line": {"type": "object", "properties": {"sku": {"type": "string"}}}})
    second = write({"id": {"type": "integer"}, "price": {"type": "number"}, "flag": {"type": "boolean"}})
    records = [first({"id": 1}), first({"id": 2, "at": "2024-02-29T12:00:00+02:00", "stock": {"left": 3}, "price": 1}),
               second({"id": 3})]
    table = read(context, karrow, fill(karrow, topic, records), len(records))
    check_no_errors(table)
    check_types(table.schema.field("payload").type, {
        "id": pa.int64(), "price": pa.float64(), "note": pa.string(), "at": pa.timestamp("us", "UTC"),
        "stock": pa.map_(pa.string(), pa.int64()), "lines": pa.list_(pa.struct([("sku", pa.string())])),
        "who": pa.struct([("name", pa.string()), ("born", pa.date32())]), "flag": pa.bool_()})
    nothing = dict.fromkeys(["id", "price", "note", "at", "stock", "lines", "who", "flag"])
    check_rows(payloads(table), [
        {**nothing, "id": 1},
        {**nothing, "id": 2, "price": 1.0, "stock": [("left", 3)],
         "at": datetime.datetime(2024, 2, 29, 10, tzinfo=UTC)},
        {**nothing, "id": 3}])
