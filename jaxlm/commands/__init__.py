"""What all commands of `jaxlm` share: how they read flags, how they end, how they print tables."""
