"""Corpora from package managers: fetched by name, extracted, split by document hash, written once."""
