"""Tables, figures and measures of lexinvariant language models."""
