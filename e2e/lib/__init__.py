"""Shared code of the end-to-end tests: processes, installers, servers, the RESP client and the report."""
