"""Owns asking karrow SQL: over HTTP and RESP as a client does it, and what /metrics and /readyz say meanwhile."""
import http.client
import json
import re
import socket
import urllib.parse
import urllib.request

from .process import Failure, Hopeless, check, check_equal, eventually
from .resp import ReplyError


class Answer:
    """What HTTP said: the status, the media type and the whole body."""

    def __init__(self, status, media_type, body):
        self.status, self.media_type, self.body = status, media_type, body

    def rows(self):
        check_equal(self.status, 200, f"status of {self.body[:300]!r}")
        return json.loads(self.body)

    def error(self):
        """The text of a JSON error."""
        check_equal(self.media_type, "application/json", f"media type of the error {self.body[:300]!r}")
        said = json.loads(self.body)
        check_equal(list(said), ["error"], "fields of an error")
        return said["error"]


class Sql:
    """SQL of one karrow. Rows are lists of dicts, as its JSON has them."""

    def __init__(self, karrow, seconds=60):
        self.karrow, self.seconds = karrow, seconds

    def get(self, path, accept=None, **parameters):
        """GET of a path, with parameters in the URL."""
        if parameters:
            path += "?" + urllib.parse.urlencode(parameters)
        return self._request("GET", path, None, {"Accept": accept} if accept else {})

    def post(self, body, path="/v1/sql", content_type="application/sql", accept=None):
        """POST of SQL, or of an object of JSON."""
        if not isinstance(body, (str, bytes)):
            body, content_type = json.dumps(body), "application/json"
        body = body if isinstance(body, bytes) else body.encode()
        return self._request("POST", path, body, {"Content-Type": content_type, **({"Accept": accept} if accept else {})})

    def _request(self, method, path, body, headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.karrow.http_port, timeout=self.seconds)
        try:
            connection.request(method, path, body, headers)
            reply = connection.getresponse()
            return Answer(reply.status, reply.getheader("Content-Type"), reply.read())
        except http.client.HTTPException as cut:
            if isinstance(cut, http.client.RemoteDisconnected):
                raise  # as all that a karrow which is killed does to its clients
            raise Failure(f"the answer to {method} {path} {(body or b'')[:200]!r} was cut off: {cut!r}") from None
        finally:
            connection.close()

    def rows(self, query, **parameters):
        return self.post({"query": query, "params": parameters} if parameters else query).rows()

    def values(self, query, **parameters):
        """The rows as tuples."""
        return [tuple(row.values()) for row in self.rows(query, **parameters)]

    def one(self, query, **parameters):
        """The one value of the one row."""
        rows = self.values(query, **parameters)
        check(len(rows) == 1 and len(rows[0]) == 1, f"{query}: not one value: {rows[:3]}")
        return rows[0][0]

    def refused(self, query, *words, status=400):
        """That a query is refused, with these words in the error; returns its text."""
        try:
            answer = self.post(query)
        except http.client.RemoteDisconnected:
            raise Failure(f"`{query}`: the connection was closed without an answer") from None
        check_equal(answer.status, status, f"status of `{query}`, answered {answer.body[:300]!r}")
        text = answer.error()
        missing = [word for word in words if word not in text]
        check(not missing, f"`{query}`: the error {text!r} does not say {missing}")
        return text

    def resp(self, *arguments, seconds=60):
        """A command on a connection of its own."""
        with self.karrow.connect(seconds=seconds) as redis:
            return redis.call(*arguments)

    def resp_refused(self, *arguments):
        """The text of the error that a command is answered with."""
        try:
            reply = self.resp(*arguments)
        except ReplyError as error:
            return str(error)
        raise Failure(f"{arguments}: answered {reply!r}, want an error")

    def metric(self, name, **labels):
        """The value of a metric with these labels; 0 where it is not there yet."""
        for line in self.karrow.http("/metrics").splitlines():
            found = re.fullmatch(rf"{name}(?:{{(.*)}})? (\S+)", line)
            if found and dict(re.findall(r'(\w+)="([^"]*)"', found[1] or "")) == labels:
                return float(found[2])
        return 0.0

    def running(self):
        return self.metric("karrow_sql_running")

    def ready(self):
        """What /readyz says: (status, text)."""
        answer = self.get("/readyz")
        return answer.status, answer.body.decode().strip()

    def stored(self, topic, count, seconds=60):
        """Waits until the table of a topic has `count` rows; more are a failure."""
        def enough():
            answer = self.post(f"select count(*) as n from stored.{quoted(topic)}")
            if answer.status != 200:
                raise Failure(answer.error())
            rows = answer.rows()[0]["n"]
            if rows > count:
                raise Hopeless(f"stored.{topic} has {rows} rows, more than the {count} that there are")
            if rows < count:
                raise Failure(f"stored.{topic} has {rows} rows")
            return True
        eventually(enough, f"{count} rows in stored.{topic}", seconds)

    def seen(self, topic, count, seconds=60):
        """Waits until a bare name has `count` rows."""
        eventually(lambda: self.one(f"select count(*) from {quoted(topic)}") == count, f"{count} rows in {topic}", seconds)

    def columns(self, table):
        """The columns of a table and their types in SQL."""
        return {row["column_name"]: row["column_type"] for row in self.rows(f"describe {table}")}

    def raw(self, query):
        """A connection on which a question was sent over HTTP, for clients that read slowly or not at all."""
        connection = socket.create_connection(("127.0.0.1", self.karrow.http_port), timeout=self.seconds)
        connection.sendall(b"POST /v1/sql HTTP/1.1\r\nHost: karrow\r\nContent-Length: %d\r\n\r\n%s"
                           % (len(query), query.encode()))
        return connection


def quoted(name):
    """A name in SQL."""
    return '"' + name.replace('"', '""') + '"'


def storing(context, topics, *arguments, config=None, label="karrow", bootstrap=None, start=True):
    """A karrow that stores topics, which exist: {name: number of partitions}."""
    karrow = context.new_karrow(label=context.unique(label), bootstrap=bootstrap)
    create_topics(karrow, topics)
    karrow.arguments += ["--topics", ",".join(topics), "--persist", *arguments]
    if config:
        path = karrow.folder / "karrow.toml"
        path.write_text(config)
        karrow.arguments += ["-c", path]
    if start:
        karrow.start()
        sql = Sql(karrow)
        for topic in topics:  # from then on nothing that is produced is passed over, wherever streams begin
            eventually(lambda: begun(sql, topic), f"topic {topic} has a table")
    return karrow


def begun(sql, topic):
    """Whether the table of a topic is there."""
    answer = sql.get("/v1/sql", q="select count(*) as n from stored._karrow.topics where topic = $t", t=topic)
    return answer.rows()[0]["n"] == 1


def create_topics(karrow, topics):
    """Creates topics; where karrow is the broker itself, it runs for as long."""
    embedded = "--embedded" in karrow.command
    if embedded:
        karrow.start()
    for topic, partitions in topics.items():
        karrow.kafka_client().create_topic(topic, partitions)
    if embedded:
        check_equal(karrow.stop(), 0, "exit code")
