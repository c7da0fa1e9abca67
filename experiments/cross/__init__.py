"""Tables that put parts of one paper into the model of another."""
