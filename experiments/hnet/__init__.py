"""Tables, figures and measures of H-Net."""
