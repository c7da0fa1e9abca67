"""Small models whose training has a closed form, in float64 NumPy."""
