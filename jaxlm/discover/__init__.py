"""What there is: keys of configurations, parts, configurations, tables, operations, runs."""
