"""Tables, figures and measures of CARoPE."""
