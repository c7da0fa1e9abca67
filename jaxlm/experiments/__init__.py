"""The machinery under the top-level experiments/: rows, tables, figures, resumable runs."""
