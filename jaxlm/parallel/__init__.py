"""The mesh, the logical-axis rules, placement, multi-host start-up and agreement."""
