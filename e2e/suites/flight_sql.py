"""Owns Flight SQL with its clients: ADBC as Python has it, pandas and polars over it, Arrow's JDBC driver, and karrow's own
`client sql`: types and values, what there is to be read, parameters, columns that change, and names that are hostile."""
import datetime
import decimal
import json
import subprocess
from contextlib import contextmanager

from lib import install
from lib.cases import case
from lib.process import Failure, check, check_equal, eventually
from lib.servers import KAFKA, environment
from lib.tables import check_rows, libraries
from suites.arrow import UTC
from suites.clients import declare
from suites.flight import millis, moment

RECORDS = [{"id": 2**53 + 1, "price": 19.99, "name": "Zoë 𝄞", "paid": True, "tags": ["a", ""]}, None,
           {"id": -2**63, "price": 5, "name": None, "paid": False, "tags": []}]
HOSTILE = "it's\"; drop view x; --"
ENVELOPE = ["topic", "partition", "offset", "timestamp", "key", "headers", "payload", "error"]


def table_of(topic):
    return '"' + topic.replace('"', '""') + '"'


def records(values):
    return [{"value": value and json.dumps(value).encode(), "key": b"k\xff%d" % row, "timestamp": millis(moment(row))}
            for row, value in enumerate(values)]


def gateway(context, topics, *arguments):
    """A karrow with streams of these topics: {name: [JSON values]}; it is there when all rows can be asked for."""
    karrow = context.new_karrow(label=context.unique("sql"))
    karrow.arguments += ["--topics", ",".join(topics), "--start", "earliest", "--ttl", "1h", *arguments]
    if context.kind == KAFKA:
        for topic, values in topics.items():
            context.karrow.kafka_client().create_topic(topic, 1)
            context.karrow.kafka_client().store(topic, records(values))
    karrow.start()
    if context.kind != KAFKA:
        for topic, values in topics.items():
            karrow.kafka_client().store(topic, records(values))
    with connection(karrow) as adbc:
        for topic, values in topics.items():
            await_rows(adbc, topic, len(values))
    return karrow


@contextmanager
def connection(karrow):
    """ADBC's DBAPI with its default options; autocommit is what a server without transactions has."""
    libraries()
    from adbc_driver_flightsql import dbapi
    with dbapi.connect(f"grpc://127.0.0.1:{karrow.flight_port}", autocommit=True) as adbc:
        yield adbc


def ask(adbc, sql, parameters=None):
    with adbc.cursor() as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetch_arrow_table()


def await_rows(adbc, topic, count):
    """Before a stream has begun there is no such table."""
    def counted():
        tables = ask(adbc, "select 1 from duckdb_views() where view_name = ?", (topic,)).num_rows
        return tables and ask(adbc, f"select count(*) as n from {table_of(topic)}").to_pylist() == [{"n": count}]
    eventually(counted, f"{count} rows of {topic}")


def refused(adbc, sql, parameters=None):
    """The words of a refusal."""
    libraries()
    import adbc_driver_manager
    try:
        ask(adbc, sql, parameters)
    except adbc_driver_manager.Error as error:
        return str(error)
    raise Failure(f"{sql!r} was not refused")


@case("flight-sql", "adbc")
def adbc_(context):
    """Types and values of the envelope and of JSON; no rows; DBAPI's own fetches; errors, and that nothing is written."""
    pa, topic = libraries(), context.unique("candy")
    karrow = gateway(context, {topic: RECORDS})
    with connection(karrow) as adbc:
        table = ask(adbc, f"select * from {table_of(topic)} order by \"offset\"")
        check_equal(table.schema.names, ENVELOPE, "columns")
        check_equal([table.schema.field(name).type for name in ENVELOPE[:5]],
                    [pa.string(), pa.int32(), pa.int64(), pa.timestamp("us", "UTC"), pa.binary()], "types")
        check_rows(table.column("payload").to_pylist(), [RECORDS[0], None, {**RECORDS[2], "price": 5.0}])
        check_equal(table.column("timestamp").to_pylist(), [moment(row) for row in range(3)], "timestamps")
        check_equal(table.column("key").to_pylist(), [b"k\xff%d" % row for row in range(3)], "keys")
        none = ask(adbc, f"select * from {table_of(topic)} where false")
        check_equal((none.schema, none.num_rows), (table.schema, 0), "no rows")
        with adbc.cursor() as cursor:
            cursor.execute(f"select payload.id, payload.price from {table_of(topic)} where payload is not null order by 2")
            check_equal([column[0] for column in cursor.description], ["id", "price"], "description")
            check_equal((cursor.fetchone(), cursor.fetchall()), ((-2**63, 5.0), [(2**53 + 1, 19.99)]), "fetches")
        many = ask(adbc, "select i, 'text ' || i as t from range(300000) r(i)")
        check_equal((many.num_rows, many.column("t")[-1].as_py()), (300000, "text 299999"), "a large answer")
        for sql, why in {"selec 1": "LINE 1: selec 1", "select * from nosuch": "nosuch does not exist",
                         "select 1; select 2": "one statement is wanted", f"drop view {table_of(topic)}": "only statements that read",
                         "insert into x values (1)": "", "select error('late')": "late",
                         "from read_csv('/etc/passwd')": "the function read_csv"}.items():
            said = refused(adbc, sql)
            check(why in said and "INVALID_ARGUMENT" in said.upper().replace(" ", "_"), f"{sql!r}: {said}")
        await_rows(adbc, topic, 3)


@case("flight-sql", "adbc-metadata")
def adbc_metadata(context):
    """get_objects to the depth of columns, get_table_schema, get_table_types, get_info."""
    topic, odd = context.unique("candy"), context.unique("a.b-c_d")
    karrow = gateway(context, {topic: RECORDS, odd: [{HOSTILE: 1}]}, "--persist")
    with connection(karrow) as adbc:
        for name, count in [(topic, 3), (odd, 1)]:
            sql = "select estimated_size as n from duckdb_tables() where database_name = 'stored' and table_name = ?"
            eventually(lambda: ask(adbc, sql, (name,)).to_pylist() == [{"n": count}], f"{name} is stored")
        found = {}
        for catalog in adbc.adbc_get_objects(depth="all").read_all().to_pylist():
            for schema in catalog["catalog_db_schemas"]:
                for table in schema["db_schema_tables"]:
                    name = (catalog["catalog_name"], schema["db_schema_name"], table["table_name"])
                    found[name] = [column["column_name"] for column in table["table_columns"]]
        check_equal(found, {(catalog, "main", name): ENVELOPE for catalog in ("live", "memory", "stored")
                            for name in (topic, odd)},
                    "objects")
        for catalog, schema, name in found:
            rows = ask(adbc, f"select * from {catalog}.{schema}.{table_of(name)}")
            # Where a client names no catalog, any table of this name will do.
            described = adbc.adbc_get_table_schema(name, catalog_filter=catalog, db_schema_filter=schema)
            check_equal(described, rows.schema, f"columns of {catalog}.{schema}.{name}")
        only = adbc.adbc_get_objects(depth="tables", table_name_filter=topic, catalog_filter="live").read_all().to_pylist()
        names = [table["table_name"] for catalog in only for schema in catalog["catalog_db_schemas"] or []
                 for table in schema["db_schema_tables"]]
        check_equal(names, [topic], "a filter")
        check_equal(sorted(adbc.adbc_get_table_types()), ["TABLE", "VIEW"], "table types")
        info = adbc.adbc_get_info()
        check_equal(info["vendor_name"], "karrow", "vendor")
        check(info["vendor_version"], f"a version: {info}")


@case("flight-sql", "adbc-parameters")
def adbc_parameters(context):
    """Python's values come back as they were, with DuckDB's types; several rows, and too few, are refused."""
    topic = context.unique("candy")
    karrow = gateway(context, {topic: RECORDS})
    when = datetime.datetime(2024, 2, 29, 1, 2, 3, 456789)
    with connection(karrow) as adbc:
        for value, kind in [(1, "BIGINT"), (2**63 - 1, "BIGINT"), (0.1, "DOUBLE"), (HOSTILE, "VARCHAR"), (True, "BOOLEAN"),
                            (b"\x00\xff", "BLOB"), (datetime.date(2024, 2, 29), "DATE"), (when, "TIMESTAMP"),
                            (when.replace(tzinfo=UTC), "TIMESTAMP WITH TIME ZONE"), (when.time(), "TIME"),
                            (decimal.Decimal("-12345678901234567890.12"), "DECIMAL(22,2)")]:
            row = ask(adbc, "select ? as value, typeof($1) as kind", (value,)).to_pylist()
            check_equal(row, [{"value": value, "kind": kind}], repr(value))
        check_equal(ask(adbc, "select ? is null as yes", (None,)).to_pylist(), [{"yes": True}], "None")
        sql = f"select \"offset\" as o from {table_of(topic)} where payload.name = ? or payload.price < ?"
        check_equal(ask(adbc, sql, ("Zoë 𝄞", 0.5)).to_pylist(), [{"o": 0}], "rows")
        check_equal(ask(adbc, sql, ("' or 1 = 1 --", 5.5)).to_pylist(), [{"o": 2}], "other rows")
        check("has 1 parameters, not 2" in refused(adbc, "select ?", (1, 2)), "too many")
        with adbc.cursor() as cursor:
            described = cursor.adbc_prepare(f"{sql} and \"timestamp\" > ? and partition = $4")
            check_equal([str(one.type) for one in described], ["string", "double", "timestamp[ms, tz=UTC]", "int32"],
                        "types of parameters")


@case("flight-sql", "pandas")
def pandas_(context):
    """pandas.read_sql over ADBC, for which it takes no parameters."""
    topic = context.unique("candy")
    karrow = gateway(context, {topic: RECORDS})
    libraries()
    import pandas
    with connection(karrow) as adbc:
        sql = f"select \"offset\", payload.price, payload.name from {table_of(topic)} where \"offset\" <> 1 order by 1"
        frame = pandas.read_sql(sql, adbc)
        check_equal(frame["offset"].tolist(), [0, 2], "offsets")
        check_equal(frame["price"].tolist(), [19.99, 5.0], "prices")
        check_equal(str(frame["price"].dtype), "float64", "the type of prices")


@case("flight-sql", "polars")
def polars_(context):
    """polars.read_database over ADBC."""
    topic = context.unique("candy")
    karrow = gateway(context, {topic: RECORDS})
    libraries()
    import polars
    with connection(karrow) as adbc:
        frame = polars.read_database(f"select \"timestamp\" as at, payload.* from {table_of(topic)} order by 1", adbc)
        check_equal(frame.columns, ["at", *RECORDS[0]], "columns")
        check_equal(frame["id"].to_list(), [2**53 + 1, None, -2**63], "ids")
        check_equal(frame["tags"].to_list(), [["a", ""], None, []], "tags")
        check_equal(frame["at"].to_list(), [moment(row) for row in range(3)], "times")


@case("flight-sql", "evolution")
def evolution(context):
    """The columns of a topic change while one connection asks on: each answer has the columns of its own time."""
    topic = context.unique("candy")
    karrow = gateway(context, {topic: [{"n": 0}]})
    changes = [({"n": 1}, {"n": "int64"}), ({"n": 2, "new": {"x": 1}}, {"n": "int64", "new": "struct<x: int64>"}),
               ({"n": 0.5}, {"n": "double", "new": "struct<x: int64>"}),
               ({"n": "text", "new": {"y": "z"}}, {"n": "string", "new": "struct<x: int64, y: string>"})]
    with connection(karrow) as adbc, adbc.cursor() as prepared:
        sql = f"select payload, error from {table_of(topic)} order by \"offset\""
        for at, (value, types) in enumerate(changes):
            karrow.kafka_client().store(topic, records([value]))
            await_rows(adbc, topic, at + 2)
            # The same text again is the same prepared statement to the client.
            prepared.execute(sql)
            table = prepared.fetch_arrow_table()
            payload = table.schema.field("payload").type
            check_equal({one.name: str(one.type) for one in payload}, types, f"types after {value}")
            check_equal(table.column("error").null_count, at + 2, f"rows without an error after {value}")
            check_equal(adbc.adbc_get_table_schema(topic).field("payload").type, payload, "GetTables")
        check_equal([row["payload"]["n"] for row in table.to_pylist()], ["0", "1", "2", "0.5", "text"], "values")


@case("flight-sql", "injection")
def injection(context):
    """Names of topics, keys of JSON and values are what they are, whatever is in them."""
    odd, other = context.unique("a.b-c_d"), context.unique("Select")
    keys = [HOSTILE, "; drop view y", "a\"b", "a'b", "--", "/*", "$1", "?", "\\", "é\n\t", "select", "A", "a"]
    karrow = gateway(context, {odd: [{key: at for at, key in enumerate(keys)}], other: [{"v": HOSTILE}]})
    with connection(karrow) as adbc:
        row = ask(adbc, f"select payload.* from {table_of(odd)}").to_pylist()
        names = {key: at for at, key in enumerate(keys)}
        # SQL does not tell A from a.
        names["a_1"] = names.pop("a")
        check_equal(row, [names], "keys")
        for key, at in names.items():
            quoted = table_of(key)
            check_equal(ask(adbc, f"select payload.{quoted} as v from {table_of(odd)} where payload.{quoted} = ?", (at,))
                        .to_pylist(), [{"v": at}], f"the key {key!r}")
        check_equal(ask(adbc, f"select \"offset\" as o from {table_of(other)} where payload.v = ?", (HOSTILE,)).to_pylist(),
                    [{"o": 0}], "a value")
        check_equal(ask(adbc, f"select * from {table_of(other)} where payload.v = ?", ("' or 'a' = 'a",)).num_rows, 0,
                    "another value")
        check_equal(adbc.adbc_get_table_schema(odd).names, ENVELOPE, "the topic is there")


@case("flight-sql", "client")
def client(context):
    """`karrow client sql`: a table, JSON, CSV, Arrow, Parquet, a statement from stdin, and what is wrong."""
    pa, topic = libraries(), context.unique("candy")
    karrow = gateway(context, {topic: RECORDS})
    sql = f"select \"offset\", payload.name, payload.tags from {table_of(topic)} order by 1"

    def run(*arguments, stdin=""):
        command = [karrow.binary, "client", "sql", "--server", f"http://127.0.0.1:{karrow.flight_port}", *arguments]
        done = subprocess.run([str(part) for part in command], input=stdin.encode(), capture_output=True, timeout=60,
                              env=environment(), cwd=karrow.folder)
        return done.returncode, done.stdout, done.stderr.decode()

    want = [{"offset": 0, "name": "Zoë 𝄞", "tags": ["a", ""]}, {"offset": 1}, {"offset": 2, "tags": []}]
    code, out, said = run("--output", "json", sql)
    rows = [{name: value for name, value in json.loads(line).items() if value is not None} for line in out.splitlines()]
    check_equal((code, rows, said), (0, want, ""), "JSON")
    code, out, _ = run("-", "--output", "csv", stdin=sql)
    check_equal((code, out.decode().splitlines()[:2]), (0, ["offset,name,tags", '0,Zoë 𝄞,"[""a"",""""]"']), "CSV from stdin")
    code, out, _ = run(sql)
    check_equal((code, out.decode().splitlines()[0].split()), (0, ["offset", "name", "tags"]), "a table")
    _, out, _ = run("--output", "arrow", sql)
    streamed = pa.ipc.open_stream(out).read_all()
    check_equal([row["offset"] for row in streamed.to_pylist()], [0, 1, 2], "Arrow")
    code, _, said = run("--file", "rows.parquet", sql)
    import pyarrow.parquet
    stored = pyarrow.parquet.read_table(karrow.folder / "rows.parquet")
    check_equal((code, stored.to_pylist(), said), (0, streamed.to_pylist(), "karrow: 3 rows are in rows.parquet\n"), "Parquet")
    code, out, said = run("select nosuch\nfrom range(3)")
    check_equal((code, out), (64, b""), "a column that is not there")
    check("\nLINE 1: select nosuch" in said and said.rstrip().endswith("^"), f"the place in the statement: {said}")
    code, _, said = run(f"select case when \"offset\" = 2 then error('late') end as a from {table_of(topic)}")
    check(code in (1, 64) and "late" in said, f"a late error: {code} {said}")


STEPS = ["connect", "about", "catalogs", "tables", "columns", "query", "getters", "prepared", "parameter-types",
         "errors", "users"]


def jdbc():
    return install.java_program("flight-sql-jdbc", "Questions", "--add-opens=java.base/java.nio=ALL-UNNAMED"), {}


def questions(context, topic):
    name, odd = context.unique("candy"), context.unique("a.b-c_d")
    karrow = gateway(context, {name: RECORDS, odd: [{"it's\"; drop view x; --": 1}]})
    return {"FLIGHT_PORT": str(karrow.flight_port), "TOPIC": name, "ODD_TOPIC": odd}


declare("flight-sql-jdbc", jdbc, STEPS, questions)
