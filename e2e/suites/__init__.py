"""The suites, in the order in which they run: quick ones first, the hostile moments last."""
from . import topics, input, clients, terminal, stackexchange, rafka, arrow, arrow_schemas, arrow_reading, arrow_trouble, flight, flight_reading, flight_following, flight_clients, flight_put, flight_sql, sql, sql_stored, loss  # noqa: F401
