"""Owns the clients of Arrow Flight in other languages: arrow-go and Arrow's Java library, with typed values."""
import json

from lib import install
from suites.clients import declare
from suites.flight import millis, moment

STEPS = ["info", "schema", "values", "range", "errors", "follow", "list", "cancel"]
RECORDS = [{"id": 2**53 + 1, "price": 19.99, "name": "Zoë 𝄞", "paid": True, "tags": ["a", ""]}, None,
           {"id": -2**63, "price": 5, "name": None, "paid": False, "tags": []}]


def prepared(context, topic):
    """Three records, a tombstone among them; returns what the program is told beside the usual."""
    context.karrow.kafka_client().store(topic, [
        {"value": record and json.dumps(record).encode(), "key": b"k\xff%d" % row, "timestamp": millis(moment(row))}
        for row, record in enumerate(RECORDS)])
    return {"FLIGHT_PORT": str(context.karrow.flight_port)}


def java():
    return install.java_program("flight-java", "Reader", "--add-opens=java.base/java.nio=ALL-UNNAMED"), {}


declare("flight-go", lambda: ([install.go_program("flight-go")], {}), STEPS, prepared)
declare("flight-java", java, STEPS, prepared)
