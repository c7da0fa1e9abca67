"""Tables, figures and measures of insertion language models."""
