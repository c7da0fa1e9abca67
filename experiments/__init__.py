"""The tables and figures of each paper, a package each."""
