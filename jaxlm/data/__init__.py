"""Sources, tokenizers, packing: every pipeline is a Grain dataset, seeded, checkpointable, shardable by host."""
