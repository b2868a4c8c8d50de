"""Owns asking SQL: formats with exact values, names and parameters of any kind, what is refused, limits, named queries."""
import base64
import concurrent.futures
import csv
import datetime
import decimal
import io
import itertools
import json
import math
import re
import threading
import time
import urllib.parse

from lib.cases import case
from lib.process import Failure, check, check_equal, eventually
from lib.resp import ReplyError
from lib.servers import refuses_to_start
from lib.sql import Sql, quoted, storing
from lib.tables import check_rows, libraries

UTC = datetime.timezone.utc
# Runs for hours, in little memory.
FOREVER = "select count(*) from range(10000000) a(i), range(10000000) b(j) where (i * j) % 7 = 3"
ENDLESS = "select i, repeat('x', 100) as text from range(10000000000) t(i)"
SLOW = "sql-time = \"60s\"\nsql-concurrency = 2\n"


def gateway(context, *arguments, config=None):
    """A karrow of the case's own that stores nothing."""
    karrow = context.new_karrow(label=context.unique("karrow"))
    karrow.arguments += arguments
    if config:
        path = karrow.folder / "karrow.toml"
        path.write_text(config)
        karrow.arguments += ["-c", path]
    return karrow.start()


def fill(context, karrow, topic, records):
    """JSON in the topic, all of it in the window and in the table."""
    karrow.kafka_client().store(topic, [json.dumps(record).encode() for record in records])
    sql = Sql(karrow)
    sql.seen(topic, len(records))
    sql.stored(topic, len(records))
    return sql


# ---- Formats

VALUES = """select * from (values
    (9223372036854775807::bigint, 18446744073709551615::ubigint, 0.1::double, 'nan'::double, 12.50::decimal(10, 2), true,
     'a,"b' || chr(10) || 'ü', date '2024-02-29', timestamp '2024-02-29 12:00:00.123456',
     timestamptz '2024-02-29 12:00:00.123+02', '\\x00\\xFF'::blob, {'a': [1, null], 'b': {'c': 'x'}}, map {'k': 1.5::double}),
    ((-9223372036854775807 - 1)::bigint, 0, '-0.0', 'infinity', -0.01, false, '', date '0001-01-01', timestamp '1969-12-31 23:59:59.999999',
     timestamptz '1970-01-01 00:00:00+00', ''::blob, {'a': [], 'b': null}, map {}),
    (null, null, null, null, null, null, null, null, null, null, null, null, null)
  ) t(big, ubig, double, nan, dec, bool, text, day, moment, instant, bytes, nested, pairs)"""

ROWS = [
    {"big": 2**63 - 1, "ubig": 2**64 - 1, "double": 0.1, "nan": math.nan, "dec": decimal.Decimal("12.50"), "bool": True,
     "text": 'a,"b\nü', "day": datetime.date(2024, 2, 29), "moment": datetime.datetime(2024, 2, 29, 12, 0, 0, 123456),
     "instant": datetime.datetime(2024, 2, 29, 10, 0, 0, 123000, tzinfo=UTC), "bytes": b"\0\xff",
     "nested": {"a": [1, None], "b": {"c": "x"}}, "pairs": [("k", 1.5)]},
    {"big": -2**63, "ubig": 0, "double": -0.0, "nan": math.inf, "dec": decimal.Decimal("-0.01"), "bool": False, "text": "",
     "day": datetime.date(1, 1, 1), "moment": datetime.datetime(1969, 12, 31, 23, 59, 59, 999999),
     "instant": datetime.datetime(1970, 1, 1, tzinfo=UTC), "bytes": b"", "nested": {"a": [], "b": None}, "pairs": []},
    dict.fromkeys("big ubig double nan dec bool text day moment instant bytes nested pairs".split()),
]

# The same, as JSON has them; numbers are compared by their digits.
JSON_ROWS = [
    {"big": 2**63 - 1, "ubig": 2**64 - 1, "double": "0.1", "nan": "NaN", "dec": "12.50", "bool": True,
     "text": 'a,"b\nü', "day": "2024-02-29", "moment": "2024-02-29T12:00:00.123456", "instant": "2024-02-29T10:00:00.123Z",
     "bytes_base64": "AP8=", "nested": {"a": [1, None], "b": {"c": "x"}}, "pairs": {"k": "1.5"}},
    {"big": -2**63, "ubig": 0, "double": "-0.0", "nan": "Infinity", "dec": "-0.01", "bool": False, "text": "",
     "day": "0001-01-01", "moment": "1969-12-31T23:59:59.999999", "instant": "1970-01-01T00:00:00Z", "bytes": "",
     "nested": {"a": [], "b": None}, "pairs": {}},
    dict.fromkeys("big ubig double nan dec bool text day moment instant bytes nested pairs".split()),
]

MEDIA_TYPES = {"json": "application/json", "ndjson": "application/x-ndjson", "csv": "text/csv; charset=utf-8",
               "arrow": "application/vnd.apache.arrow.stream"}


@case("sql", "formats")
def formats(context):
    """JSON, NDJSON, CSV and Arrow, by Accept and by format=, over GET and POST: exact values at their edges; over Redis's
    protocol the same bytes."""
    pa, karrow = libraries(), context.karrow
    sql = Sql(karrow)
    bodies = {}
    for name, media_type in MEDIA_TYPES.items():
        kind = media_type.split(";")[0]
        answers = {
            "GET format=": sql.get("/v1/sql", q=VALUES, format=name),
            "GET Accept": sql.get("/v1/sql", accept=f"text/html, {kind};q=0.9", q=VALUES),
            "POST of SQL, Accept": sql.post(VALUES, accept=kind),
            "POST of JSON, format": sql.post({"query": VALUES, "format": name}),
            "POST of SQL, format=": sql.post(VALUES, path=f"/v1/sql?format={name}", accept="application/json"),
        }
        for how, answer in answers.items():
            check_equal((answer.status, answer.media_type), (200, media_type), f"{name} by {how}: {answer.body[:200]!r}")
        bodies[name] = answers["GET format="].body
        bytes_of = {how: answer.body for how, answer in answers.items()}
        bytes_of["SQL … of Redis's protocol"] = sql.resp("SQL", VALUES, name)
        bytes_of["SQL … FORMAT"] = sql.resp("SQL", VALUES, "FORMAT", name.upper())
        for how, body in bytes_of.items():
            if name == "arrow":  # what lies beneath its nulls is the next case's
                check_rows(pa.ipc.open_stream(body).read_all().to_pylist(), ROWS, f"Arrow by {how}")
            else:
                check_equal(body, bodies[name], f"{name} by {how}")
    check_equal(sql.resp("SQL", VALUES), bodies["json"], "SQL without a format")
    check_equal(json.loads(bodies["json"], parse_float=str), JSON_ROWS, "JSON")
    check_equal([json.loads(line, parse_float=str) for line in bodies["ndjson"].splitlines()], JSON_ROWS, "NDJSON")
    pa.ipc.open_stream(bodies["arrow"]).read_all().validate(full=True)
    rows = list(csv.DictReader(io.StringIO(bodies["csv"].decode(), newline="")))
    wanted = {"big": ["9223372036854775807", "-9223372036854775808", ""], "ubig": ["18446744073709551615", "0", ""],
              "double": ["0.1", "-0.0", ""], "dec": ["12.50", "-0.01", ""], "bool": ["true", "false", ""],
              "text": ['a,"b\nü', "", ""], "day": ["2024-02-29", "0001-01-01", ""], "nested.a": ["[1,null]", "[]", ""]}
    for column, texts in wanted.items():
        check_equal([row[column] for row in rows], texts, f"column {column} of CSV")
    check_equal([base64.b64decode(row["bytes_base64"]) for row in rows][:1], [b"\0\xff"], "bytes in CSV")


@case("sql", "nothing-beneath-nulls")
def nothing_beneath_nulls(context):
    """Where a value is null, an Arrow stream has zeros, and nothing of karrow's memory: the same answer has the same bytes."""
    sql = Sql(context.karrow)
    nulls = ("select case when i % 2 = 0 then i::bigint end as n, case when i % 3 = 0 then i::double end as d, "
             "case when i % 5 = 0 then i::hugeint end as h, case when i % 2 = 1 then {'x': i::bigint} end as s "
             "from range(5000) t(i)")
    for query in (VALUES, nulls):
        for ask in (lambda: sql.get("/v1/sql", q=query, format="arrow").body, lambda: sql.resp("SQL", query, "arrow")):
            bodies = [ask() for _ in range(20)]
            differing = {at for body in bodies for at, (one, other) in enumerate(zip(bodies[0], body)) if one != other}
            check(not differing, f"{len(set(bodies))} answers of 20 differ, in {len(differing)} bytes: {query[:60]}")


@case("sql", "empty-answers")
def empty_answers(context):
    """No rows are an answer in each format, with its columns where the format has such; and an answer of no records."""
    pa, sql = libraries(), Sql(context.karrow)
    nothing = "select 1::bigint as a, 'x' as b where false"
    check_equal(sql.rows(nothing), [], "JSON")
    check_equal(sql.get("/v1/sql", q=nothing, format="ndjson").body, b"", "NDJSON")
    check_equal(sql.get("/v1/sql", q=nothing, format="csv").body.splitlines(), [b"a,b"], "CSV")
    schema = pa.ipc.open_stream(sql.get("/v1/sql", q=nothing, format="arrow").body).read_all().schema
    check_equal({field.name: field.type for field in schema}, {"a": pa.int64(), "b": pa.string()}, "Arrow")
    check_equal(sql.rows("select 1 as a, 2 as a, 3 as A"), [{"a": 1, "a_1": 2, "A": 3}], "columns of one name")


@case("sql", "odd-types")
def odd_types(context):
    """Types that only DuckDB has: every format says them in words or numbers that can be read (bits as DuckDB holds them)."""
    pa, sql = libraries(), Sql(context.karrow)
    for expression, text in [
        ("interval '1 month 2 days'", None), ("'0101'::bit", None), ("99999999999999999999999999999999999999::hugeint",
                                                                       99999999999999999999999999999999999999),
        ("'00000000-0000-0000-0000-00000000000a'::uuid", "00000000-0000-0000-0000-00000000000a"),
        ("'y'::enum('x', 'y')", "y"), ("union_value(k := 1)", {"k": 1}), ("[1, 2]::integer[2]", [1, 2]),
        ("time '23:59:59.999999'", "23:59:59.999999"), ("timestamp_ns '2024-02-29 12:00:00.123456789'", "2024-02-29T12:00:00.123456789"),
        ("'{\"a\": 1}'::json", None), ("null", None),
    ]:
        query = f"select {expression} as v"
        row = sql.rows(query)[0]
        if text is not None:
            check_equal(row, {"v": text}, f"{expression} in JSON")
        table = pa.ipc.open_stream(sql.get("/v1/sql", q=query, format="arrow").body).read_all()
        table.validate(full=True)
        check_equal((len(table), sql.get("/v1/sql", q=query, format="csv").status), (1, 200), f"{expression} in Arrow, CSV")
    sql.refused("select 170141183460469231731687303715884105727::hugeint as v", "38 digits")


@case("sql", "pandas-and-polars")
def pandas_and_polars(context):
    """pandas and polars read Arrow and CSV from /v1/sql; pandas from the URL, as its users do."""
    pa = libraries()
    import pandas
    import polars
    sql, query, records = frames(context)
    arrow = sql.get("/v1/sql", q=query, format="arrow").body
    for how, rows in {
        "pyarrow to pandas": pa.ipc.open_stream(arrow).read_pandas().to_dict("records"),
        "pandas from CSV": pandas.read_csv(url_of(sql, query)).to_dict("records"),
        "polars from Arrow": polars.read_ipc_stream(io.BytesIO(arrow)).to_dicts(),
        "polars from CSV": polars.read_csv(sql.get("/v1/sql", q=query, format="csv").body).to_dicts(),
    }.items():
        check_rows(rows, records, how)


def frames(context):
    """A topic, a query of it, and its rows."""
    topic = context.unique("frames")
    karrow = storing(context, {topic: 2})
    records = [{"id": number, "name": f"n{number}", "price": number / 4} for number in range(1000)]
    sql = fill(context, karrow, topic, records)
    return sql, f"select payload.id as id, payload.name as name, payload.price as price from {quoted(topic)} order by id", records


def url_of(sql, query):
    return f"http://127.0.0.1:{sql.karrow.http_port}/v1/sql?" + urllib.parse.urlencode({"q": query, "format": "csv"})


@case("sql", "bad-requests")
def bad_requests(context):
    """What is wrong with a request is a 400 in words; unknown queries are a 404; and the same over Redis's protocol."""
    sql = Sql(context.karrow)
    for what, answer, status, words in [
        ("no q", sql.get("/v1/sql"), 400, ["q is missing"]),
        ("format", sql.get("/v1/sql", q="select 1", format="xml"), 400, ["'xml'", "json, ndjson, csv or arrow"]),
        ("a parameter twice", sql.get("/v1/sql?q=select+$a&a=1&a=2"), 400, ["'a' is there twice"]),
        ("no JSON", sql.post(b"{", content_type="application/json"), 400, ["no JSON object"]),
        ("no object", sql.post(b"[1]", content_type="application/json"), 400, ["no JSON object"]),
        ("no query", sql.post({"params": []}), 400, ["'query'"]),
        ("query of a number", sql.post({"query": 1}), 400, ["'query'"]),
        ("unknown field", sql.post({"query": "select 1", "parameters": []}), 400, ["'parameters'"]),
        ("params of text", sql.post({"query": "select 1", "params": "x"}), 400, ["params"]),
        ("nested params", sql.post({"query": "select ?", "params": [[1]]}), 400, ["no single value"]),
        ("format of a number", sql.post({"query": "select 1", "format": 1}), 400, ["format"]),
        ("no UTF-8", sql.post(b"select '\xff'"), 400, ["UTF-8"]),
        ("a zero byte", sql.post("select '\0'"), 400, ["zero byte"]),
        ("nothing", sql.post(""), 400, ["no statement"]),
        ("a comment", sql.post("-- nothing"), 400, ["no statement"]),
        ("too few", sql.post({"query": "select ?, ?", "params": [1]}), 400, ["2 parameters, not 1"]),
        ("too many", sql.post({"query": "select ?", "params": [1, 2]}), 400, ["1 parameters, not 2"]),
        ("missing", sql.post({"query": "select $a, $b", "params": {"a": 1}}), 400, ["'b' is missing"]),
        ("unknown", sql.post({"query": "select $a", "params": {"a": 1, "b": 2}}), 400, ["no parameter 'b'"]),
        ("too large", sql.post("select '" + "x" * (1 << 20) + "'"), 400, ["1048576 bytes"]),
        ("unknown query", sql.get("/v1/queries/nosuch"), 404, ["'nosuch'"]),
        ("unknown query, posted", sql.post({"params": {}}, path="/v1/queries/nosuch"), 404, ["'nosuch'"]),
        ("no path", sql.get("/v1/nosuch"), 404, ["/v1/nosuch", "/v1/sql"]),
        ("no method", sql.post({}, path="/v1/streams"), 405, ["/v1/streams", "POST"]),
        ("nothing accepted", sql.get("/v1/sql", q="select 1", accept="text/html, application/xml;q=0.9"), 406,
         [kind.split(";")[0] for kind in MEDIA_TYPES.values()]),
    ]:
        check_equal(answer.status, status, f"status of {what}: {answer.body[:300]!r}")
        text = answer.error()
        check(all(word in text for word in words), f"{what}: {text!r} does not say {words}")
    for arguments, words in [(("SQL",), ["arguments"]), (("SQL", "select 1", "xml"), ["'xml'"]),
                             (("SQL", "select", "1", "x", "y"), ["quote"]), (("SQL", b"select '\xff'"), ["UTF-8"]),
                             (("SQL.CALL",), ["arguments"]), (("SQL.CALL", "nosuch"), ["'nosuch'"]),
                             (("SQL.CALL", "nosuch", "p"), ["'p' has no value"])]:
        text = sql.resp_refused(*arguments)
        check(all(word in text for word in words) and "\n" not in text, f"{arguments}: {text!r} does not say {words}")
    check_equal(sql.rows("select 1 as a"), [{"a": 1}], "and then")


@case("sql", "parameters-have-types")
def parameters_have_types(context):
    """Parameters in the body keep the types of JSON, at their edges; those of a URL are text that DuckDB casts."""
    sql = Sql(context.karrow)
    row = sql.rows("select typeof($i) as i, typeof($d) as d, typeof($t) as t, typeof($b) as b, $n is null as n",
                   i=2**63 - 1, d=0.5, t="x", b=True, n=None)
    check_equal(row, [{"i": "BIGINT", "d": "DOUBLE", "t": "VARCHAR", "b": "BOOLEAN", "n": True}], "types")
    check_equal(sql.one("select $u::ubigint as u", u=2**64 - 1), 2**64 - 1, "unsigned")
    check_equal(sql.post({"query": "select ? + ? as s", "params": [1, 2]}).rows(), [{"s": 3}], "positions")
    check_equal(sql.get("/v1/sql", q="select $n::bigint + 1 as n", n=str(2**62)).rows(), [{"n": 2**62 + 1}], "URL")
    check_equal(sql.post("select $n::bigint as n", path="/v1/sql?n=7").rows(), [{"n": 7}], "URL of POST")


@case("sql", "errors-of-rows")
def errors_of_rows(context):
    """An error that only running finds, in the first row: it has a status and a text over HTTP, too. One behind rows that
    were sent cuts the answer off, so that nobody takes it for a whole one."""
    sql = Sql(context.karrow)
    for query, words in [("select 'x'::integer as n", ["'x'", "line 1"]), ("select error('said so') as e", ["said so"]),
                         ("select ('x' || range)::integer as n from range(3)", ["'x0'"])]:
        text = sql.resp_refused("SQL", query)
        check(all(word in text for word in words[:1]), f"`{query}` over Redis's protocol: {text!r}")
        sql.refused(query, *words)
    late = "select (case when i = 3000000 then 'x' else '1' end)::integer as n from range(4000000) t(i)"
    for name in MEDIA_TYPES:
        try:
            answer = sql.get("/v1/sql", q=late, format=name)
        except Failure as cut:
            check("cut off" in str(cut), str(cut))
        else:
            raise Failure(f"{name}: an answer with an error in its middle ended with status {answer.status}, "
                          f"{len(answer.body)} bytes")


# ---- Names


@case("sql", "topic-names")
def topic_names(context):
    """Topics that SQL must quote, two of them differ in upper and lower case only: each name of a table means the same
    topic in live, stored and bare, in both lives of karrow."""
    suffix = context.number
    topics = {name: 1 for name in (f"a.b-c_D{suffix}", f"A.b-c_d{suffix}", f"select{suffix}", f"1{suffix}", f"t.{suffix}.main",
                                   f"A.b-c_d{suffix}_1", *(f"{case}-{at}-{suffix}" for at in range(4) for case in ("x", "X")))}
    karrow = storing(context, topics)
    for number, topic in enumerate(topics):
        karrow.kafka_client().store(topic, [json.dumps({"of": topic}).encode()] * (number + 1))
    sql = Sql(karrow)

    def check_names():
        for number, topic in enumerate(topics):
            eventually(lambda: sql.one("select sum(next_offset) from stored._karrow.offsets where topic = $t", t=topic)
                       == number + 1, f"{topic} is stored")
        found = {}
        for schema in ("", "stored.", "live."):
            for table in {row["name"] for row in sql.rows("show tables")}:
                answer = sql.post(f'select topic, payload."of" as said from {schema}{quoted(table)}')
                if answer.status != 200 and schema == "live." and "payload" in answer.error():
                    continue  # nothing has come in this life, so there are no columns
                rows = answer.rows()
                if not rows and schema == "live.":
                    continue
                of = {row["topic"] for row in rows}
                check_equal(len(of), 1, f"topics in {schema}{table}: {of}")
                topic = of.pop()
                check_equal((len(rows), {row["said"] for row in rows}), ([*topics].index(topic) + 1, {topic}),
                            f"rows of {schema}{table}")
                check(topic.lower() == table.lower() or re.fullmatch(re.escape(topic.lower()) + r"_\d+", table.lower()),
                      f"the table {table} is topic {topic}")
                check_equal(found.setdefault(table, topic), topic, f"topic of {schema}{table}")
        check_equal(sorted(found.values()), sorted(topics), "topics of all tables")
        return found
    first = check_names()
    check_equal(karrow.stop(), 0, "exit code")
    karrow.start()
    check_equal(check_names(), first, "tables after a restart")


KEYS = ['a"b', "c;d", '"); drop table x; --', "'", "", "_", "Key", "key", "KEY", "ключ", "Ä", "ä", "a.b", "k" * 5000, "\\", "a b", "a\nb",
        "a\0b", "select", "\U0001f980", "$x", "?", "key_1", "%s{}"]


def ascii_lower(name):
    """A name as SQL compares it: only the letters of ASCII have no case."""
    return name.encode().lower()


@case("sql", "json-keys")
def json_keys(context):
    """Keys of JSON with quotes, statements, nothing, the same but for their case, and 5,000 letters: every value comes back by a
    quoted name, from the window, the table and both; in columns of objects of objects, too."""
    topic = context.unique("keys")
    karrow = storing(context, {topic: 1})
    record = {key: number for number, key in enumerate(KEYS)}
    sql = fill(context, karrow, topic, [record, {"o": record, "l": [record]}])
    name = quoted(topic)
    for table in (f"live.{name}", f"stored.{name}", name):
        row = sql.rows(f'select payload from {table} where "offset" = 0')[0]["payload"]
        columns = [column for column, value in row.items() if value is not None]
        check_equal([row[column] for column in columns], list(range(len(KEYS))), f"values in {table}")
        check_equal(len({ascii_lower(column) for column in columns}), len(KEYS), f"columns in {table}")
        for number, column in enumerate(columns):
            for path, offset in ((f"payload.{quoted(column)}", 0), (f"payload.o.{quoted(column)}", 1),
                                 (f"payload.l[1].{quoted(column)}", 1)):
                check_equal(sql.one(f'select {path} as v from {table} where "offset" = {offset}'), number,
                            f"{path[:60]} in {table}")
        plain = [key for key in KEYS if key not in ("", "_", "Key", "key", "KEY", "key_1", "a\0b")]
        check(set(plain) <= set(columns), f"keys without a column of their name: {set(plain) - set(columns)}")
    check_equal(karrow.stop(), 0, "exit code")
    karrow.start()
    karrow.kafka_client().store(topic, [json.dumps({**record, "new": 1}).encode()])
    sql.stored(topic, 3)
    check_equal(sql.one(f'select count(*) from {name} where payload."Key" = {KEYS.index("Key")}'), 2, "rows after a restart")


# ---- What is refused

EVIL = ["'; drop table t; --", '"; drop table t; --', "' or 1=1 --", "\\'; select 1; --", "$name", "?", "');--", "\u2019 or 1=1",
        "a\nb", "", "null", "%27", "select 1"]


@case("sql", "parameters-are-values")
def parameters_are_values(context):
    """Statements in parameters are texts: in bodies, URLs, named queries over HTTP and SQL.CALL."""
    topic = context.unique("evil")
    name = quoted(topic)
    config = f"[queries.by-name]\nsql = '''select payload.id as id from {name} where payload.name = $name'''\n"
    karrow = storing(context, {topic: 1}, config=config)
    sql = fill(context, karrow, topic, [{"id": number, "name": text} for number, text in enumerate(EVIL)])
    query = f"select payload.id as id from {name} where payload.name = $name"
    for number, text in enumerate(EVIL):
        wanted = [{"id": number}]
        check_equal(sql.rows(query, name=text), wanted, f"JSON: {text!r}")
        check_equal(sql.get("/v1/sql", q=query, name=text).rows(), wanted, f"URL: {text!r}")
        check_equal(sql.get("/v1/queries/by-name", name=text).rows(), wanted, f"named query: {text!r}")
        check_equal(json.loads(sql.resp("SQL.CALL", "by-name", "name", text)), wanted, f"SQL.CALL: {text!r}")
    check_equal(sql.one(f"select count(*) from stored.{name}"), len(EVIL), "rows")


WRITES = """create table x (i int) | create temp table x (i int) | create or replace view {t} as select 1 | create macro f(a) as a
    create schema s | create sequence s | create type ty as enum ('a') | create index i on stored.{t} ("offset")
    create secret (type s3) | create trigger x | drop table stored.{t} | drop view {t} | drop schema stored.karrow cascade
    insert into stored.{t} select * from {t} | insert into stored._karrow.offsets values ('x', 0, 0)
    insert into stored.{t} select * from {t} returning *
    update stored.{t} set "offset" = 0 | delete from stored.{t} | truncate stored.{t} | alter table stored.{t} add column x int
    merge into stored._karrow.offsets o using (select 1 as i) on (false) when not matched then insert values ('x', 0, 0)
    with x as (delete from stored.{t} returning *) select * from x
    with x as (insert into stored._karrow.offsets values ('x', 0, 0) returning *) select * from x
    explain analyze delete from stored.{t} | explain analyze insert into stored._karrow.offsets values ('x', 0, 0)
    copy stored.{t} to 'out.csv' | copy (select 1) to 'out.parquet' | copy stored.{t} from 'in.csv'
    attach 'other.db' | attach ':memory:' as x | detach stored | use stored
    install httpfs | load httpfs | set threads = 1 | set global memory_limit = '10GB' | reset threads | set variable a = 1
    pragma memory_limit = '10GB' | pragma database_list | pragma table_info('stored.{t}') | pragma enable_profiling | pragma version
    call pragma_version() | call enable_logging() | export database 'out' | import database 'out'
    checkpoint | checkpoint stored | force checkpoint | vacuum | analyze | begin | commit | rollback | prepare p as select 1
    execute p | deallocate p | comment on table stored.{t} is 'x' | select 1; select 2 | select 1; drop table stored.{t}
    select * from checkpoint('stored') | select * from force_checkpoint('stored') | select * from truncate_duckdb_logs()
    select * from register_external_resource_type('x', kind := 'a', create_function := 'b')
    select write_log('x') | select * from enable_logging() | select * from disable_profiling()
    select * from query('drop table stored.{t}')"""

REACHES_OUT = """select * from read_csv('/etc/passwd') | select * from read_csv_auto('/etc/passwd')
    select * from read_text('/etc/passwd') | select * from read_blob('/etc/passwd') | select * from glob('/etc/*')
    select * from '/etc/passwd' | select * from '/etc/passwd.csv' | select * from sniff_csv('/etc/passwd')
    select * from parquet_scan('/tmp/x.parquet') | select * from parquet_schema('/tmp/x.parquet')
    select * from read_json('/etc/passwd') | select * from read_ndjson_objects('/etc/passwd')
    select * from read_json_objects('/etc/passwd')
    select * from read_blob('{file}') | select * from read_text('{file}') | select * from '{file}' | select * from read_duckdb('{file}')
    select * from read_blob('karrow.duckdb') | select * from glob('{file}*') | select * from glob('karrow*')
    select * from read_blob('{file}.wal') | select * from read_blob('{folder}/.tmp/*') | select * from glob('.tmp/*')
    select * from glob('{folder}/.tmp/../*') | select * from read_text('{folder}/.tmp/../karrow.log')
    select * from read_csv('https://example.com/x.csv') | select * from 'https://example.com/x.parquet'
    select * from read_parquet('s3://bucket/x.parquet')
    select getenv('PATH') | select * from duckdb_secrets() | select * from which_secret('s3://x', 's3')
    select * from sqlite_scan('/tmp/x', 't') | select * from postgres_scan('', '', '') | select * from pg_read_file('/etc/passwd')"""


def statements(text, **names):
    return [part.strip().format(**names) for line in text.splitlines() for part in line.split(" | ") if part.strip()]


@case("sql", "nothing-is-written")
def nothing_is_written(context):
    """Statements that change something, and functions that do: all are refused as a 400 with a reason, and nothing has changed."""
    topic = context.unique("kept")
    karrow = storing(context, {topic: 1})
    sql = fill(context, karrow, topic, [{"id": number} for number in range(5)])
    before = state(sql, topic)
    wrong = []
    for statement in statements(WRITES, t=quoted(topic)):
        answer = tried(sql, statement)
        if answer != 400:
            wrong.append(f"`{statement}`: {answer}")
        try:
            sql.resp("SQL", statement)
            wrong.append(f"`{statement}`: answered over Redis's protocol")
        except ReplyError:
            pass
    for query, rows in state(sql, topic).items():
        changed = [row for row in before[query] if row not in rows] + [row for row in rows if row not in before[query]]
        if changed:
            wrong.append(f"changed in `{query}`: {str(changed[:4])[:400]}")
    karrow.kafka_client().store(topic, [b'{"id":5}'])
    sql.stored(topic, 6)
    check(not wrong, f"{len(wrong)} were not refused in order:\n    " + "\n    ".join(wrong))


@case("sql", "nothing-outside")
def nothing_outside(context):
    """Files, the tables' own file too, other hosts, the environment: no statement reaches them, and each is a 400 with a reason."""
    topic = context.unique("inside")
    karrow = storing(context, {topic: 1})
    sql = fill(context, karrow, topic, [{"id": 1}])
    file = karrow.folder / "karrow.duckdb"
    wrong = []
    for statement in statements(REACHES_OUT, file=file, folder=karrow.folder):
        answer = tried(sql, statement)
        if answer != 400:
            wrong.append(f"`{statement}`: {answer}")
    check(not wrong, f"{len(wrong)} were not refused in order:\n    " + "\n    ".join(wrong))


@case("sql", "nothing-of-the-machine")
def nothing_of_the_machine(context):
    """What a client may ask of DuckDB itself does not tell it where files are."""
    topic = context.unique("hidden")
    karrow = storing(context, {topic: 1})
    sql = fill(context, karrow, topic, [{"id": 1}])
    wrong = []
    for query in ("select * from duckdb_databases()", "select * from pragma_database_list", "select * from duckdb_settings()",
                  "select current_setting('secret_directory') as d", "select current_setting('allowed_paths') as d",
                  "pragma database_list", "select * from duckdb_temporary_files()", "create secret (type s3)",
                  "select * from duckdb_external_file_cache()"):
        answer = sql.post(query)
        body = answer.body.decode()
        for secret in (str(karrow.folder), "/root", "stored_secrets"):
            if secret in body:
                wrong.append(f"`{query}` tells {secret}")
    check(not wrong, "\n    " + "\n    ".join(wrong))


def tried(sql, statement):
    """The status of an answer; what went wrong, where it was none."""
    try:
        answer = sql.post(statement)
    except (Failure, OSError) as error:
        return f"no whole answer ({str(error)[-60:]})"
    return answer.status if answer.status == 400 else f"status {answer.status}: {answer.body[:160].decode('utf-8', 'replace')}"


def state(sql, topic):
    """What writes would change."""
    return {query: sql.values(query) for query in (
        f"select * from stored.{quoted(topic)} order by 3", f"select * from {quoted(topic)} order by 3",
        "select * from stored._karrow.offsets order by all",
        "select database_name, schema_name, table_name from duckdb_tables() order by all",
        "select database_name, schema_name, view_name from duckdb_views() where not internal order by all",
        "select function_name, count(*) as n from duckdb_functions() group by 1 order by all")}


# ---- Limits


@case("sql", "time-limit")
def time_limit(context):
    """A query that never ends is stopped after sql-time with a clear error, over HTTP and Redis's protocol; others go on."""
    karrow = gateway(context, "--sql-time", "2s")
    sql = Sql(karrow)
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        http = pool.submit(tried_text, sql, FOREVER)
        resp = pool.submit(sql.resp_refused, "SQL", FOREVER)
        eventually(lambda: sql.running() == 2, "two queries run")
        check_equal(sql.one("select 42 as n"), 42, "a query beside them")
        check_equal(sql.resp("PING"), "PONG", "PING beside them")
        text = resp.result()
        check("more than 2 s" in text and "\n" not in text, f"Redis's protocol: {text!r}")
        took = time.monotonic() - began
        check(1.9 < took < 10, f"it was stopped after {took:.1f} s")
        status, text = http.result()
        check_equal((status, "more than 2 s" in text), (408, True), f"HTTP: {text!r}")
    eventually(lambda: sql.running() == 0, "no query runs")
    check(sql.metric("karrow_sql_queries_total", outcome="timeout") == 2, "karrow_sql_queries_total counts them")
    check_equal(sql.one("select 43 as n"), 43, "afterwards")


def tried_text(sql, query):
    """(status, text) of an error over HTTP."""
    try:
        answer = sql.post(query)
        return answer.status, answer.error() if answer.status != 200 else repr(answer.body[:200])
    except (Failure, OSError) as cut:
        return None, str(cut)


@case("sql", "clients-that-go")
def clients_that_go(context):
    """A client that goes while its query runs, or in the middle of its answer, stops the query, over HTTP and Redis's protocol."""
    # With a limit that none of them reaches before its client has gone.
    karrow = gateway(context, config='sql-time = "600s"\nsql-result-limit = "4GiB"\n')
    sql, wrong = Sql(karrow), []
    for query in (FOREVER, ENDLESS):
        for how in ("HTTP", "close", "cut"):
            before = sql.running()
            if how == "HTTP":
                client = sql.raw(query)
                leave = client.close
            else:
                client = karrow.connect()
                client.send("SQL", query)
                leave = getattr(client, how)
            eventually(lambda: sql.running() == before + 1, f"it runs: {query[:40]}")
            if how == "HTTP" and query is ENDLESS:
                check(client.recv(1000), "a part of the answer")
            leave()
            try:
                eventually(lambda: sql.running() == before, "it ends when its client goes", 5)
            except Failure as failure:
                wrong.append(f"{how}: {failure}: {query[:60]}")
    check(not wrong, "; ".join(wrong))


@case("sql", "concurrency")
def concurrency(context):
    """As many queries run at once as sql-concurrency says; the next one waits for its turn. Slow clients hold no place."""
    karrow = gateway(context, config=SLOW)
    sql = Sql(karrow)
    running = [sql.raw(FOREVER), sql.raw(FOREVER)]
    eventually(lambda: sql.running() == 2, "two queries run")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(sql.one, "select 1 as n") for _ in range(8)]
        done, _ = concurrent.futures.wait(waiting, 1)
        check(not done and sql.running() == 2, f"{len(done)} of those that wait were answered, {sql.running()} run")
        check_equal(sql.resp("PING"), "PONG", "PING meanwhile")
        running[0].close()
        check_equal([each.result(20) for each in waiting], [1] * 8, "answers of those that waited")
    running[1].close()
    eventually(lambda: sql.running() == 0, "no query runs")
    # Clients that take their time hold up nobody, until there are eight of them for each query that may run.
    karrow = gateway(context, config='sql-time = "2s"\nsql-concurrency = 1\n')
    sql, ending, readers = Sql(karrow), threading.Event(), []

    def read():
        while not ending.wait(0.02):
            for reader in tuple(readers):
                reader.recv(65536)
    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    try:
        readers.append(sql.raw(ENDLESS))
        eventually(lambda: sql.running() == 1, "a client reads")
        check_equal(sql.one("select 1 as n"), 1, "a query beside it")
        readers.extend(sql.raw(ENDLESS) for _ in range(7))
        eventually(lambda: sql.running() == 8, "eight clients read")
        status, text = tried_text(sql, "select 1 as n")
        check_equal((status, "as many answers are on their way" in text), (422, True), f"HTTP: {text!r}")
    finally:
        ending.set()
        reading.join(5)
        for reader in readers:
            reader.close()
    eventually(lambda: sql.running() == 0, "no query runs")


@case("sql", "slow-reader")
def slow_reader(context):
    """A client that takes nothing of a long answer is let go after sql-time; it holds up nobody, and memory stays."""
    karrow = gateway(context, "--sql-time", "2s")
    sql = Sql(karrow)
    before = resident(karrow)
    client = sql.raw(ENDLESS)
    eventually(lambda: sql.running() == 1, "it runs")
    check_equal(sql.one("select 1 as n"), 1, "beside it")
    eventually(lambda: sql.running() == 0, "it ends", 15)
    grown = resident(karrow) - before
    check(grown < 200 << 20, f"karrow has grown by {grown >> 20} MiB")
    client.close()


def resident(karrow):
    """Bytes of memory that karrow occupies."""
    with open(f"/proc/{karrow.server.pid}/status") as status:
        return int(re.search(r"VmRSS:\s+(\d+) kB", status.read())[1]) << 10


@case("sql", "result-limit")
def result_limit(context):
    """An answer beyond sql-result-limit is an error for Redis clients, before it is held; over HTTP it streams."""
    karrow = gateway(context, "--sql-result-limit", "1MiB")
    sql = Sql(karrow)
    large = "select i, repeat('x', 1000) as text from range(20000) t(i)"
    for name in ("json", "csv", "arrow"):
        text = sql.resp_refused("SQL", large, name)
        check("1048576 bytes" in text and "sql-result-limit" in text and "\n" not in text, f"{name}: {text!r}")
    eventually(lambda: sql.running() == 0, "no query runs")
    check_equal(len(sql.rows(large)), 20000, "rows over HTTP")
    check_equal(len(json.loads(sql.resp("SQL", large.replace("20000", "500")))), 500, "rows of a smaller answer")


@case("sql", "memory-limit")
def memory_limit(context):
    """A query that needs more than sql-memory is a clear error, and karrow and its tables live on."""
    topic = context.unique("memory")
    karrow = storing(context, {topic: 1}, "--sql-memory", "64MiB", "--sql-time", "20s")
    sql = fill(context, karrow, topic, [{"id": 1}])
    before = resident(karrow)
    for query in ("select list(i) as l from range(200000000) t(i)",
                  "select max(length(s)) as n from (select string_agg(md5(i::varchar), '') s from range(50000000) t(i) group by i % 3)"):
        text = sql.resp_refused("SQL", query)
        check("Out of Memory" in text and "\n" not in text, f"Redis's protocol: {text!r}")
        status, text = tried_text(sql, query)
        check_equal((status, "Out of Memory" in text), (422, True), f"HTTP: {text!r}")
    grown = resident(karrow) - before
    check(grown < 256 << 20, f"karrow has grown by {grown >> 20} MiB")
    karrow.kafka_client().store(topic, [b'{"id":2}'])
    sql.stored(topic, 2)
    check_equal(sql.ready(), (200, "ok"), "/readyz")


@case("sql", "nothing-is-spilled")
def nothing_is_spilled(context):
    """What does not fit into memory is a clear error, and leaves nothing on a disk."""
    topic = context.unique("spill")
    karrow = storing(context, {topic: 1}, "--sql-memory", "64MiB", "--sql-time", "60s")
    sql = Sql(karrow)
    eventually(lambda: sql.post(f"select count(*) from stored.{quoted(topic)}").status == 200, "the table is there")
    before = {path.name for path in karrow.folder.iterdir()}
    sql.refused("select count(*) as n from (select md5(i::varchar) h from range(10000000) t(i) order by h offset 1)",
                "Out of Memory", status=422)
    check_equal({path.name for path in karrow.folder.iterdir()} - before, set(), "files that a large sort leaves")
    check_equal(sql.one("select 42 as n"), 42, "a query after it")


@case("sql", "errors-help")
def errors_help(context):
    """Syntax errors with their place, unknown tables, columns and functions with the nearest names."""
    topic = "orders" + context.unique("x").replace("-", "")
    karrow = storing(context, {topic: 1})
    sql = fill(context, karrow, topic, [{"candy_id": 1}])
    sql.refused("selec 1", "Parser Error", "selec", "(line 1, column 1)")
    sql.refused(f"select 1,\n  2 +\nfrom {topic}", "Parser Error", "(line 3, column 1)")
    sql.refused(f"select * from {topic[:-1]}", topic[:-1], f'"{topic}"', "(line 1, column 15)")
    sql.refused(f"select payload.candy from {topic}", "candy_id")
    sql.refused(f"select ofset from {topic}", '"offset"', "(line 1, column 8)")
    sql.refused("select conut(1)", "count", "(line 1, column 8)")
    sql.refused(f"select * from stored.{topic}x", "does not exist")
    check_equal("\n" in sql.resp_refused("SQL", "selec 1"), False, "a line break in an error of Redis's protocol")


# ---- Named queries


@case("sql", "named-queries")
def named_queries(context):
    """Queries of karrow.toml with numbers and texts as parameters, over HTTP and SQL.CALL in each format; wrong, missing and
    unknown parameters are clear errors; the list of them; counters; what changes shows at once."""
    topic = context.unique("candy")
    name = quoted(topic)
    config = f"""
[queries.cheapest]
sql = '''select min(payload.price) as price, count(*) as n from {name} where payload.candy_id = $id::bigint'''
[queries.by-name]
sql = '''select payload.candy_id as id from {name} where payload.name = $name order by 1'''
[queries.all]
sql = '''select count(*) as n from {name}'''
[queries.slow]
sql = '''select count(*) as n, max(payload.price) as price from {name}'''
max-age = "60s"
"""
    karrow = storing(context, {topic: 1}, config=config)
    sql = fill(context, karrow, topic, [{"candy_id": number % 3, "price": 10 + number, "name": f"c{number % 3}"}
                                        for number in range(9)])
    check_equal(sorted(row["name"] for row in sql.get("/v1/queries").rows()), ["all", "by-name", "cheapest", "slow"], "list")
    check_equal(sql.get("/v1/queries/cheapest", id=1).rows(), [{"price": 11, "n": 3}], "a number")
    check_equal(sql.get("/v1/queries/by-name", name="c2").rows(), [{"id": 2}] * 3, "a text")
    for form in MEDIA_TYPES:
        answer = sql.get("/v1/queries/cheapest", id=2, format=form)
        check_equal(answer.media_type, MEDIA_TYPES[form], f"media type of {form}")
        check_equal(sql.resp("SQL.CALL", "cheapest", "id", "2", "FORMAT", form), answer.body, f"SQL.CALL in {form}")
    check_equal(json.loads(sql.resp("SQL.CALL", "all")), [{"n": 9}], "SQL.CALL without parameters")
    for parameters, words in [({}, ["'id'", "missing"]), ({"id": "x"}, ["'x'", "INT64"]), ({"id": 1, "what": 2}, ["'what'"]),
                              ({"ID": 1}, ["'ID'"]), ({"wrong": 1}, ["'wrong'"]), ({"id": 1, "format": "xml"}, ["'xml'"])]:
        answer = sql.get("/v1/queries/cheapest", **parameters)
        check_equal(answer.status, 400, f"status with {parameters}: {answer.body!r}")
        check(all(word in answer.error() for word in words), f"with {parameters}: {answer.error()!r}")
    text = sql.get("/v1/queries/cheapets").error()
    check("'cheapets'" in text and "cheapest" in text and "by-name" in text, f"unknown query: {text!r}")
    check("'cheapets'" in sql.resp_refused("SQL.CALL", "cheapets"), "unknown query of SQL.CALL")
    check_equal(sql.get("/v1/queries/slow").rows(), [{"n": 9, "price": 18}], "max-age, first")
    karrow.kafka_client().store(topic, [json.dumps({"candy_id": 8, "price": 99, "name": "new"}).encode()])
    sql.seen(topic, 10)
    check_equal(sql.get("/v1/queries/slow").rows(), [{"n": 9, "price": 18}], "max-age, within it")
    for number in range(20):  # what is in the window is in the answer, at once
        karrow.kafka_client().store(topic, [json.dumps({"candy_id": 7, "price": 100 - number, "name": "new"}).encode()])
        eventually(lambda: sql.one(f"select count(*) from live.{name}") == 11 + number, "it is in the window")
        check_equal(sql.get("/v1/queries/cheapest", id=7).rows(), [{"price": 100 - number, "n": number + 1}], "at once")
    ran, cached = (sql.metric("karrow_named_queries_total", query="all", source=source) for source in ("run", "cache"))
    sql.stored(topic, 30)
    answers = {sql.get("/v1/queries/all").body for _ in range(20)}
    check_equal([json.loads(answer) for answer in answers], [[{"n": 30}]], "answers")
    ran, cached = (sql.metric("karrow_named_queries_total", query="all", source=source) - before
                   for source, before in (("run", ran), ("cache", cached)))
    check(ran + cached == 20 and cached > 0 and ran > 0, f"karrow_named_queries_total: {ran} runs, {cached} from the cache")


@case("sql", "named-queries-under-load")
def named_queries_under_load(context):
    """200 at once while records come: all succeed, and none is older than what the window had when it was asked."""
    topic = context.unique("load")
    name = quoted(topic)
    config = f"[queries.newest]\nsql = '''select max(payload.id) as id, count(*) as n from {name}'''\n"
    karrow = storing(context, {topic: 1}, config=config)
    sql, client = fill(context, karrow, topic, [{"id": 0}]), karrow.kafka_client()
    ending, known, wrong, answered = threading.Event(), [0], [], []

    def produce():
        producer = client.producer()
        for number in itertools.count(1):
            if ending.wait(0.005):
                producer.flush(30)
                return
            producer.produce(topic, json.dumps({"id": number}).encode(), partition=0)
            producer.poll(0)

    def look():
        """What the window had, as an ordinary query sees it."""
        while not ending.is_set():
            known[0] = max(known[0], sql.one(f"select max(payload.id) from live.{name}"))

    def ask(number):
        last = 0
        while not ending.is_set():
            before = known[0]
            if number % 2:
                answer = sql.get("/v1/queries/newest")
                if answer.status != 200:
                    wrong.append(f"status {answer.status}: {answer.body[:200]!r}")
                    return
                row = answer.rows()[0]
            else:
                row = json.loads(sql.resp("SQL.CALL", "newest"))[0]
            if row["id"] < max(before, last) or row["n"] != row["id"] + 1:
                wrong.append(f"the window had {before}, and before it said {last}: {row}")
            last = row["id"]
            answered.append(row["id"])

    with concurrent.futures.ThreadPoolExecutor(202) as pool:
        tasks = [pool.submit(produce), pool.submit(look), *(pool.submit(ask, number) for number in range(200))]
        try:
            eventually(lambda: len(answered) > 4000 and answered[-1] > 200 or wrong or any(task.done() for task in tasks),
                       "4000 answers while 200 records came", 90)
        finally:
            ending.set()
        for task in tasks:
            task.result(60)
    check(not wrong, f"{len(wrong)} of {len(answered)} answers are wrong: {wrong[:3]}")
    ran, cached = (sql.metric("karrow_named_queries_total", query="newest", source=source) for source in ("run", "cache"))
    check(cached > ran > 0, f"{ran} runs, {cached} answers from the cache")
    print(f"        {len(answered)} answers, {ran:.0f} runs, the newest {max(answered)}", flush=True)


@case("sql", "named-queries-that-are-wrong")
def wrong_named_queries(context):
    """A query with an error, or one that writes: karrow does not start, with exit code 64 and one line that names it."""
    wrong = []
    for what, line, words in [
        ("syntax", "sql = 'selec 1'", ["queries.bad", "selec"]), ("writes", "sql = 'drop table x'", ["queries.bad"]),
        ("two", "sql = 'select 1; select 2'", ["queries.bad", "one statement"]), ("empty", "sql = ''", ["queries.bad"]),
        ("function", "sql = 'select nosuch(1)'", ["queries.bad", "nosuch"]),
        ("file", "sql = \"select * from read_csv('/etc/passwd')\"", ["queries.bad"]),
        ("no sql", "max-age = '1s'", ["sql"]), ("setting", "sql = 'select 1'\nage = 1", ["age"]),
        ("max-age", "sql = 'select 1'\nmax-age = 'soon'", ["soon"]),
    ]:
        folder = context.folder / what.replace(" ", "-")
        folder.mkdir(parents=True)
        (folder / "karrow.toml").write_text(f"[queries.bad]\n{line}\n")
        arguments = ["-c", folder / "karrow.toml", "--brokers", "127.0.0.1:1", "--port", 0, "--http-port", "off",
                     "--flight-port", "off"]
        try:
            code, written = refuses_to_start(context.run.binary(), arguments, folder, 10)
        except Failure as failure:
            wrong.append(f"{what}: {failure}")
            continue
        if code != 64 or not all(word in written for word in words) or "panicked" in written:
            wrong.append(f"{what}: exit code {code}: {written!r}")
    folder = context.folder / "name"
    folder.mkdir(parents=True)
    (folder / "karrow.toml").write_text("[queries.\"a/b\"]\nsql = 'select 1'\n")
    code, written = refuses_to_start(context.run.binary(), ["-c", folder / "karrow.toml", "--port", 0], folder, 10)
    if code != 64 or "a/b" not in written:
        wrong.append(f"name: exit code {code}: {written!r}")
    check(not wrong, "\n    " + "\n    ".join(wrong))
    karrow = gateway(context, config="[queries.later]\nsql = 'select * from a_topic_that_is_not_there'\n")
    answer = Sql(karrow).get("/v1/queries/later")
    check_equal(answer.status, 400, "status of a query whose topic is not there yet")
    check("a_topic_that_is_not_there" in answer.error(), f"its error: {answer.error()!r}")
