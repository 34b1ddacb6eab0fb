"""The command line: starts the service and talks to it over HTTP; knows no weights and no SQL."""
