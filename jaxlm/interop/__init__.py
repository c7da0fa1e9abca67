"""Other people's arrays: official state dicts in and out, and parity with golden arrays."""
