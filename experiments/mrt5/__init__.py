"""Tables, figures and measures of MrT5."""
