"""Tables, figures and measures of LaCT."""
