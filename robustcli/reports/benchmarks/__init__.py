"""Results of `robust bench` as tables and sentences; a row of a table has its cells by column."""
